"""With how many ranks somebody wants the job to go on: checked, and kept for the launcher to see, which starts them."""

from __future__ import annotations

from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.coordinator.roster import Roster


class ScaleDesk:
    """`wanted`: another number of ranks than the job is to have, or as few as are left; None: nobody wants one."""

    def __init__(self, config: CoordinatorConfig, roster: Roster) -> None:
        self._config, self._roster = config, roster
        self.wanted: int | None = None

    def ask(self, world_size: int, state: State) -> str | None:
        """Note that somebody wants so many ranks. What is against it, if anything."""
        problem = self._problem(world_size, state)
        if problem is None:
            is_as_ever = world_size == self._roster.world_size == self._config.world_size
            self.wanted = None if is_as_ever else world_size
        return problem

    def _problem(self, world_size: int, state: State) -> str | None:
        most, least, shards = self._config.most_workers, self._config.min_workers, self._roster.shards
        if most is None:
            return (
                "`ddp-bp train` has not started this job, so that nobody would start ranks anew; stop it, and start it "
                "with another number of them and the same run directory"
            )
        if state is not State.TRAINING:
            return f"the job is {state.value}; another number of ranks can be asked for only while it is training"
        if shards is not None and world_size > shards:
            return (
                f"{world_size} ranks: expected at most {shards}, the number of shards, which the first start has fixed "
                "(train.shards); one more would have nothing to compute"
            )
        if world_size > most:
            return f"{world_size} ranks: expected at most {most}, the slots of the hosts that `ddp-bp train` was given"
        if world_size < least:
            return f"{world_size} ranks: expected at least fault.min_workers = {least}"
        return None
