"""Commands that measure something on several ranks and show it: starting the ranks, and getting their answer.

The command that the user called starts itself once more under mpirun, with a file for rank 0 to answer in. Under a
launcher of the user's own, rank 0 shows the answer. Knows not what is measured.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import click
import msgspec

from ddp_bp.cli.environment import launched_ranks
from ddp_bp.cli.job_folder import job_folder
from ddp_bp.cli.kernels import Kernels
from ddp_bp.cli.launcher import Launcher, find_launcher, mpirun_command
from ddp_bp.cli.processes import end_process_group, start_mpirun
from ddp_bp.cli.ranks import run_as_rank
from ddp_bp.cli.signals import STOP_EXIT_CODES, stop_signals
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.worker.binding import bind_to_own_cores
from ddp_bp.worker.failures import together

POLL_SECONDS = 0.2
_STDERR = 2

Answer = TypeVar("Answer")

# Starts the ranks once, with more arguments of the command line and more options of the launcher.
Start = Callable[[Sequence[str], Sequence[str]], Answer]

result_option = click.option(
    "--result", type=click.Path(path_type=Path), hidden=True, help="Where ranks that we started answer."
)


@dataclass(frozen=True)
class Measurement(Generic[Answer]):
    """What ranks find out together.

    name: what did not finish, in the message that says so.
    arguments: the command line that asks for the same once more, without the number of ranks.
    measure: what all ranks do. Collective; what it gives on rank 0 is the answer.
    answer_type: the type of the answer, which msgspec can write and read.
    show: prints the answer.
    kernels: the BLAS kernels that all ranks are to have.
    binds: whether each rank keeps to cores of its own.
    starts: if given, how the answer comes from several starts of the ranks; it knows the launcher.
    check: if given, called with the number of ranks before any is started; raises an InputError if that is in vain.
    """

    name: str
    arguments: list[str]
    measure: Callable[[Communicator], Answer]
    answer_type: type[Answer]
    show: Callable[[Answer], None]
    kernels: Kernels
    binds: bool
    starts: Callable[[Launcher, Start[Answer]], Answer] | None = None
    check: Callable[[int], object] | None = None


def run_measurement(measurement: Measurement[Answer], num_workers: int | None, result: Path | None) -> int:
    """Measure on `num_workers` ranks, or on those of a launcher, or else in this process. Returns the exit code.

    `result`: the file to answer in, if this is one of the ranks that such a command has started.
    """

    kernels = measurement.kernels

    def answer(found: Answer) -> None:
        if result is not None:
            result.write_bytes(msgspec.msgpack.encode(found))
        else:
            measurement.show(found)

    if num_workers is None or num_workers == 1 or launched_ranks() is not None:

        def work(communicator: Communicator) -> int:
            together(communicator, kernels.check)
            if measurement.binds:
                bind_to_own_cores(communicator)
            found = measurement.measure(communicator)
            together(communicator, lambda: answer(found) if communicator.rank == 0 else None)
            return 0

        return run_as_rank(num_workers, work, supervised=result is not None)
    # Whatever is wrong with the input is found before a process is started.
    kernels.check()
    if measurement.check is not None:
        measurement.check(num_workers)
    launcher = find_launcher()
    with stop_signals() as asked, job_folder() as folder:
        answer_file = folder / "result"
        ranks = ["-n", str(num_workers), "--result", str(answer_file), *([] if measurement.binds else ["--no-bind"])]

        def start(more_arguments: Sequence[str] = (), more_options: Sequence[str] = ()) -> Answer:
            arguments = [*measurement.arguments, *more_arguments, *ranks]
            command = mpirun_command(launcher, num_workers, arguments, kernels.asked_for, more=more_options)
            code = _run_mpirun(command, folder, asked)
            if code or not answer_file.exists():
                raise _Unfinished(code or 1)
            found = msgspec.msgpack.decode(answer_file.read_bytes(), type=measurement.answer_type)
            answer_file.unlink()
            return found

        try:
            found = measurement.starts(launcher, start) if measurement.starts else start()
        except _Unfinished as unfinished:
            if not asked:
                print(f"ddp-bp: {measurement.name} did not finish; the first error above says why", file=sys.stderr)
            return unfinished.exit_code
        answer(found)
        return 0


class _Unfinished(Exception):
    """Ranks that were started have not answered; they have said why, or were told to stop."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def _run_mpirun(command: list[str], folder: Path, asked: list[str]) -> int:
    """Run mpirun to its end; its exit code, or that of the first signal in `asked`, which ends it."""
    # Stdout is for what we show.
    mpirun = start_mpirun(command, folder, stdout=_STDERR, stderr=_STDERR)
    try:
        while mpirun.poll() is None and not asked:
            with contextlib.suppress(subprocess.TimeoutExpired):
                mpirun.wait(POLL_SECONDS)
    finally:
        end_process_group(mpirun)
    return STOP_EXIT_CODES[asked[0]] if asked else mpirun.returncode
