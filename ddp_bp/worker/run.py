"""One rank's whole run: connect, restore, train, finish. Composes the modules of this room.

Every stage that can fail on one rank alone is run `together`, so that all ranks leave it the same way. When a rank has
died, the others finish the step without it (`recovery`), tell the coordinator, and go on where they were. A spare waits
until it is needed in the place of a dead rank, or the others have come to their end.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from ddp_bp._version import __version__
from ddp_bp.checkpoint import Checkpoint
from ddp_bp.errors import CoordinatorLostError, DdpError, DistributedError, PeerLostError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.wire.messages import PROTOCOL_VERSION, Acknowledged, Failure, Finished, Hello, Membership
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.wire.process import process_name
from ddp_bp.worker.activity import Activity, place_outside_mpi, thread_stacks
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.checkpointing import SILENCE_SECONDS, Checkpointing
from ddp_bp.worker.compose import Composition, around, find_crew, first_composition, prepare_training
from ddp_bp.worker.death import Death, die_at
from ddp_bp.worker.failures import RankFailure, note, print_failure, together, warn
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.link import CoordinatorLink
from ddp_bp.worker.loop import Equipment, Outcome, TrainingLoop
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.recovery import Recovery
from ddp_bp.worker.reporter import Reporter
from ddp_bp.worker.requests import STOP_REQUESTS, Request
from ddp_bp.worker.restore import first_state, restore
from ddp_bp.worker.rundir import recipe_sha256
from ddp_bp.worker.sampling import write_sample
from ddp_bp.worker.set_aside import SetAside
from ddp_bp.worker.signals import STOP_EXIT_CODES, stop_signals
from ddp_bp.worker.summary import summary_of
from ddp_bp.worker.team import Team, brief

WELCOME_SECONDS = 30.0
_LOOK_SECONDS = 0.005
"""How often a spare looks whether it is needed. A recovery waits for it."""
_SUMMARY_SECONDS = 600.0
"""How long the disk may take for the summary, beside a coordinator that is there."""


@dataclass(frozen=True)
class RunSettings:
    """Where the coordinator is, what to resume from, and who is told of each epoch.

    `resumes` is the same on all ranks; `take_checkpoint` gives what rank 0 has read if it is true, which nothing else
    keeps then, and None on the others.
    `num_recoveries`: how many deaths the run had got over before this start. `needs_rank_0`: whether the coordinator
    ends with the rank that was 0 at the start. `min_workers`: with fewer ranks they stop, with a checkpoint.
    `num_spares`: how many ranks, the last ones, wait. `joined`: is called when all have been welcomed by the
    coordinator, which watches them from then on; `built`: when all that stays in memory is in its place. `asked`: the
    signals that arrived before, and may still until then. `death`: where this rank is to kill itself, if anywhere.
    """

    coordinator_address: str
    run_id: str
    resumes: bool
    take_checkpoint: Callable[[], Checkpoint | None]
    announce: Callable[[str], None]
    num_recoveries: int = 0
    needs_rank_0: bool = False
    min_workers: int = 1
    num_spares: int = 0
    joined: Callable[[], None] = lambda: None
    built: Callable[[], object] = lambda: None
    asked: Sequence[str] = ()
    death: Death | None = None


def run_worker(communicator: Communicator, job: Job, settings: RunSettings) -> int | None:
    """Train `job` as one rank of `communicator`. Collective.

    Returns:
        The exit code: 0 after the last step; after a stop (with a checkpoint) that of STOP_EXIT_CODES for signals, 0
        where the launcher goes on with another number of ranks, and 1 where too few are left. None on a spare that was
        not needed.

    Raises:
        DdpError: on all ranks; only the rank that is to show it gets another class than RemoteError.
    """
    run: _Run | None = None
    # What is revoked when the team has come to its end, so that spares come to theirs.
    release = communicator.duplicate() if settings.num_spares else None
    link = CoordinatorLink(
        settings.coordinator_address,
        Hello(
            protocol_version=PROTOCOL_VERSION,
            package_version=__version__,
            run_id=settings.run_id,
            rank=communicator.rank,
            world_size=communicator.size,
            pid=os.getpid(),
            hostname=socket.gethostname(),
            shards=job.plan.num_shards,
            process=process_name(os.getpid()),
        ),
        job.recipe.fault.heartbeat_seconds,
        job.recipe.fault.orphan_seconds or math.inf,
    )
    # From the first moment on, so that a rank that stops while all get ready is found by those that wait for it.
    link.watch(Activity(lambda: 0, place_outside_mpi).position, thread_stacks)
    try:
        welcome = together(communicator, lambda: link.open(WELCOME_SECONDS))
        settings.joined()
        run = _Run(communicator, job, settings, link, welcome.checkpoint_every_steps)
        settings.built()
        return run.to_the_end(release)
    except DdpError as error:
        rank = run.rank if run else communicator.rank
        is_first = run.is_first_left if run else rank == 0
        tells = isinstance(error, RankFailure) and not error.shown
        if tells or (error.on_every_rank and is_first):
            link.post(Failure(rank, 0, str(error), ""))
        if error.on_every_rank and is_first and communicator.rank != 0:
            # Nobody else would show it: the rank that was 0 at the start has died.
            raise RankFailure(error, shown=False) from error
        raise
    finally:
        if release is not None and (run is None or run.works):
            release.revoke()
        link.close()


class _Run:
    def __init__(
        self, communicator: Communicator, job: Job, settings: RunSettings, link: CoordinatorLink, every_steps: int
    ) -> None:
        self._job, self._link = job, link
        self._needs_rank_0, self._min_workers = settings.needs_rank_0, settings.min_workers
        self._started_size, self._asked = communicator.size, settings.asked
        self._generation, self._num_recoveries = 0, settings.num_recoveries
        clock = PhaseClock(PHASE_BUCKETS_SECONDS)
        self._crew = crew = find_crew(communicator, job, settings.num_spares)
        self._trained = prepare_training(crew, job, clock, self._show_failure)
        if communicator.rank == 0 and (line := self._trained.buckets.line):
            note(line)
        self._progress, chain = first_state(job)
        self._composed: Composition | None = None
        self._communicator = communicator
        if crew.team_communicator is not None:
            self._communicator = crew.team_communicator
            self._composed = first_composition(crew, self._trained, job)
            if settings.resumes:
                snapshot = self._composed.snapshot
                restoring = Activity(lambda: 0, lambda: (place_outside_mpi(), snapshot.num_pieces_restored))
                link.watch(restoring.position, thread_stacks)
                self._progress, chain = restore(self._communicator, job, snapshot, settings.take_checkpoint())
        self._resumed_from_step: int | None = None
        if settings.resumes:
            # A spare may be rank 0 one day, and say so in the summary.
            told = communicator.allgather_bytes(msgspec.json.encode(self._progress.step))[0]
            self._resumed_from_step = msgspec.json.decode(told)
        keeps_lines = communicator.rank == 0 or self._trained.recovers
        self._ledger = Ledger(chain, len(crew.working), keeps_lines=keeps_lines)
        self._reporter = Reporter(link, communicator.rank, clock, self._progress, self._ledger)
        link.watch(Activity(lambda: self._progress.step, lambda: self._sign(clock)).position, thread_stacks)
        self._recipe_sha256 = recipe_sha256(job.recipe)
        self._loop = TrainingLoop(
            job=job,
            equipment=None if self._composed is None else self._equipment(self._composed),
            progress=self._progress,
            ledger=self._ledger,
            reporter=self._reporter,
            link=link,
            checkpoint_every_steps=every_steps,
            announce=settings.announce,
        )
        if settings.death is not None:
            die_at(settings.death, lambda: self._progress.step)

    @property
    def rank(self) -> int:
        """This rank's number by now."""
        return self._communicator.rank

    @property
    def is_first_left(self) -> bool:
        """Whether no rank lives that had a lower number at the start."""
        return self._crew.communicator.rank == 0

    @property
    def works(self) -> bool:
        """Whether this rank is in the team."""
        return self._crew.works

    def _sign(self, clock: PhaseClock) -> tuple[float, int, int]:
        """Another one whenever there is progress within a phase."""
        if (composed := self._composed) is None:
            return clock.last_lap, 0, 0
        evaluation = composed.evaluation
        return clock.last_lap, evaluation.num_chunks if evaluation else 0, composed.team.exchange.num_rounds

    def to_the_end(self, release: Communicator | None) -> int | None:
        """The exit code, or None on a spare that was not needed.

        `release`: is revoked when the team has come to its end; None where there are no spares."""
        # What is not finite is found by the step itself, which says where; NumPy's warnings would come first.
        grace_seconds = self._job.recipe.fault.grace_seconds
        aside = SetAside(self._started_size - 1 if self._trained.recovers else 0)
        started_with, outcome = self._communicator, None
        with stop_signals(self._loop.request_stop, grace_seconds), np.errstate(all="ignore"):
            for name in self._asked:
                self._loop.request_stop(name)
            while outcome is None:
                if self._composed is not None:
                    outcome = self._train_until_one_dies()
                elif release is None or not self._wait_until_needed(release):
                    return None
                if outcome is None:
                    aside.give()
                    self._go_on()
                    # What is left of the team before goes now, and not in the middle of some step.
                    gc.collect()
        if self._communicator is not started_with:
            self._communicator.close()
        stopped_by = outcome.stopped_by or Request(0)
        codes = (code for name, code in STOP_EXIT_CODES.items() if stopped_by & STOP_REQUESTS[name])
        return next(codes, 1 if stopped_by & Request.STOP_TOO_FEW else 0)

    def _wait_until_needed(self, release: Communicator) -> bool:
        """Whether a rank has died; otherwise the team has come to its end."""
        # First whether they have come to their end, after which they may die as they like.
        while not release.is_revoked():
            if self._crew.needs_spares():
                return True
            self._loop.attend()
            time.sleep(_LOOK_SECONDS)
        return False

    def _train_until_one_dies(self) -> Outcome | None:
        try:
            return self._train()
        except PeerLostError:
            if not self._trained.recovers:
                raise
        # The recovery begins after the error has gone, with all that the step was in the middle of.
        return None

    def _train(self) -> Outcome:
        outcome = self._loop.run()
        sample = self._sample() if outcome.stopped_by is None else None
        together(self._communicator, lambda: self._finish(outcome, sample))
        # Nobody may leave while another one goes back to finish without a dead rank.
        if self._trained.recovers and not self._communicator.agree(1):
            raise PeerLostError(f"rank {self.rank}: another rank has died at the end")
        return outcome

    def _equipment(self, composed: Composition) -> Equipment:
        communicator = composed.team.communicator
        checkpointing = Checkpointing(
            self._job,
            composed.snapshot,
            self._progress,
            self._ledger,
            communicator,
            self._link,
            self._recipe_sha256,
        )
        return Equipment(
            composed.team.step,
            composed.evaluation,
            checkpointing,
            communicator,
            partial(brief, self._trained, communicator),
        )

    def _go_on(self) -> None:
        """Finish the step without the ranks that have died, and stand where the others stand. Collective among all that
        live, spares included, of which some may be in the team then."""
        crew, stands = self._crew, False
        before = crew.identities
        composed: Composition | None = None

        def equip(team: Team) -> None:
            nonlocal composed
            composed = around(team, self._job)

        while not stands:
            left_behind = self._communicator
            recovery = Recovery(crew, self._trained, self._composed.team if self._composed else None, equip)
            team = recovery.run()
            self._generation += 1
            self._num_recoveries += 1
            lost = sorted(set(range(self._started_size)) - set(crew.identities))
            if self._needs_rank_0 and 0 in lost:
                raise CoordinatorLostError(
                    "rank 0 has died, and the coordinator with it, which it had started; start the same command again "
                    "to go on from the newest checkpoint, or use `ddp-bp train`, whose coordinator is a process of its "
                    "own"
                )
            if team is None:
                return
            assert composed is not None
            self._composed, self._communicator = composed, team.communicator
            left_behind.close()
            # Another death, in the middle of this, makes those that are left begin anew.
            with contextlib.suppress(PeerLostError):
                self._loop.go_on(self._equipment(self._composed), recovery.result)
                stands = True
        size, spares = self._communicator.size, list(crew.waiting)
        self._link.announce(Membership(self._generation, self.rank, size, lost, spares))
        self._ledger.membership, self._ledger.world_size = self._generation, size
        self._reporter.renumber(self.rank)
        if too_few := self._communicator.size < self._min_workers:
            self._loop.request_stop("too_few")
        if self.rank == 0:
            number = recovery.num_recomputed_shards
            again = f"; {number} shard{'s' if number > 1 else ''} computed in its place" if number else ""
            died = sorted(set(before) - set(crew.identities))
            joined = f"; rank {', '.join(map(str, recovery.called))} has stepped in" if recovery.called else ""
            warn(
                f"rank {', '.join(map(str, died))} has died; {self._communicator.size} of {self._started_size} ranks "
                f"go on from step {self._progress.step}{again}{joined}"
            )
            if too_few:
                warn(f"fewer ranks are left than fault.min_workers = {self._min_workers}; stopping with a checkpoint")

    def _show_failure(self, error: BaseException, step: int) -> None:
        self._reporter.failure(error, print_failure(error, self._communicator.rank, step))

    def _sample(self) -> str | None:
        """What rank 0 has the trained model write, if the recipe asks for it; None on the other ranks. Collective."""
        job = self._job

        def write() -> str | None:
            if self._communicator.rank != 0:
                return None
            return write_sample(job.objective.model, job.recipe.sample, job.data, job.plan.seed, self._progress.step)

        assert self._composed is not None
        with self._composed.team.update.evaluated_weights():
            return together(self._communicator, write)

    def _finish(self, outcome: Outcome, sample: str | None) -> None:
        """Rank 0 hands in the summary and waits until it is on the disk."""
        if self._communicator.rank != 0:
            return
        summary = summary_of(
            self._job,
            self._progress,
            outcome,
            world_size=self._communicator.size,
            ledger_sha256=self._ledger.chain_sha256,
            num_recoveries=self._num_recoveries,
            resumed_from_step=self._resumed_from_step,
            sample=sample,
        )
        finished = Finished(0, summary)
        self._link.on_return(lambda: self._link.post(finished))
        self._link.post(finished)
        reply = self._link.wait(
            lambda message: message if isinstance(message, Acknowledged) and message.of == "finished" else None,
            SILENCE_SECONDS,
            "the acknowledgement of the summary",
            _SUMMARY_SECONDS,
        )
        if not reply.ok:
            raise DistributedError(f"the summary of the run was not saved: {reply.message}")
