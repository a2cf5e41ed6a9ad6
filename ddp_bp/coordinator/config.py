"""What a coordinator is told when it starts.

Plain data, checked as a whole. It knows neither command lines nor recipes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ddp_bp.errors import InputError


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """Settings of one coordinator. Raises InputError, with every problem found, for values that cannot be used.

    run_dir                      folder of the run; must exist
    run_id                       what workers and tools must name to be let in
    recipe_name                  shown in the status only
    world_size                   number of ranks that train
    num_spares                   number of ranks besides, which wait to take the place of one that dies
    total_steps                  number of committed steps at which training is complete, None where not known
    host, port                   where workers and tools connect; port 0: any free one
    http_host, http_port         where metrics and status are served; http_host None: as `host`
    checkpoint_every_steps       standing order to the workers; 0: none
    checkpoint_every_seconds     a checkpoint whenever this long has passed since the last one; None: none
    keep, keep_best              retention: the last `keep` checkpoints, and the best one besides
    parent_fd                    read end of a pipe whose other end only the parent holds: at its end of file the
                                 coordinator writes what it has and exits. None: it stands alone
    worker_timeout_seconds       without a parent, it exits when nothing was heard of any rank for this long
    checkpoint_timeout_seconds   a checkpoint that receives nothing for this long is dropped
    num_restarts, num_resizes    how often all ranks have been started again after a failure, and to be another number
    min_workers, most_workers    how many ranks the job may be asked to go on with; most_workers None: it cannot be
    exit_grace_seconds           how long after the end of training it waits for ranks that do not say goodbye, and
                                 how long as a child, if others have said so early, it waits to hear of any
    suspect_seconds              after how long a rank that is silent, or that others wait for, is named
    silence_seconds, hang_seconds   after how long such a rank is evicted; 0: never
    start_seconds                how long ranks may take to come and to begin to train; 0: as long as they like
    takes_over                   it takes the place of a coordinator of the same job that was killed
    linger_seconds               how long after the end of the job it goes on answering HTTP
    """

    run_dir: Path
    run_id: str
    recipe_name: str
    world_size: int
    num_spares: int = 0
    total_steps: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    http_host: str | None = None
    http_port: int = 0
    checkpoint_every_steps: int = 0
    checkpoint_every_seconds: float | None = None
    keep: int = 3
    keep_best: bool = True
    parent_fd: int | None = None
    worker_timeout_seconds: float = 30.0
    checkpoint_timeout_seconds: float = 60.0
    exit_grace_seconds: float = 5.0
    num_restarts: int = 0
    num_resizes: int = 0
    min_workers: int = 1
    most_workers: int | None = None
    suspect_seconds: float = 1.5
    silence_seconds: float = 30.0
    hang_seconds: float = 60.0
    start_seconds: float = 600.0
    takes_over: bool = False
    linger_seconds: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not self.run_dir.is_dir():
            problems.append(f"run directory {self.run_dir}: expected an existing folder")
        if not self.run_id:
            problems.append("run id: expected a text that is not empty")
        for name, value, least in (
            ("world size", self.world_size, 1),
            ("number of spares", self.num_spares, 0),
            ("total steps", self.total_steps, 0),
            ("checkpoint every steps", self.checkpoint_every_steps, 0),
            ("number of checkpoints to keep", self.keep, 1),
            ("number of restarts", self.num_restarts, 0),
            ("number of resizes", self.num_resizes, 0),
        ):
            if value is not None and value < least:
                problems.append(f"{name}: expected at least {least}, got {value}")
        for name, port in (("port", self.port), ("HTTP port", self.http_port)):
            if not 0 <= port <= 65535:
                problems.append(f"{name}: expected 0 (any free one) to 65535, got {port}")
        for name, seconds in (
            ("checkpoint every seconds", self.checkpoint_every_seconds),
            ("worker timeout", self.worker_timeout_seconds),
            ("checkpoint timeout", self.checkpoint_timeout_seconds),
            ("exit grace", self.exit_grace_seconds),
        ):
            if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
                problems.append(f"{name}: expected a positive number of seconds, got {seconds}")
        if not (self.linger_seconds >= 0 and math.isfinite(self.linger_seconds)):
            problems.append(f"linger: expected a number of seconds of at least 0, got {self.linger_seconds}")
        if problems:
            raise InputError("the coordinator cannot start:\n  " + "\n  ".join(problems))
