"""Which mpirun is taken, its line for each MPI, and what it promises to do when a rank dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ddp_bp.cli.launcher import Launcher, find_launcher, mpirun_command, recovery_line
from ddp_bp.errors import LaunchError
from ddp_bp.recipes.fault import FaultSection
from ddp_bp.recipes.schema import ExchangeSection, Recipe

VERSIONS = {
    "Open MPI 5": "mpirun (Open MPI) 5.0.7\n\nReport bugs to https://www.open-mpi.org/community/help/\n",
    "Open MPI 4": "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n",
    "Open MPI 3": "mpirun (OpenRTE) 3.1.6\n",
    "MPICH": "HYDRA build details:\n    Version:                                 4.0.2\n",
}
WORKER = ["-m", "ddp_bp", "worker", "digits"]
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts an mpirun of a given kind on the PATH or beside the interpreter. The machine has 4 cores and no other."""
    for folder in ("path", "bin"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def put(kind: str, folder: str = "path", name: str = "mpirun", *, ulfm: bool = False) -> Path:
        script = tmp_path / folder / name
        script.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] || exit 9\n/bin/cat <<'END'\n{VERSIONS[kind]}END\n")
        script.chmod(0o755)
        info = tmp_path / folder / "ompi_info"
        info.write_text(f"#!/bin/sh\necho ' Fault Tolerance support: {'yes' if ulfm else 'no'}'\n")
        info.chmod(0o755)
        return script

    return put


@pytest.mark.parametrize("kind", ["Open MPI 5", "Open MPI 4", "Open MPI 3"])
@pytest.mark.parametrize(
    ("num_workers", "options"),
    [(4, []), (5, ["--mca", "mpi_yield_when_idle", "true"])],
)
def test_open_mpi_is_told_not_to_bind_and_to_yield_where_ranks_share_cores(
    install: Install, kind: str, num_workers: int, options: list[str]
) -> None:
    mpirun = install(kind)
    assert mpirun_command(find_launcher(), num_workers, ["worker", "digits"]) == [
        str(mpirun), "--oversubscribe", "--bind-to", "none", *options, "-n", str(num_workers), sys.executable, *WORKER
    ]  # fmt: skip


def test_root_is_allowed_only_where_we_are_root(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("Open MPI 5")
    assert "--allow-run-as-root" not in mpirun_command(find_launcher(), 1, [])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-run-as-root" in mpirun_command(find_launcher(), 1, [])


@pytest.mark.parametrize("num_workers", [1, 9])
def test_hydra_has_no_such_options(install: Install, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    mpirun = install("MPICH")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert mpirun_command(find_launcher(), num_workers, ["worker", "digits"]) == [
        str(mpirun), "-n", str(num_workers), sys.executable, *WORKER
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Open MPI 5", ["--oversubscribe", "--bind-to", "none", "-x", "OPENBLAS_CORETYPE=SkylakeX"]),
        ("Open MPI 4", ["--oversubscribe", "--bind-to", "none", "-x", "OPENBLAS_CORETYPE=SkylakeX"]),
        ("MPICH", ["-genv", "OPENBLAS_CORETYPE", "SkylakeX"]),
    ],
)
def test_every_host_is_told_which_kernels_to_take(install: Install, kind: str, options: list[str]) -> None:
    mpirun = install(kind)
    command = mpirun_command(find_launcher(), 2, ["worker", "digits"], "SkylakeX")
    assert command == [str(mpirun), *options, "-n", "2", sys.executable, *WORKER]


def test_the_mpirun_beside_the_interpreter_comes_first_and_mpiexec_last(install: Install) -> None:
    with pytest.raises(LaunchError, match=r"no mpirun beside .*/bin/python nor on the PATH; install one"):
        mpirun_command(find_launcher(), 2, [])
    mpiexec = install("MPICH", name="mpiexec")
    assert mpirun_command(find_launcher(), 2, [])[0] == str(mpiexec)
    mpirun = install("MPICH")
    assert mpirun_command(find_launcher(), 2, [])[0] == str(mpirun)
    beside = install("Open MPI 5", folder="bin")
    assert mpirun_command(find_launcher(), 2, [])[0] == str(beside)


@pytest.mark.parametrize(
    ("kind", "library"),
    [("Open MPI 5", "Open MPI 5.0.7"), ("Open MPI 4", "Open MPI 4.1.4"), ("MPICH", "HYDRA 4.0.2")],
)
def test_a_launcher_says_whose_it_is(install: Install, kind: str, library: str) -> None:
    install(kind)
    assert find_launcher().library == library


def test_ranks_survive_where_open_mpi_has_ulfm_and_the_recipe_wants_it(install: Install) -> None:
    for ulfm in (True, False):
        install("Open MPI 5", ulfm=ulfm)
        launcher = find_launcher()
        assert launcher.reports_deaths is ulfm
        assert ("ulfm" in mpirun_command(launcher, 2, [], survives=True)) is ulfm
        assert "ulfm" not in mpirun_command(launcher, 2, [])


OPEN_MPI = Launcher("mpirun", "Open MPI 5.0.7", reports_deaths=True)
MPICH = Launcher("mpirun", "HYDRA 4.0.2")
RESTART = "restart from the newest checkpoint, at most 3 in a row without progress"


@pytest.mark.parametrize(
    ("launcher", "fault", "has_checkpoints", "line"),
    [
        (
            OPEN_MPI,
            FaultSection(),
            True,
            "in place (Open MPI 5.0.7 with ULFM), the ranks that are left finish the step; if a whole node dies: "
            + RESTART,
        ),
        (
            OPEN_MPI,
            FaultSection(max_restarts=0),
            True,
            "in place (Open MPI 5.0.7 with ULFM), the ranks that are left finish the step; if a whole node dies, the "
            "job ends",
        ),
        (OPEN_MPI, FaultSection(recovery="restart"), True, RESTART),
        (MPICH, FaultSection(), True, f"{RESTART} (HYDRA 4.0.2 has no ULFM, so not in place)"),
        (
            MPICH,
            FaultSection(recovery="restart", max_restarts=2),
            False,
            "restart from the beginning (checkpoint.every_steps is 0), at most 2 in a row without progress",
        ),
        (OPEN_MPI, FaultSection(recovery="none"), True, "none (fault.recovery); when a rank dies, the job ends"),
        (MPICH, FaultSection(max_restarts=0), True, "none (fault.max_restarts is 0); when a rank dies, the job ends"),
    ],
)
def test_one_line_says_what_happens_when_a_rank_dies(
    launcher: Launcher, fault: FaultSection, has_checkpoints: bool, line: str
) -> None:
    assert (
        recovery_line(launcher, Recipe(fault=fault), num_workers=2, has_checkpoints=has_checkpoints)
        == f"recovery: {line}"
    )


def test_spares_are_named_where_they_are_started() -> None:
    recipe = Recipe(fault=FaultSection(spares=2))
    assert ", with 2 spares to step in; " in recovery_line(
        OPEN_MPI, recipe, num_workers=2, has_checkpoints=True, num_spares=2
    )
    assert ", with 1 spare to step in; " in recovery_line(
        OPEN_MPI, recipe, num_workers=2, has_checkpoints=True, num_spares=1
    )
    assert "spare" not in recovery_line(OPEN_MPI, recipe, num_workers=2, has_checkpoints=True)


def test_what_cannot_go_on_in_place_says_why() -> None:
    recipe = Recipe(exchange=ExchangeSection(compression="bf16"))
    assert recovery_line(OPEN_MPI, recipe, num_workers=2, has_checkpoints=True) == (
        f"recovery: {RESTART} (exchange.compression, so not in place)"
    )


def test_cores_of_this_host_say_nothing_about_others(install: Install) -> None:
    install("Open MPI 5")
    assert "mpi_yield_when_idle" in mpirun_command(find_launcher(), 9, [])
    assert "mpi_yield_when_idle" not in mpirun_command(find_launcher(), 9, [], counts_cores=False)
