"""Everybody in a job: the team of ranks that train, and the spares, which wait to take the place of one that dies.

A rank is known by its identity, its number at the start. All that live know the same, since all of them take part in
each recovery. Knows neither what a team does nor how it recovers.

The communicators of all teams that there may be are made at the start, so that of a later one only the dead must be
left out: to make a communicator while ranks die is more than an MPI may stand (Open MPI 5 ends with a signal where it
hears of a death in the middle of MPI_Comm_split).
"""

from __future__ import annotations

from ddp_bp.errors import PeerLostError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import Nodes


class Crew:
    """The ranks that live."""

    def __init__(self, communicator: Communicator, nodes: Nodes, num_spares: int = 0) -> None:
        """Collective. The last `num_spares` ranks of `communicator` wait. `nodes`: of all of them."""
        self.communicator, self.nodes = communicator, nodes
        self.identities = tuple(range(communicator.size))
        """Of all that live, in order."""
        self._num_wanted = communicator.size - num_spares
        self.working = self.identities[: self._num_wanted]
        """Of these, those in the team."""
        # What a team holds lies in the memory of its nodes, so that only who is on one of these can join it.
        on_nodes = {nodes.node_of_rank[rank] for rank in self.working}
        self._order = [rank for rank in self.identities[self._num_wanted :] if nodes.node_of_rank[rank] in on_nodes]
        self._num_called = 0
        # The first team, the same with one spare, and so on; the last one may be everybody.
        counts = range(len(self._order) + 1) if num_spares else ()
        self._groups = [communicator.part(self._may_be_in(count)) for count in counts]

    @property
    def identity(self) -> int:
        """This rank's own."""
        return self.identities[self.communicator.rank]

    @property
    def works(self) -> bool:
        """Whether this rank is in the team."""
        return self.identity in self.working

    @property
    def team_communicator(self) -> Communicator | None:
        """Of the first team; None on a spare."""
        return self._groups[0] if self._groups else self.communicator

    @property
    def waiting(self) -> tuple[int, ...]:
        """The spares that live and have not been called."""
        return tuple(identity for identity in self.identities if identity not in self.working)

    def drop_dead(self) -> None:
        """Find out who lives. Collective, as `Communicator.survivors` is."""
        # The communicator before stays with MPI: Open MPI 5 frees few of which a rank has died (4 of 10).
        # Each takes 9 KB; with those of the team, and what MPI keeps besides, that is 35 KB a death (see `set_aside`).
        # MPI has numbers for 6,000 of them and more.
        self.communicator, numbers = self.communicator.survivors()
        self.identities = tuple(self.identities[number] for number in numbers)
        self.working = tuple(identity for identity in self.working if identity in self.identities)

    def gather_team(self) -> Communicator | None:
        """A communicator of those in the team that live; None on others. Collective after `drop_dead`."""
        return self._gather(self._num_called, self.working)

    def called(self) -> tuple[int, ...]:
        """The spares that are to join the team, so that it is as large as it should be, or as it can be."""
        return self._call()[1]

    def gather_next_team(self) -> Communicator | None:
        """A communicator of the team and of those called; None on others. Collective after `drop_dead`."""
        count, called = self._call()
        return self._gather(count, (*self.working, *called))

    def take_in(self, called: tuple[int, ...]) -> None:
        """From now on those called are in the team. To be called on all that live."""
        if called:
            self._num_called = 1 + self._order.index(called[-1])
            self.working = (*self.working, *called)

    def nodes_of(self, team: tuple[int, ...]) -> Nodes:
        """The nodes of these, numbered in the order of their lowest rank."""
        return self.nodes.of_ranks(team)

    def needs_spares(self) -> bool:
        """Whether a recovery has begun that all spares must take part in. Not collective.

        The death of a rank alone does not say so: the others may have come to their end.
        """
        if self.communicator.is_revoked():
            return True
        dead = {self.identities[number] for number in self.communicator.dead()}
        return dead.issuperset(self.working)

    def _may_be_in(self, count: int) -> bool:
        return self.identity < self._num_wanted or self.identity in self._order[:count]

    def _call(self) -> tuple[int, tuple[int, ...]]:
        """How many spares have been called then, dead ones among them, and who is called now."""
        called: list[int] = []
        count = self._num_called
        for place, identity in enumerate(self._order[count:], start=count):
            if len(self.working) + len(called) == self._num_wanted:
                break
            if identity in self.identities:
                called.append(identity)
                count = place + 1
        return count, tuple(called)

    def _gather(self, count: int, team: tuple[int, ...]) -> Communicator | None:
        if len(team) == len(self.identities):
            return self.communicator
        group = self._groups[count]
        if group is None or self.identity not in team:
            return None
        living, _ = group.survivors()
        self._groups[count] = living
        if living.size != len(team):
            raise PeerLostError(f"rank {self.identity}: another rank has died just now")
        return living
