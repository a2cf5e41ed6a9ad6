"""Fixtures and options for all tests; what they use stands in `support`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest
from support import ddp_bp, end_tree, leftovers, mpi_name, run_to_end, start
from support import mpirun as mpirun_command

# How long an example takes depends on what else the machine does; tests have deadlines of their own.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def nothing_of_mpi_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """An MPI cannot tidy up after processes that a test killed, so the test does."""
    if request.node.get_closest_marker("mpi") is None:
        yield
        return
    before = leftovers()
    yield
    for path in leftovers() - before:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture
def run_python() -> Run:
    """`run_python([arguments...])`: this interpreter, to its end."""

    def run(arguments: Sequence[object], timeout_seconds: float = 60, **options):
        return run_to_end([sys.executable, *arguments], timeout_seconds, **options)

    return run


@pytest.fixture
def mpirun() -> Run:
    """`mpirun(n, [arguments...])`: this interpreter on n ranks."""

    def run(size: int, arguments: Sequence[object], timeout_seconds: float = 90, **options):
        return run_to_end([*mpirun_command(size), sys.executable, *arguments], timeout_seconds, **options)

    return run


@pytest.fixture
def run_ddp_bp() -> Run:
    """`run_ddp_bp("train", "digits", ...)`: the command line, to its end."""

    def run(*arguments: object, timeout_seconds: float = 90, **options):
        return run_to_end(ddp_bp(*arguments), timeout_seconds, **options)

    return run


@pytest.fixture
def start_command() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start_command([...])`: a command that runs on; ended with all it started when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def begin(command: Sequence[object], **environment: str) -> subprocess.Popen[str]:
        started.append(start(command, **environment))
        return started[-1]

    yield begin
    for process in started:
        end_tree(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def other_pythons(request: pytest.FixtureRequest) -> list[Path]:
    """Interpreters of environments with another MPI, in which jobs must have the same bits."""
    pythons: list[Path] = request.config.getoption("--other-python")
    return pythons


def pytest_configure(config: pytest.Config) -> None:
    """A folder of these tests alone for what jobs and MPI put aside: they tidy up there, and other jobs may run."""
    # What pytest keeps of tests stays where it would be.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.TemporaryDirectory(prefix="ddp-", ignore_cleanup_errors=True)
    patch = pytest.MonkeyPatch()
    patch.setenv("TMPDIR", folder.name)
    patch.setattr(tempfile, "tempdir", folder.name)
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(patch.undo)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--other-python",
        action="append",
        default=[],
        type=Path,
        metavar="PYTHON",
        help="an interpreter whose environment has another MPI: jobs of both must have the same bits",
    )
    parser.addoption(
        "--partition-seconds",
        type=float,
        default=8.0,
        metavar="SECONDS",
        help="how long the link between hosts is cut in the test in which it is mended again",
    )
    parser.addoption("--strict-no-skip", action="store_true", help="fail if any test is skipped, as CI does")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("parity") is not None:
        pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")
    if item.get_closest_marker("ulfm") is not None and mpi_name() != "Open MPI":
        pytest.skip("needs an MPI whose ranks can go on when one dies: Open MPI 5")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # Whether hosts can be made is up to the kernel and whoever runs the checks; no package can help.
    skipped = [
        report for report in (reporter.stats.get("skipped", []) if reporter else []) if "hosts" not in report.keywords
    ]
    if session.config.getoption("--strict-no-skip") and skipped and session.exitstatus == 0:
        reporter.write_line(f"{len(skipped)} tests were skipped, and none may be here", red=True)
        session.exitstatus = 1
