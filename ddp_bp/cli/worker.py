"""`ddp-bp worker`: one rank of a job, started by `ddp-bp train` or by a launcher of the user's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from ddp_bp.checkpoint import Checkpoint
from ddp_bp.cli import options
from ddp_bp.cli.deadline import deadline
from ddp_bp.cli.environment import deaths_asked_for, user_cache
from ddp_bp.cli.heap import give_back_large_arrays, settle_memory
from ddp_bp.cli.kept_coordinator import END_SECONDS, KeptCoordinator, linger_line
from ddp_bp.cli.kernels import Kernels, settle_kernels
from ddp_bp.cli.outcome import report_outcome
from ddp_bp.cli.prepare import prepare, warn
from ddp_bp.cli.processes import CoordinatorProcess, start_coordinator
from ddp_bp.cli.ranks import run_as_rank
from ddp_bp.cli.view import fetch_status, summary_line
from ddp_bp.errors import InputError, RecipeError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.recipes import load_recipe
from ddp_bp.recipes.fault import FaultSection
from ddp_bp.recipes.schema import Recipe, start_id
from ddp_bp.worker.assemble import Job, assemble
from ddp_bp.worker.binding import bind_to_own_cores
from ddp_bp.worker.blas import check_same_blas, gather_blas
from ddp_bp.worker.death import Death, decode_deaths
from ddp_bp.worker.failures import together
from ddp_bp.worker.run import RunSettings, run_worker
from ddp_bp.worker.rundir import SUMMARY_FILE
from ddp_bp.worker.signals import ANNOUNCEMENTS, STOP_EXIT_CODES, stop_signals

COORDINATOR_END_SECONDS = 60.0


@dataclass(frozen=True)
class Invocation:
    """The command line of one worker."""

    recipe: str
    overrides: tuple[str, ...]
    run_dir: Path | None
    resume: str
    coordinator: str | None
    supervised: bool
    binds: bool
    num_starts: int
    num_recoveries: int
    num_spares: int


class Start(msgspec.Struct, frozen=True):
    """What rank 0 tells the others, so that all of them start the same job."""

    recipe: Recipe
    base: str
    address: str
    resumes: bool
    binds: bool
    num_spares: int


@click.command()
@options.recipe_argument
@options.set_option
@options.run_dir_option
@options.resume_option
@options.bind_option
@click.option(
    "--coordinator", metavar="ADDRESS", help="tcp://HOST:PORT of a coordinator; without it rank 0 starts one."
)
@click.option("--world-size", type=click.IntRange(min=1), help="Refuse to run unless there are this many ranks.")
@click.option(
    "--num-spares",
    type=click.IntRange(min=0),
    default=0,
    hidden=True,
    help="How many of them wait; without --supervised as the recipe says.",
)
@click.option(
    "--supervised", is_flag=True, hidden=True, help="Started by `ddp-bp train`, which has checked everything."
)
@click.option(
    "--num-starts", type=click.IntRange(min=0), default=0, hidden=True, help="How often all ranks were started before."
)
@click.option(
    "--num-recoveries", type=click.IntRange(min=0), default=0, hidden=True, help="How many deaths were got over before."
)
def worker(
    recipe: str,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    resume: str,
    binds: bool,
    coordinator: str | None,
    world_size: int | None,
    supervised: bool,
    num_starts: int,
    num_recoveries: int,
    num_spares: int,
) -> int:
    """Train RECIPE as one rank of the job that a launcher started.

    For example `mpirun -n 4 ddp-bp worker digits`, or srun, or mpiexec of another MPI: whichever belongs to the MPI
    library that mpi4py uses. Without a launcher it is a job of one process.
    """
    kernels = settle_kernels(recipe, overrides, run_dir, resume)
    give_back_large_arrays()
    invocation = Invocation(
        recipe, overrides, run_dir, resume, coordinator, supervised, binds, num_starts, num_recoveries, num_spares
    )
    fault = _fault_section(invocation)
    # `train` gives a start up before that, and ends what it can reach.
    start_seconds = 2 * fault.start_seconds if supervised else fault.start_seconds
    with deadline(start_seconds) as joined:
        return run_as_rank(
            world_size,
            lambda communicator: _work(communicator, invocation, kernels, joined, fault.grace_seconds),
            supervised=supervised,
            report=report_outcome if supervised else lambda _: None,
        )


def _fault_section(invocation: Invocation) -> FaultSection:
    """What the recipe says of faults."""
    try:
        return load_recipe(invocation.recipe, invocation.overrides)[0].fault
    except RecipeError:
        # `prepare` is going to say everything that is wrong with it.
        return FaultSection(start_seconds=0.0)


def _work(
    communicator: Communicator,
    invocation: Invocation,
    kernels: Kernels,
    joined: Callable[[], None],
    grace_seconds: float,
) -> int | None:
    asked: list[str] = []
    # Before that they end this process, since MPI's own start may last for ever if another rank does not come; Ctrl-C
    # does so until there is something to save.
    with stop_signals(asked.append, grace_seconds, ANNOUNCEMENTS), contextlib.ExitStack() as stack:
        together(communicator, kernels.check)
        ranks_blas = gather_blas(communicator)
        first = together(
            communicator,
            lambda: _Root(communicator, invocation, kernels, ranks_blas, stack) if communicator.rank == 0 else None,
        )
        told = communicator.allgather_bytes(msgspec.json.encode(first.start) if first else b"")[0]
        start = msgspec.json.decode(told, type=Start)
        if start.binds:
            # The coordinator, which rank 0 may have started, keeps out of this.
            bind_to_own_cores(communicator, communicator.size - start.num_spares)
        job = together(
            communicator,
            lambda: (
                first.job if first else assemble(start.recipe, Path(start.base), check_data=False, cache=user_cache())
            ),
        )
        settings = RunSettings(
            coordinator_address=start.address,
            run_id=start_id(start.recipe, invocation.num_starts),
            resumes=start.resumes,
            take_checkpoint=first.take_checkpoint if first else lambda: None,
            announce=first.announce if first else lambda _: None,
            num_recoveries=invocation.num_recoveries,
            needs_rank_0=invocation.coordinator is None,
            # `ddp-bp train` sees to it itself, and may start others in the place of the dead.
            min_workers=1 if invocation.supervised else start.recipe.fault.min_workers,
            num_spares=start.num_spares,
            joined=joined,
            built=settle_memory,
            asked=asked,
            death=together(communicator, lambda: _own_death(communicator.rank, invocation.num_starts)),
        )
        code = run_worker(communicator, job, settings)
        return code if first is None or code is None else first.conclude(code)


def _own_death(rank: int, num_starts: int) -> Death | None:
    """Where this rank is to kill itself, in the first start of a job only."""
    deaths = decode_deaths(deaths_asked_for()) if num_starts == 0 else []
    return next((death for death in deaths if death.rank == rank), None)


def spares_of(invocation: Invocation, communicator: Communicator) -> int:
    """How many of the ranks that a launcher of the user's own has started are to wait."""
    num_spares = _fault_section(invocation).spares
    if num_spares and not communicator.can_lose_ranks:
        warn(
            "fault.spares: all ranks train, since none can step in for another here; that takes Open MPI 5 and "
            "`mpirun --with-ft ulfm`"
        )
        return 0
    if num_spares and num_spares > communicator.size - 2:
        raise InputError(
            f"fault.spares: {num_spares} of the ranks that are started wait; expected at least two more, since a spare "
            f"goes on with what another rank still has, got {communicator.size} ranks"
        )
    return num_spares


class _Root:
    """What rank 0 does for all: it prepares the run, and starts a coordinator if none was named."""

    def __init__(
        self,
        communicator: Communicator,
        invocation: Invocation,
        kernels: Kernels,
        ranks_blas: list[tuple[str, str]],
        stack: contextlib.ExitStack,
    ) -> None:
        self._invocation = invocation
        self.run_dir = invocation.run_dir or options.default_run_dir(invocation.recipe)
        num_spares = invocation.num_spares if invocation.supervised else spares_of(invocation, communicator)
        num_workers = communicator.size - num_spares
        prepared = prepare(
            invocation.recipe,
            invocation.overrides,
            num_workers,
            self.run_dir,
            invocation.resume,
            checked=invocation.supervised,
            starts_coordinator=invocation.coordinator is None,
        )
        if not prepared.recipe.blas.allow_mixed:
            check_same_blas(ranks_blas)
        self.job: Job = prepared.job
        self._checkpoint: Checkpoint | None = prepared.checkpoint
        if not invocation.supervised:
            prepared.create(communicator=communicator.describe(), kernels_chosen_by=kernels.why)
            (self.run_dir / SUMMARY_FILE).unlink(missing_ok=True)
        self._coordinator: KeptCoordinator | None = None
        address = invocation.coordinator
        if address is None:
            self._coordinator = self._start_coordinator(num_workers, num_spares, prepared.job.total_steps)
            stack.callback(self._coordinator.wait, COORDINATOR_END_SECONDS)
            stack.callback(self._coordinator.release)
            located = self._coordinator.address
            address = located.address
            print(f"coordinator {located.url} (live page, /metrics, /api/status)")
            spares = f", {num_spares} of them as spares" if num_spares else ""
            print(f"{communicator.size} ranks{spares}, {communicator.describe()}")
            print(kernels.line(), flush=True)
            if kernels.warning:
                warn(kernels.warning)
        resumes = prepared.checkpoint is not None
        self.start = Start(prepared.recipe, str(prepared.base), address, resumes, invocation.binds, num_spares)

    def take_checkpoint(self) -> Checkpoint | None:
        """What was read to go on from, if anything; it is not kept here any more."""
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint

    def _start_coordinator(self, world_size: int, num_spares: int, total_steps: int) -> KeptCoordinator:
        def begin(overrides: Sequence[str], takes_over: bool) -> CoordinatorProcess:
            return start_coordinator(
                self._invocation.recipe,
                (*self._invocation.overrides, *overrides),
                world_size,
                self.run_dir,
                total_steps,
                num_spares=num_spares,
                takes_over=takes_over,
            )

        kept = KeptCoordinator(begin, self.run_dir, warn)
        kept.watch()
        return kept

    def announce(self, line: str) -> None:
        """Print progress where nobody else does."""
        if self._coordinator is not None:
            print(line, flush=True)

    def _linger(self, code: int) -> None:
        """Leave our coordinator the time to show how the job has ended; not if we may be ended by force meanwhile."""
        assert self._coordinator is not None
        status = fetch_status(self._coordinator.address.url)
        seconds = 0.0 if status is None else status["lingers_seconds"]
        if seconds <= 0:
            return
        is_pressed = code in [STOP_EXIT_CODES[name] for name in ANNOUNCEMENTS]
        enough = threading.Event()
        with stop_signals(lambda _: enough.set(), self.start.recipe.fault.grace_seconds):
            if is_pressed:
                seconds = 0.0
            else:
                print(linger_line(seconds), flush=True)
            self._coordinator.linger(seconds + END_SECONDS, enough.is_set)
        self._coordinator.release()

    def conclude(self, code: int) -> int:
        """Say how it ended, where nobody else does; the exit code, which the coordinator may have spoilt."""
        if self._coordinator is None:
            return code
        self._linger(code)
        # One that was killed by now has acknowledged the summary.
        if self._coordinator.wait(COORDINATOR_END_SECONDS) > 0 and self._coordinator.num_takeovers == 0:
            warn("the coordinator could not write everything; see above")
            code = code or 1
        if code in STOP_EXIT_CODES.values():
            warn(f"stopped by a signal; to go on, start again with --run-dir {self.run_dir}")
        print(summary_line(self.run_dir), flush=True)
        return code
