"""What is asked of one job, and what was seen of it: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddp_bp.chaos.points import Round
from ddp_bp.chaos.schedule import Disturbance
from ddp_bp.chaos.usage import Growth, RankUsage


@dataclass(frozen=True)
class JobOrder:
    """One job. `command`: of `ddp-bp train`. `mark`: a word that no other job has. `patience_seconds`: after how long
    without any progress it is taken to hang. `seed`: of the first of its rounds, or of its schedule. `rounds`: in which
    ranks kill themselves."""

    name: str
    command: list[str]
    run_dir: Path
    mark: str
    patience_seconds: float
    seed: int = 0
    schedule: Sequence[Disturbance] = ()
    rounds: Sequence[Round] = ()


@dataclass(frozen=True)
class Done:
    """A disturbance that took place. `seconds`: since the job was first seen training, if it is known; `what`: to whom,
    in words."""

    seconds: float | None
    kind: str
    what: str
    ranks: list[int]
    step: int | None
    doing: list[str]


@dataclass
class JobRecord:
    """What was seen of a job. `seconds`: from the first sign of training to the last; `num_starts`: of `ddp-bp train`;
    `num_restarts`: of all ranks by it."""

    exit_code: int | None = None
    seconds: float = 0.0
    num_starts: int = 0
    num_in_place: int = 0
    num_restarts: int = 0
    done: list[Done] = field(default_factory=list)
    usage: list[RankUsage] = field(default_factory=list)
    growth: Growth | None = None
    problems: list[str] = field(default_factory=list)
