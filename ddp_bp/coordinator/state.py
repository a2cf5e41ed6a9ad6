"""The coordinator's decisions: `handle(event, now)` gives instructions, and nothing else happens.

No socket, clock, thread or disk: the same events at the same times give the same instructions. An event that means
nothing in the present state, or a message from somebody it does not belong to, changes nothing and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.checkpoints import CheckpointDesk, CheckpointRecord
from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.durability import Durability
from ddp_bp.coordinator.lifecycle import ENDED, Signal, State, advance
from ddp_bp.coordinator.lookout import Lookout
from ddp_bp.coordinator.progress import Progress
from ddp_bp.coordinator.records import evaluation_record, report_record
from ddp_bp.coordinator.roster import Member, Roster
from ddp_bp.coordinator.scaling import ScaleDesk
from ddp_bp.coordinator.status import status_of
from ddp_bp.coordinator.suspicion import Suspicion
from ddp_bp.wire import messages as m
from ddp_bp.wire.codec import Buffer

HEARTBEAT_SECONDS: Final = 1.0
JOIN_SECONDS: Final = 60.0
"""How long a stop that comes before any rank waits for one, to tell it."""
DRAIN_SECONDS: Final = 0.5
"""Once told to end at once, how long messages that are still on their way are waited for."""

TO_GO_ON: Final[tuple[m.StopCause, ...]] = ("resize", "respawn")
"""Stops after which the launcher starts the job again."""

_FROM_RANK_0: Final = (m.LedgerRecords, m.Evaluation, m.Finished)


class Coordinator:
    """The state of one job. Public attributes are for reading: status and metrics are views of them."""

    def __init__(
        self, config: CoordinatorConfig, record: CheckpointRecord, now: float, unix_seconds: float, address: str
    ) -> None:
        """`now` is a monotonic clock's reading and `unix_seconds` the time of day at that moment."""
        self.config = config
        self.address = address
        self.started_at = now
        self.state = State.WAITING
        self.roster = Roster(config.run_id, config.world_size, config.num_spares)
        self.progress = Progress()
        self.checkpoints = CheckpointDesk(config, self.roster, record)
        self.failure: m.Failure | None = None
        self.stop_cause: m.StopCause | None = None
        self.num_messages: Counter[str] = Counter()
        self.num_rejected = 0
        self.durability = Durability()
        self.lookout = Lookout(config, self.roster, self.progress, now)
        self.scaling = ScaleDesk(config, self.roster)
        self._unix_at_zero = unix_seconds - now
        self._heartbeat_at = now
        self._stop_asked_at: float | None = None
        self._ended_at: float | None = None
        self._closing_at: float | None = None
        self._exited = False
        self._num_terminations = 0
        self._num_disk_jobs = 0

    @property
    def ends_for_good(self) -> bool:
        """Whether the job is at its end, and is not to be started again from where it is."""
        is_stopped = self.state is State.STOPPING and self.stop_cause not in TO_GO_ON
        return self.state is State.FINISHED or is_stopped

    def unix_seconds(self, now: float) -> float:
        """The time of day at a reading of the monotonic clock."""
        return self._unix_at_zero + now

    def handle(self, event: e.Event, now: float) -> list[e.Instruction]:
        """What is to be done about an event, in order. After `Exit`, nothing but to answer tools."""
        if self._exited:
            return self._answer(event, now)
        if isinstance(event, e.DiskAnswer):
            self._num_disk_jobs = max(0, self._num_disk_jobs - 1)
        instructions = self._react(event, now)
        if instructions is None:
            self.num_rejected += 1
            instructions = []
        self._num_disk_jobs += sum(isinstance(instruction, e.DiskInstruction) for instruction in instructions)
        if self._num_disk_jobs == 0 and self._may_leave(now):
            instructions += self._leave()
        return instructions

    def _react(self, event: e.Event, now: float) -> list[e.Instruction] | None:
        match event:
            case e.Received(identity, message, payloads):
                self.num_messages[m.type_name(message)] += 1
                return self._receive(identity, message, payloads, now)
            case e.Unreadable(identity, reason):
                self.num_rejected += 1
                return [] if self.roster.find(identity) else [e.Send(identity, m.Refused(reason))]
            case e.Disconnected(identity):
                return self._disconnected(self.roster.lose(identity))
            case e.Tick():
                return self._tick(now)
            case e.TerminationAsked(cause):
                self._num_terminations += 1
                if self._num_terminations > 1 or self.state in ENDED:
                    self._close(now)
                return self._stop(cause, now)
            case e.ParentGone():
                self._close(now)
                return []
            case e.CheckpointWritten():
                return self.checkpoints.written(event, now, self.unix_seconds(now))
            case e.LedgerWritten(last_step):
                logs = self.durability.ledger_written(event)
                return [*logs, *(self._tell_of_ledger(self.roster.connected()) if last_step is not None else [])]
            case e.SummaryWritten():
                self.durability.summary_written()
                return self._tell_of_summary()
            case e.MetricsWritten() | e.FaultWritten():
                return []
            case e.Killed():
                instructions = self.lookout.evictions.killed(event, now)
                # Even one that could not be killed: nobody would ever say that it goes on without it.
                self.roster.forget_spare(event.rank)
                return instructions
            case e.DiskFailed():
                return self._disk_failed(event, now)

    # ---- messages; None: it does not belong here

    def _receive(
        self, identity: bytes, message: m.FromWorker, payloads: Sequence[Buffer], now: float
    ) -> list[e.Instruction] | None:
        match message:
            case m.Hello():
                return self._hello(identity, message, now)
            case m.StatusRequest():
                return [e.Send(identity, m.StatusReply(status_of(self, now)))]
            case m.StopRequest(cause):
                return [*self._stop(cause, now), e.Send(identity, m.Acknowledged("stop"))]
            case m.ScaleRequest(world_size):
                problem = self.scaling.ask(world_size, self.state)
                answer = e.Send(identity, m.Acknowledged("scale", ok=problem is None, message=problem or ""))
                return [answer] if problem is not None else [e.Remember(), answer]
            case m.CheckpointRequest(request_id):
                if self.state is State.TRAINING:
                    return self.checkpoints.request(request_id, "request", identity, now)
                why = f"the job is {self.state.value}; a checkpoint can be asked for only while it is training"
                return [e.Send(identity, m.CheckpointDone(request_id, ok=False, message=why))]
            case m.StacksRequest():
                return self.lookout.ask_for_stacks(identity, now)
        member = self.roster.find(identity)
        if member is None:
            if not isinstance(message, m.Heartbeat):
                return None
            self.num_rejected += 1
            return [e.Send(identity, m.Introduce())]
        if isinstance(message, m.Heartbeat):
            member.heard(now)
            if message.position is not None:
                member.position, member.position_at = message.position, now
            return []
        if isinstance(message, m.Stacks):
            member.heard(now)
            self.lookout.take_stacks(member, message)
            return self._give_stacks(now)
        if isinstance(message, m.Membership):
            return self._announce(member, message, now)
        rank = 0 if isinstance(message, m.Evaluation) else message.rank
        if member.rank != rank or (rank != 0 and isinstance(message, _FROM_RANK_0)):
            return None
        member.heard(now)
        return self._receive_from(member, message, payloads, now)

    def _receive_from(
        self, member: Member, message: m.FromWorker, payloads: Sequence[Buffer], now: float
    ) -> list[e.Instruction] | None:
        match message:
            case m.Report():
                return self._report(member, message, now)
            case m.LedgerRecords():
                return [e.AppendLedger(message.lines)]
            case m.Evaluation():
                if not self.progress.evaluated(message):
                    return []
                return [e.AppendMetrics(evaluation_record(message, self.unix_seconds(now)))]
            case m.CheckpointBegin():
                return self.checkpoints.begin(member, message, now)
            case m.CheckpointChunk() | m.CheckpointEnd() if member.epoch != self.roster.epoch:
                # Of a checkpoint that was dropped when the others went on.
                return []
            case m.CheckpointChunk():
                return self.checkpoints.chunk(message, payloads[0], now)
            case m.CheckpointEnd():
                return self.checkpoints.end(message, now)
            case m.Failure():
                return self._fail(message, now)
            case m.Finished():
                return self._finish(message, now)
            case m.Goodbye():
                member.said_goodbye()
                return []
            case _:
                return None

    def _hello(self, identity: bytes, hello: m.Hello, now: float) -> list[e.Instruction]:
        refusal = self.roster.refusal(hello, identity, now)
        is_back = self.roster.is_back(hello)
        # Who has trained to the end with the others may still have to hear that its summary is durable.
        ended = self.state is State.FAILED or (self.state is State.FINISHED and not is_back)
        if refusal is None and hello.role == "worker" and ended:
            refusal = f"the job has {self.state.value}; start it again to train on"
        if refusal is not None:
            self.num_rejected += 1
            return [
                e.Send(identity, m.Refused(refusal)),
                e.Log("warning", f"refused a {hello.role}, process {hello.pid} on {hello.hostname}: {refusal}"),
            ]
        welcome = m.Welcome(m.PROTOCOL_VERSION, self.config.run_id, self.config.checkpoint_every_steps)
        instructions: list[e.Instruction] = [e.Send(identity, welcome)]
        if hello.role == "tool":
            return instructions
        is_another = self.roster.member(hello.rank) is not None and not is_back
        member = self.roster.join(hello, identity, now)
        if is_another:
            self.progress.replaced(hello.rank)
        instructions += self._begin_if_all_joined(now)
        if self.state is State.STOPPING:
            instructions.append(e.Send(identity, m.Stop(self.stop_cause or "user")))
        # First of all what is durable: a rank that is welcome again sends again whatever it does not know to be that.
        return [*self._repeat(member), *instructions] if is_back else instructions

    def _answer(self, event: e.Event, now: float) -> list[e.Instruction]:
        """To a tool that asks after the end of the job."""
        match event:
            case e.Received(identity, m.StopRequest()):
                return [e.Send(identity, m.Acknowledged("stop"))]
            case e.Received(identity, (m.Hello(role="tool") | m.StatusRequest()) as message):
                return self._receive(identity, message, (), now) or []
        return []

    def _begin_if_all_joined(self, now: float) -> list[e.Instruction]:
        if not self.roster.all_joined or self.state is not State.WAITING:
            return []
        self.state = advance(self.state, Signal.ALL_JOINED)
        self.checkpoints.training_begins(now)
        return [e.Remember(), e.Log("info", f"all {self.roster.num_joined} ranks are here")]

    def _repeat(self, member: Member) -> list[e.Instruction]:
        """What a rank may have missed while its connection was lost; to hear it twice does no harm."""
        instructions = [*self.checkpoints.outcomes(member), *self._tell_of_ledger([member.identity])]
        return instructions + (self._tell_of_summary() if member.rank == 0 else [])

    def _announce(self, member: Member, message: m.Membership, now: float) -> list[e.Instruction] | None:
        """The ranks that are left go on without those that have died."""
        is_new = self.roster.announce(member, message)
        if is_new is None:
            return None
        member.heard(now)
        instructions: list[e.Instruction] = []
        if is_new:
            lost = ", ".join(map(str, self.roster.lost))
            text = f"{self.roster.world_size} ranks go on; lost so far: rank {lost}"
            instructions = [e.Log("info", text), *self.checkpoints.membership_changed()]
        instructions += self._begin_if_all_joined(now)
        if member.rank == 0 and member.epoch == self.roster.epoch:
            instructions += self.checkpoints.ask_again(member)
        return instructions

    def _report(self, member: Member, report: m.Report, now: float) -> list[e.Instruction]:
        member.step, member.phase, member.report_at = report.step, report.phase, now
        has_steps = self.progress.report(report, member.hello.rank)
        if has_steps:
            member.step_at = now
        if report.rank != 0 or not has_steps:
            return []
        return [e.AppendMetrics(report_record(report, self.progress.samples_per_second))]

    # ---- ranks that are silent or stuck

    def suspicions(self, now: float) -> list[Suspicion]:
        """Which ranks something seems to be wrong with."""
        return self.lookout.suspicions(self.state, now)

    def _give_stacks(self, now: float) -> list[e.Instruction]:
        return self.lookout.give_stacks(self.state, now, self.unix_seconds(now))

    def _look_out(self, now: float) -> list[e.Instruction]:
        instructions, why = self.lookout.look(self.state, now, self.unix_seconds(now))
        if why is not None:
            instructions += [e.Log("error", why), *self._fail(m.Failure(0, self.progress.step, why, ""), now)]
        return instructions

    # ---- the end

    def _stop(self, cause: m.StopCause, now: float) -> list[e.Instruction]:
        self.state = advance(self.state, Signal.STOP_ASKED)
        if self.state is not State.STOPPING:
            return []
        # Who wants an end prevails over who wants to go on otherwise.
        if self.stop_cause is None or self.stop_cause in TO_GO_ON:
            self.stop_cause = cause
        if self._stop_asked_at is None:
            self._stop_asked_at = now
            if self.roster.num_joined == 0:
                wait = f"waiting up to {JOIN_SECONDS:g} s for ranks, to tell them to stop; a second signal ends at once"
                # A parent tells its user about the stop by itself.
                level: Literal["info", "warning"] = "warning" if self.config.parent_fd is None else "info"
                return [e.Log(level, f"no rank is here yet: {wait}")]
        return [e.Send(identity, m.Stop(self.stop_cause)) for identity in self.roster.connected()]

    def _finish(self, finished: m.Finished, now: float) -> list[e.Instruction] | None:
        if self.state is State.FAILED:
            return None
        # A run that was stopped has a summary as well; it is finished only if the stop came too late to matter.
        total, steps = self.config.total_steps, finished.summary.get("steps")
        if self.state is not State.STOPPING or (total is not None and isinstance(steps, int) and steps >= total):
            self.state = advance(self.state, Signal.TRAINED)
            self._ended_at = now
        return [e.WriteSummary({**finished.summary, "checkpoint": self.checkpoints.record.last_path})]

    def _fail(self, failure: m.Failure, now: float) -> list[e.Instruction]:
        if self.state in ENDED:
            return []
        self.failure = failure
        self.state = advance(self.state, Signal.BROKE)
        self._ended_at = now
        # No louder than that: the rank itself shows its error, and it is to be shown once.
        return [e.Log("info", f"rank {failure.rank} failed at step {failure.step}: {failure.error}")]

    def _disconnected(self, lost: Member | None) -> list[e.Instruction]:
        if lost is None:
            return []
        # When the job ends early, ranks go without a word and that is no news.
        level: Literal["info", "warning"] = "warning" if self.state in (State.WAITING, State.TRAINING) else "info"
        self.roster.forget_spare(lost.hello.rank)
        return [e.Log(level, f"rank {lost.hello.rank} is disconnected")]

    def _close(self, now: float) -> None:
        if self._closing_at is None:
            self._closing_at = now

    def _may_leave(self, now: float) -> bool:
        if self._closing_at is not None and now - self._closing_at >= DRAIN_SECONDS:
            return True
        if self.roster.all_left:
            return True
        if self.state in (State.WAITING, State.TRAINING):
            # Ranks may end early, after an error, and one that was killed meanwhile does not say goodbye.
            # Without a parent a longer silence is waited for.
            deserted_at = None if self.config.parent_fd is None else self.roster.deserted_at
            return deserted_at is not None and now - deserted_at >= self.config.exit_grace_seconds
        if not self.roster.connected():
            # Before the first rank nobody is connected either, but ranks are on their way and must be told to stop.
            return self.roster.num_joined > 0 or self.state is State.FAILED
        waits_for_checkpoint = self.state is State.FINISHED and self.checkpoints.receiving
        overdue = self._ended_at is not None and now - self._ended_at >= self.config.exit_grace_seconds
        return overdue and not waits_for_checkpoint

    def _leave(self) -> list[e.Instruction]:
        if last_try := self.durability.last_try():
            self._num_disk_jobs += len(last_try)
            return [*last_try]
        self._exited = True
        members = [member for _, member in self.roster if member.has_joined]
        missing = [rank for rank, member in self.roster if not member.left]
        logs: list[e.Instruction] = []
        if self.state in (State.WAITING, State.TRAINING) and missing and self.roster.deserted_at is not None:
            text = f"rank {', '.join(map(str, missing))} is gone without a word, and the others have said goodbye"
            logs = [e.Log("error", text)]
        # Who hands in a summary has saved a checkpoint, and may be killed before it has said goodbye.
        is_summed_up = self.durability.summary is not None
        all_left = bool(members) and all(member.left for member in members)
        stopped = self.state is State.STOPPING and (is_summed_up or all_left)
        code = 0 if not self.durability.lost and (self.state is State.FINISHED or stopped) else 1
        return [*logs, *self.checkpoints.abandon("the coordinator ends"), e.Exit(code)]

    # ---- time and disk

    def _tick(self, now: float) -> list[e.Instruction]:
        self.lookout.tick(now)
        instructions = self.checkpoints.tick(now, training=self.state is State.TRAINING)
        if now - self._heartbeat_at >= HEARTBEAT_SECONDS:
            self._heartbeat_at = now
            instructions += [e.Send(identity, m.Heartbeat()) for identity in self.roster.connected()]
        instructions += [*self.durability.tick(now), *self._give_stacks(now), *self._look_out(now)]
        return instructions if self._closing_at is not None else [*instructions, *self._silence(now)]

    def _silence(self, now: float) -> list[e.Instruction]:
        """Ends a job whose ranks have gone without a word, or were told to stop before they came and never did."""
        heard_at, timeout = self.roster.heard_at, self.config.worker_timeout_seconds
        if heard_at is None:
            if self._stop_asked_at is None or now - self._stop_asked_at < JOIN_SECONDS:
                return []
            self._close(now)
            return [e.Log("error", f"no rank joined within {JOIN_SECONDS:g} s of the stop")]
        if self.config.parent_fd is not None or now - heard_at < timeout:
            return []
        self._close(now)
        error = f"nothing was heard of any rank for {timeout:g} s; were they killed?"
        return [*self._fail(m.Failure(0, self.progress.step, error, ""), now), e.Log("error", error)]

    def _disk_failed(self, event: e.DiskFailed, now: float) -> list[e.Instruction]:
        logs = self.durability.failed(event, now)
        if event.job == "checkpoint":
            return self.checkpoints.failed(event.request_id or "", event.error)
        return [*(self._tell_of_summary() if event.job == "summary" else []), *logs]

    def _tell_of_ledger(self, identities: Sequence[bytes]) -> list[e.Instruction]:
        acknowledged = self.durability.ledger
        return [] if acknowledged is None else [e.Send(identity, acknowledged) for identity in identities]

    def _tell_of_summary(self) -> list[e.Instruction]:
        rank_0, acknowledged = self.roster.current(0), self.durability.summary
        if acknowledged is None or rank_0 is None or not rank_0.connected:
            return []
        return [e.Send(rank_0.identity, acknowledged)]
