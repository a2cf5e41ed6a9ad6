"""What is left of a job is cleared away, and nothing of another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import wait_until

from ddp_bp.cli.environment import session_folder
from ddp_bp.cli.job_folder import clear_job, job_folder
from ddp_bp.cli.processes import start_mpirun

SLEEP = ["/bin/sh", "-c", "echo ready; exec sleep 60"]
RANK = """
import os, sys, time
from pathlib import Path
from ddp_bp.cli.lifeline import end_with_launcher
end_with_launcher(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    pass
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """A process of the job, which is in a session of its own, as ranks are."""
    process = start_mpirun(SLEEP, folder)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    code = process.wait(10)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    return code


def test_processes_and_files_of_a_job_go_with_it_and_no_others(own_temporary_folder: Path) -> None:
    with job_folder() as other:
        stranger = begin(other)
        with job_folder() as folder:
            process = begin(folder)
            (folder / "ompi.1").mkdir()
        assert process.wait(10) == -signal.SIGKILL
        assert stranger.poll() is None
        assert list(own_temporary_folder.iterdir()) == [other]
        end(process)
    assert end(stranger) == -signal.SIGKILL
    assert list(own_temporary_folder.iterdir()) == []


def test_processes_that_end_by_themselves_are_given_the_time(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    process = start_mpirun(["/bin/sh", "-c", "sleep 0.3; exit 5"], folder)
    clear_job(folder, grace_seconds=10)
    assert end(process) == 5
    assert not folder.exists()


def test_the_next_job_clears_away_what_a_killed_one_left(own_temporary_folder: Path) -> None:
    dead, alive = own_temporary_folder / "ddp-bp-job-dead", own_temporary_folder / "ddp-bp-job-alive"
    for folder in (dead, alive):
        (folder / "ompi.1").mkdir(parents=True)
    process = begin(alive)
    with job_folder() as running, job_folder():
        (running / "file").touch()
        with job_folder():
            assert running.exists() and alive.exists() and not dead.exists()
    end(process)


def test_a_rank_ends_with_the_process_that_started_it_and_clears_its_session(tmp_path: Path) -> None:
    session = tmp_path / "ompi.123"
    session.mkdir()
    (tmp_path / "rank.py").write_text(RANK)
    launcher = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(60)"
    rank = [sys.executable, str(tmp_path / "rank.py"), str(session)]
    process = subprocess.Popen([sys.executable, "-c", launcher, *rank], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait(10)
    # The rank holds the pipe's other end, and computes without a pause.
    assert process.stdout.read() == b""
    process.stdout.close()
    wait_until(lambda: not session.exists(), "the session's folder to go", 5)


@pytest.mark.parametrize(
    ("value", "is_own"),
    [
        ("/tmp/ompi.18366", True),
        ("/tmp/prterun.vm.123.0", True),
        ("/tmp/ompi.vm.0", False),
        ("/var/spool/slurmd", False),
        ("ompi.18366", False),
        ("", False),
    ],
)
def test_only_a_folder_of_this_job_alone_is_a_session(value: str, is_own: bool) -> None:
    assert session_folder({"PMIX_SERVER_TMPDIR": value}) == (Path(value) if is_own else None)
    assert os.environ.get("PMIX_SERVER_TMPDIR") is None
