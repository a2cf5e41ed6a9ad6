"""The jobs of `ddp-bp chaos`: what is to happen in each of them, and the command line that starts it."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ddp_bp.chaos.joins import spares_for
from ddp_bp.chaos.points import Round, draw_rounds, most_rounds, steps_between_checkpoints
from ddp_bp.chaos.record import JobOrder
from ddp_bp.chaos.schedule import Disturbance, Kind, draw_schedule
from ddp_bp.worker.death import Point


@dataclass(frozen=True)
class Orders:
    """Writes the orders of all jobs, which train the same; see the options of `ddp-bp chaos`. `num_spares`: that the
    recipe keeps."""

    recipe: str
    num_workers: int
    overrides: tuple[str, ...]
    binds: bool
    folder: Path
    patience_seconds: float
    num_spares: int = 0

    def undisturbed(self) -> JobOrder:
        """The one that all others are compared with."""
        return self._order("undisturbed", 0)

    def disturbed(
        self, seed: int, times: int, kinds: Sequence[Kind], mean_seconds: float, most_disturbances: int
    ) -> Iterator[JobOrder]:
        """One job for each of `times` seeds, disturbed from outside, which starts again as often as it must."""
        # Those that have taken the place of others can be disturbed as well.
        num_ranks = self.num_workers + self.num_spares
        for number in range(seed, seed + times):
            schedule = draw_schedule(number, kinds, mean_seconds, num_ranks, most_disturbances)
            settings = {"fault.max_restarts": str(most_disturbances)}
            yield self._order(f"seed-{number}", number, settings, schedule=schedule)

    def dying(self, seed: int, times: int, points: Sequence[Point], num_steps: int) -> Iterator[JobOrder]:
        """So many jobs that ranks die `times` times at each point. Nobody takes the place of the dead, of whom there
        are more to come, but spares, where they are to die while they do so."""
        for point in points:
            at_once = most_rounds(point, self.num_workers, num_steps)
            for first in range(seed, seed + times, at_once):
                num_rounds = min(at_once, seed + times - first)
                rounds = draw_rounds(first, point, num_rounds, self.num_workers, num_steps)
                settings, num_workers = {"fault.respawn": "false"}, self.num_workers
                if point == "checkpoint":
                    settings["checkpoint.every_steps"] = str(steps_between_checkpoints(num_rounds, num_steps))
                if point == "join":
                    num_workers -= spares_for(num_rounds)
                    settings["fault.spares"] = str(spares_for(num_rounds))
                yield self._order(f"{point}-{first}", first, settings, rounds=rounds, num_workers=num_workers)

    def _order(
        self,
        name: str,
        seed: int,
        settings: Mapping[str, str] = MappingProxyType({}),
        *,
        schedule: Sequence[Disturbance] = (),
        rounds: Sequence[Round] = (),
        num_workers: int | None = None,
    ) -> JobOrder:
        run_dir, mark = self.folder / name, secrets.token_hex(8)
        command = self._command(run_dir, settings, num_workers or self.num_workers)
        return JobOrder(name, command, run_dir, mark, self.patience_seconds, seed, schedule, rounds)

    def _command(self, run_dir: Path, settings: Mapping[str, str], num_workers: int) -> list[str]:
        """The command line of `ddp-bp train`, which goes on with what is in `run_dir`.

        `settings`: of the recipe, unless the user sets them.
        """
        keys = {override.partition("=")[0].strip() for override in self.overrides}
        overrides = [*(f"{key}={value}" for key, value in settings.items() if key not in keys), *self.overrides]
        command = [sys.executable, "-m", "ddp_bp", "train", self.recipe, "-n", str(num_workers)]
        command += ["--run-dir", str(run_dir)]
        command += [argument for override in overrides for argument in ("--set", override)]
        return [*command, *([] if self.binds else ["--no-bind"])]
