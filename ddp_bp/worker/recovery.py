"""What the ranks that are left do when one has died: finish the step that was under way, to the bit.

Every rank notes in its node's memory how far it is (`parallel.journal`), and partials, parameters and optimizer state
lie there as well. So those that are left can tell, the same on each of them, what is missing:

* shards that a dead rank had not finished are computed by the others, and only these;
* if the ranks had agreed on the step, it is taken, whoever knew of that: what a dead rank had left of its slice is
  updated by the others of its node, the piece that it was in the middle of from the write that was under way (`redo`),
  or, where there is one, from a copy of what it was;
* a rank that does not know yet that a step was complete is told.

Then spares join the team where there are some (`crew`). A node of which nobody is left takes its part of the
optimizer's state with it: NodeLostError, and the job goes on from a checkpoint. Another death meanwhile makes those
that are left begin anew with what there is then. Knows nothing of the coordinator, and not how a communicator finds out
who lives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from ddp_bp.errors import DdpError, NodeLostError, PeerLostError, RemoteError
from ddp_bp.parallel.agreement import Account, Status, account_of, verdict_of
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.communicator import Array, Bounds, Communicator
from ddp_bp.parallel.holdings import Holdings
from ddp_bp.parallel.journal import Begun, Stage
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.nodes import Nodes, nodes_of_survivors
from ddp_bp.worker.crew import Crew
from ddp_bp.worker.failures import RankFailure, print_failure, raise_together
from ddp_bp.worker.step import StepResult, result_of, take
from ddp_bp.worker.team import Team, Trained, build_finishing_team, build_team
from ddp_bp.worker.update import copied_vectors, restores_slices

Position = tuple[int, int]

# What ranks say to each other after a phase of a recovery: that no death has kept them from it, and no error, or none
# that would come again after a restart.
_CAME_THROUGH, _WELL, _RESTART_HELPS = 1, 2, 4
Message = TypeVar("Message")


class _Told(msgspec.Struct, array_like=True):
    """What a rank that is left says of itself and of the dead of its node: by rank, step and stage, and the row."""

    positions: dict[int, Position]
    rows: dict[int, bytes]


class _Computed(msgspec.Struct, array_like=True):
    """What a rank has computed in place of dead ones: (shard, entry of a row) each, or that it has failed."""

    entries: list[tuple[int, tuple[float, float, float, int, int, int]]]
    failed: bool


class Recovery:
    """Settles the step of a team some of whose ranks have died. Used by every rank that is left, spares included.

    In between those that are left find out together whether all have come through; where another rank has died, all
    begin anew with what there is then.
    """

    def __init__(
        self, crew: Crew, trained: Trained, team: Team | None, equip: Callable[[Team], None] | None = None
    ) -> None:
        """`crew` is told who lives and who works then. `team`: None on a spare. `equip`: makes what this rank needs
        besides to go on in a team, and exchanges nothing."""
        self._trained = trained
        self._base, self._base_identities = team, crew.working
        self._communicator: Communicator | None = None if team is None else team.communicator
        self._finishing: Team | None = None
        self._team: Team | None = None
        self._num_steps = 0
        self._crew, self._equip = crew, equip
        self._cannot: NodeLostError | None = None
        self.called: tuple[int, ...] = ()
        """The spares that have joined the team."""
        self.result: StepResult | None = None
        """Of the step that was finished; None where this rank had committed it, or nobody could have."""
        self.num_recomputed_shards = 0
        """How many shards were computed in place of dead ranks, on all ranks together."""

    def run(self) -> Team | None:
        """Finish what was begun; the team that goes on, or None on a rank that is none of it. After PeerLostError.

        Raises:
            NodeLostError: on all ranks that are left, if of some node none is, or if gradients are compressed.
            RankFailure: on a rank whose computation raised; RemoteError on the others.
        """
        if self._base is not None:
            # What this rank still exchanges in the background ends, and with it what others wait for there.
            self._base.exchange.close()
        while True:
            self._revoke()
            self._crew.drop_dead()
            if not self._crew.working:
                raise NodeLostError("all ranks that trained have died; the job must go on from a checkpoint")
            if all(self._all_come_through(phase) for phase in self._phases()):
                self._crew.take_in(self.called)
                return self._team

    def _all_come_through(self, phase: Callable[[], None]) -> bool:
        """Do this rank's part of a phase; whether all have done theirs, the same on all.

        Raises what the ranks of the team raised; on a spare RemoteError, or NodeLostError if a restart helps.
        """
        flags, error = _CAME_THROUGH | _WELL | _RESTART_HELPS, None
        try:
            phase()
        except PeerLostError:
            flags = _WELL | _RESTART_HELPS
            # Others may be waiting for this rank.
            self._revoke()
        except DdpError as raised:
            flags, error = _CAME_THROUGH | (_RESTART_HELPS if raised.restart_helps else 0), raised
        except Exception as raised:  # such as too little memory; the others may be anywhere, and hear of it next time
            flags = _WELL | _RESTART_HELPS
            print_failure(raised, self._crew.identity, self._num_steps)
            self._cannot = NodeLostError(
                f"rank {self._crew.identity} cannot go on without the dead: {type(raised).__name__}: {raised}"
            )
            self._revoke()
        flags = self._crew.communicator.agree(flags)
        if flags & _CAME_THROUGH and not flags & _WELL:
            # Whoever says that a restart would not help keeps the job from being started again.
            kind = NodeLostError if flags & _RESTART_HELPS else RemoteError
            raise error or kind("stopped, because the ranks that trained cannot go on")
        return bool(flags & _CAME_THROUGH and flags & _WELL)

    def _revoke(self) -> None:
        """Have every wait of others for this rank end, wherever they are in the recovery."""
        for communicator in (self._communicator, self._team.communicator if self._team else None):
            if communicator is not None:
                communicator.revoke()
        self._crew.communicator.revoke()

    # ---- the phases

    def _phases(self) -> tuple[Callable[[], None], ...]:
        """In those that make a communicator nothing else is done: who waits there for others cannot be told that they
        have met an error before."""
        return self._see_if_all_can, self._find_each_other, self._prepare, self._take, self._find_next_team, self._build

    def _see_if_all_can(self) -> None:
        if self._cannot is not None:
            raise self._cannot

    def _find_each_other(self) -> None:
        """A communicator of those that are left of the team."""
        self._team = None
        self._communicator = self._crew.gather_team()

    def _prepare(self) -> None:
        """Find out how far the base team's step is, and get ready to finish it if it can be finished."""
        base, communicator = self._base, self._communicator
        self._finishing = None
        if base is None or communicator is None:
            return
        nodes, ranges = self._nodes_left(base)
        left = self._left()
        positions, rows = self._ask(base, communicator)
        step, stage = max(positions.values())
        own_step, own_stage = positions[base.communicator.rank]
        self._num_steps = step
        if own_step < step or stage is Stage.COMMITTED:
            # Others have seen that all slices are updated, or all have the verdict to skip.
            if own_stage is not Stage.COMMITTED:
                self._commit(base, own_step)
            self._num_steps += stage is Stage.COMMITTED
            return
        if any(positions[rank][0] < step or positions[rank][1] is Stage.COMPUTING for rank in left):
            # Some do not even have partials of their own: the step is taken from its beginning.
            return
        unfinished = [rank for rank in positions if positions[rank] < (step, Stage.READY)]
        if unfinished and base.shards.needs_all_shards:
            return
        holdings, accounts = self._complete(base, communicator, step, unfinished, nodes)
        runs = [shard_run(base.trained.plan.num_shards, base.communicator.size, rank) for rank in positions]
        verdict = base.verdict
        if verdict is None:
            ready = set(positions) - set(unfinished)
            verdict = verdict_of([*(account_of(rows[rank], rank, runs[rank]) for rank in sorted(ready)), *accounts])
        raise_together(verdict, None, f"at step {step}")
        pending, begun = self._pending(base, step, positions)
        self._finishing = build_finishing_team(
            base, communicator, nodes, ranges, holdings, pending, begun, verdict, step
        )

    def _take(self) -> None:
        """Take the step if all are ready for that."""
        if self._finishing is not None:
            # From now on it is this team's journal that says how far everybody is.
            self._base, self._base_identities = self._finishing, self._crew.working
            verdict, step = self._finishing.verdict, self._num_steps
            assert verdict is not None
            take(self._finishing.update, self._trained.plan, step, verdict)
            self.result, self._num_steps = result_of(verdict), step + 1

    def _find_next_team(self) -> None:
        """A communicator of the team that goes on, with spares if it lacks ranks."""
        self.called = self._crew.called()
        if self.called:
            self._communicator = self._crew.gather_next_team()

    def _build(self) -> None:
        """The team that goes on."""
        communicator, base = self._communicator, self._base
        if communicator is None:
            return
        step, ranges = self._num_steps, [] if base is None else self._nodes_left(base)[1]
        if self.called:
            # Rank 0 was in the team before.
            told = communicator.allgather_bytes(msgspec.msgpack.encode((step, ranges)))[0]
            step, ranges = msgspec.msgpack.decode(told, type=tuple[int, list[Bounds]])
        nodes = self._crew.nodes_of((*self._crew.working, *self.called))
        self._team = build_team(self._trained, communicator, nodes, num_steps=step, ranges=ranges)
        if self._equip is not None:
            self._equip(self._team)

    # ---- who is left

    def _nodes_left(self, base: Team) -> tuple[Nodes, list[Bounds]]:
        """The nodes of the ranks that are left, and what each updates."""
        if base.trained.compression is not None:
            raise NodeLostError(
                "a rank has died, and with it what rounding has left of its shards' gradients; with "
                "exchange.compression the job must go on from a checkpoint"
            )
        nodes, kept = nodes_of_survivors(base.nodes, self._left())
        if lost := sorted(set(range(len(base.nodes.ranks))) - set(kept)):
            ranks = [list(base.nodes.ranks[number]) for number in lost]
            raise NodeLostError(
                f"all ranks of a node have died (ranks {ranks}), and with them the optimizer's state of their part of "
                "the parameters; the job must go on from a checkpoint"
            )
        return nodes, [base.exchange.ranges[number] for number in kept]

    def _left(self) -> list[int]:
        """The numbers in the base team of the ranks that are left."""
        return [self._base_identities.index(identity) for identity in self._crew.working]

    # ---- how far it is

    def _ask(self, base: Team, communicator: Communicator) -> tuple[dict[int, Position], dict[int, bytes]]:
        """The positions and rows of all ranks of the base team. Collective."""
        left = self._left()
        own = base.communicator.rank
        of_node = base.nodes.ranks[base.nodes.node_of_rank[own]]
        speaks = [own]
        if own == next(rank for rank in of_node if rank in left):
            speaks += [rank for rank in of_node if rank not in left]
        told = _Told(
            {rank: base.journal.position(rank) for rank in speaks}, {rank: base.journal.row_of(rank) for rank in speaks}
        )
        everyone = _gather(communicator, told, _Told)
        positions = {rank: position for said in everyone for rank, position in said.positions.items()}
        rows = {rank: row for said in everyone for rank, row in said.rows.items()}
        return {rank: (step, Stage(stage)) for rank, (step, stage) in sorted(positions.items())}, rows

    def _commit(self, base: Team, step: int) -> None:
        """Take note of what others know: that all have finished that step."""
        verdict = base.verdict or base.step.verdict
        assert verdict is not None
        if verdict.nonfinite_shards:
            base.update.commit_skip(step)
        else:
            base.update.commit(step)
        self.result = result_of(verdict)

    # ---- what is missing

    def _complete(
        self, base: Team, communicator: Communicator, step: int, unfinished: Sequence[int], nodes: Nodes
    ) -> tuple[Holdings, list[Account]]:
        """Compute the shards of the ranks that had not finished; who holds what then. Collective.

        Raises:
            RankFailure: on a rank whose computation raised; RemoteError on the others.
        """
        holdings, size = base.holdings, base.communicator.size
        num_shards = base.trained.plan.num_shards
        shards = [shard for rank in unfinished for shard in shard_run(num_shards, size, rank)]
        parts = [shard_run(len(shards), communicator.size, rank) for rank in range(communicator.size)]
        mine = nodes.ranks[nodes.node_of_rank[communicator.rank]]
        vectors = Arena(communicator, nodes).allocate(
            "recomputed", (sum(len(parts[rank]) for rank in mine), base.trained.vector_size), holdings.dtype
        )
        first = sum(len(parts[rank]) for rank in mine[: mine.index(communicator.rank)])
        own = [shards[place] for place in parts[communicator.rank]]
        failure: BaseException | None = None
        computed = _Computed([], failed=False)
        try:
            for place, shard in enumerate(own, start=first):
                computed.entries.append((shard, base.shards.compute_into(step, shard, vectors[place])))
        except BaseException as error:  # all are to hear of it
            base.trained.on_failure(error, step)
            failure, computed.failed = error, True
        everyone = _gather(communicator, computed, _Computed)
        if failure is not None:
            raise RankFailure(failure, shown=True) from failure
        for rank, said in enumerate(everyone):
            if said.failed:
                raise RemoteError(f"stopped at step {step}, because rank {rank} failed")
        self.num_recomputed_shards += len(shards)
        left = self._left()
        layout = base.trained.layout
        accounts = [
            Account(left[rank], (step, layout, Status.READY, 0, 0.0), dict(said.entries))
            for rank, said in enumerate(everyone)
            if said.entries
        ]
        return _joined(base, holdings, set(unfinished), nodes, left, everyone, vectors), accounts

    def _pending(self, base: Team, step: int, positions: dict[int, Position]) -> tuple[list[Bounds], list[Begun]]:
        """What of this node's elements has not been updated, and which entries of that were being written.

        Where pieces were copied before they were changed, they get back what they were.
        """
        own = base.communicator.rank
        number = base.nodes.node_of_rank[own]
        of_node = base.nodes.ranks[number]
        copied = copied_vectors(base.trained.parameters, base.trained.optimizer, base.trained.average)
        if own == next(rank for rank in of_node if rank in self._left()):
            for rank in of_node:
                if positions[rank] in ((step, Stage.UPDATING), (step, Stage.UPDATED)):
                    base.journal.undo_piece(rank, copied)
        if restores_slices(base.trained.optimizer):
            return [base.exchange.ranges[number]], []
        pending: list[Bounds] = []
        begun: list[Begun] = []
        for rank in of_node:
            order = base.update.order_of(rank)
            if positions[rank] == (step, Stage.UPDATING):
                pending += base.journal.left_over(rank, order)
                if (piece := base.journal.begun(rank)) is not None:
                    begun.append(piece)
            elif positions[rank] < (step, Stage.UPDATING):
                pending += order
        # What was to be gone on with then and has no mark of the base team's is still as it was found.
        begun += base.update.begun
        return sorted(pending), begun


def _gather(communicator: Communicator, own: Any, kind: type[Message]) -> list[Message]:
    return [
        msgspec.msgpack.decode(said, type=kind) for said in communicator.allgather_bytes(msgspec.msgpack.encode(own))
    ]


def _joined(
    base: Team,
    holdings: Holdings,
    dropped: set[int],
    nodes: Nodes,
    left: Sequence[int],
    computed: Sequence[_Computed],
    vectors: Array,
) -> Holdings:
    """What the base team holds but for `dropped` ranks, and what has been computed in their place into `vectors`."""
    _, kept = nodes_of_survivors(base.nodes, left)
    own_number = base.nodes.node_of_rank[base.communicator.rank]
    tree_nodes, owners, own_vectors = [], [], []
    for number, ranks in zip(kept, nodes.ranks, strict=True):
        is_own = number == own_number
        there = holdings.vectors if is_own else [None] * len(holdings.owners[number])
        held = [
            (node, owner, vector)
            for node, owner, vector in zip(holdings.tree_nodes[number], holdings.owners[number], there, strict=True)
            if owner not in dropped
        ]
        shards = [(shard, left[rank]) for rank in ranks for shard, _ in computed[rank].entries]
        held += [
            ((shard, shard + 1), owner, vectors[place] if is_own else None)
            for place, (shard, owner) in enumerate(shards)
        ]
        held.sort(key=lambda entry: entry[0])
        tree_nodes.append(tuple(node for node, _, _ in held))
        owners.append(tuple(owner for _, owner, _ in held))
        own_vectors += [vector for _, _, vector in held if vector is not None]
    return Holdings(tuple(tree_nodes), tuple(owners), tuple(own_vectors), holdings.dtype)
