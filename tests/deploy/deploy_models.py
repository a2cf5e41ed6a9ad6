"""Models that are slow on one rank, that wait for as long as a file is there, or that tell where they are."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ddp_bp import nn


class Straggling(nn.Module):
    def __init__(self, width: int, num_outputs: int, slow_rank: int, hang: str, pause_seconds: float) -> None:
        super().__init__()
        self.layer = nn.Linear(width, num_outputs)
        self.is_slow = os.environ.get("OMPI_COMM_WORLD_RANK") == str(slow_rank)
        self.hang = Path(hang)
        self.pause_seconds = 5 * pause_seconds if self.is_slow else pause_seconds

    def forward(self, x):
        if self.training:
            time.sleep(self.pause_seconds)
            while self.is_slow and self.hang.exists():
                time.sleep(0.05)
        return self.layer(x)


class Waiting(nn.Module):
    def __init__(self, width: int, num_outputs: int, after: int, wait: str) -> None:
        super().__init__()
        self.layer = nn.Linear(width, num_outputs)
        self.after, self.wait, self.num_calls = after, Path(wait), 0

    def forward(self, x):
        if self.training:
            self.num_calls += 1
            while self.num_calls > self.after and self.wait.exists():
                time.sleep(0.01)
        return self.layer(x)


def straggling(input_shape, num_outputs, slow_rank: int = 1, hang: str = "/nonexistent", pause_seconds: float = 0.01):
    """On the slow rank a step takes five pauses, and on others one."""
    return Straggling(input_shape[0], num_outputs, slow_rank, hang, pause_seconds)


def waiting(input_shape, num_outputs, after: int, wait: str):
    """A model that, after so many training passes in its process, waits for as long as a file is there."""
    return Waiting(input_shape[0], num_outputs, after, wait)


def signing(input_shape, num_outputs, folder: str):
    """A model that leaves the name of each host that it is built on in a folder."""
    Path(folder, os.uname().nodename).touch()
    return nn.Linear(input_shape[0], num_outputs)
