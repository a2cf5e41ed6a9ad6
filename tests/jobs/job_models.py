"""Models that recipes of the job tests name: slow ones, so that there is time to disturb them, and broken ones."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from pathlib import Path
from typing import ClassVar

import numpy as np

from ddp_bp import nn
from ddp_bp.cli.environment import launched_ranks
from ddp_bp.errors import DistributedError
from ddp_bp.worker import run
from ddp_bp.worker.checkpointing import Checkpointing
from ddp_bp.worker.comparison import Comparison
from ddp_bp.worker.link import CoordinatorLink


def launched_rank() -> int | None:
    """This process's rank, as its launcher says."""
    ranks = launched_ranks()
    return None if ranks is None else ranks[1]


class Slow(nn.Module):
    """A small network that sleeps in every forward pass of training, but not where it is only tried before the job."""

    def __init__(self, width: int, num_outputs: int, sleep_seconds: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, num_outputs))
        self.sleep_seconds = sleep_seconds

    def forward(self, x):
        if self.training and launched_rank() is not None:
            time.sleep(self.sleep_seconds)
        return self.layers(x)


class Raising(Slow):
    """Raises in the training step after `num_calls` calls, on one rank only."""

    def __init__(self, width: int, num_outputs: int, rank: int, num_calls: int) -> None:
        super().__init__(width, num_outputs, 0.0)
        self.rank, self.num_calls = rank, num_calls

    def forward(self, x):
        if self.training and launched_rank() == self.rank:
            self.num_calls -= 1
            if self.num_calls < 0:
                raise ArithmeticError("the model of this rank is broken")
        return super().forward(x)


class NotANumberInEvaluation(Slow):
    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else float("nan"))


def not_a_number_in_evaluation(input_shape, num_outputs):
    return NotANumberInEvaluation(input_shape[0], num_outputs, 0.0)


def slow(input_shape, num_outputs, sleep_seconds: float = 0.02):
    return Slow(input_shape[0], num_outputs, sleep_seconds)


class Hungry(Slow):
    """Needs arrays of 24 MB and 72 MB in every forward pass, and frees them again."""

    def forward(self, x):
        for size in (3_000_000, 9_000_000):
            np.ones(size)
        return super().forward(x)


def hungry(input_shape, num_outputs):
    return Hungry(input_shape[0], num_outputs, 0.0)


def for_few_ranks(input_shape, num_outputs):
    """The slow model, of which three ranks find no room."""
    ranks = launched_ranks()
    if ranks is not None and ranks[0] > 2:
        raise MemoryError("3 ranks are too many here")
    return slow(input_shape, num_outputs)


def raising(input_shape, num_outputs, rank: int = 1, num_calls: int = 10):
    return Raising(input_shape[0], num_outputs, rank, num_calls)


class Dying(Slow):
    """Kills its process in every training step from `num_calls` calls on, on rank 1."""

    def __init__(self, width: int, num_outputs: int, num_calls: int) -> None:
        super().__init__(width, num_outputs, 0.0)
        self.num_calls = num_calls

    def forward(self, x):
        if self.training and launched_rank() == 1:
            self.num_calls -= 1
            if self.num_calls < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def dying_early(input_shape, num_outputs, is_prepared: bool):
    """Once, the process of rank 1 kills itself after it has joined, before it trains: before or after what is trained
    has come to its place. The next start finds a file beside this one."""
    prepare = run.prepare_training

    def prepare_and_die(*arguments):
        mark = Path(__file__).with_name("died early")
        trained = prepare(*arguments) if is_prepared or mark.exists() else None
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return trained

    if launched_rank() == 1:
        run.prepare_training = prepare_and_die
    return slow(input_shape, num_outputs)


class KeepingNoCheckpoint(Slow):
    """Raises in training as long as something keeps the checkpoint that it goes on from."""

    restored: ClassVar[list[weakref.ref]] = []

    def forward(self, x):
        if self.training and any(checkpoint() is not None for checkpoint in self.restored):
            raise ArithmeticError("the checkpoint is still there")
        return super().forward(x)


def keeping_no_checkpoint(input_shape, num_outputs):
    restore = run.restore

    def restore_and_note(communicator, job, snapshot, checkpoint):
        if checkpoint is not None:
            KeepingNoCheckpoint.restored.append(weakref.ref(checkpoint))
        return restore(communicator, job, snapshot, checkpoint)

    run.restore = restore_and_note
    return KeepingNoCheckpoint(input_shape[0], num_outputs, 0.0)


def dying(input_shape, num_outputs, num_calls: int = 10):
    return Dying(input_shape[0], num_outputs, num_calls)


class Exiting(Slow):
    """Calls `sys.exit` in its first training step on rank 1, as a script might."""

    def forward(self, x):
        if self.training and launched_rank() == 1:
            sys.exit(3)
        return super().forward(x)


class Marked(Slow):
    """Gives no numbers for a batch with a sample that is marked by 999 in its first column."""

    def forward(self, x):
        is_marked = self.training and bool((x.numpy()[:, 0] == 999).any())
        return super().forward(x) * (float("nan") if is_marked else 1.0)


def marked(input_shape, num_outputs):
    return Marked(input_shape[0], num_outputs, 0.0)


class Meddling(Slow):
    """Changes a parameter in every forward pass of training on rank 1, where the others do not see it."""

    def forward(self, x):
        if self.training and launched_rank() == 1:
            next(self.parameters())._array[0] += 0.125
        return super().forward(x)


def meddling(input_shape, num_outputs):
    return Meddling(input_shape[0], num_outputs, 0.0)


class Hanging(Slow):
    """Hangs in the training step after 40 calls, on rank 1 and once: the next start finds a file beside this one."""

    num_calls = 40

    def forward(self, x):
        if self.training and launched_rank() == 1:
            self.num_calls -= 1
            mark = Path(__file__).with_name("hung")
            if self.num_calls < 0 and not mark.exists():
                mark.touch()
                time.sleep(3600)
        return super().forward(x)


def hanging(input_shape, num_outputs):
    return Hanging(input_shape[0], num_outputs, 0.02)


class Wrong(Slow):
    """Computes a little wrongly on rank 1, as a faulty processor might."""

    def forward(self, x):
        is_faulty = self.training and launched_rank() == 1
        return super().forward(x) * (1.0 + 2.0**-20 if is_faulty else 1.0)


def wrong(input_shape, num_outputs):
    return Wrong(input_shape[0], num_outputs, 0.0)


def text(input_shape, num_outputs):
    """Of each character on its own, with dropout."""
    return nn.Sequential(nn.Embedding(num_outputs, 16), nn.Dropout(0.1), nn.Linear(16, num_outputs))


def exiting(input_shape, num_outputs):
    return Exiting(input_shape[0], num_outputs, 0.0)


class Everything(nn.Module):
    """Dropout, batch norm of a shard and over all shards, and weights that two layers share."""

    def __init__(self, input_shape, num_outputs):
        channels = input_shape[0]
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.third.weight = self.second.weight
        self.synced = nn.SyncBatchNorm(8)
        self.dropout = nn.Dropout(0.2)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * input_shape[1] * input_shape[2] // 4, num_outputs)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = self.synced(self.third(self.second(x).relu()) + x).relu()
        return self.head(self.dropout(self.pool(x).flatten(1)))


everything = Everything


def mixed(input_shape, num_outputs):
    model = Slow(input_shape[0], num_outputs, 0.0)
    model.unused = nn.Linear(3, 3, dtype=np.float64)
    return model


def too_few_outputs(input_shape, num_outputs):
    return nn.Linear(input_shape[0], num_outputs - 1)


def no_module(input_shape, num_outputs):
    return "a string"


class DrawingFromTheSystem(Slow):
    """Adds noise that is another in each run."""

    def forward(self, x):
        noise = np.frombuffer(os.urandom(x.shape[0]), np.uint8).astype(np.float32).reshape(-1, 1) * 1e-4
        return super().forward(x) + noise


def drawing_from_the_system(input_shape, num_outputs):
    return DrawingFromTheSystem(input_shape[0], num_outputs, 0.02)


def dying_while_saving(input_shape, num_outputs):
    """The slow model; rank 1 kills itself when it is to send its part of the last checkpoint."""
    if launched_rank() == 1:
        Checkpointing.save_now = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    return slow(input_shape, num_outputs)


def dying_after_evaluation(input_shape, num_outputs):
    """The slow model; rank 1 kills itself at the end of the second epoch, between evaluation and checkpoint."""
    if launched_rank() == 1:
        compare = Comparison.run

        def compare_or_die(self, when):
            if when.endswith("step 42"):
                os.kill(os.getpid(), signal.SIGKILL)
            compare(self, when)

        Comparison.run = compare_or_die
    return slow(input_shape, num_outputs, 0.005)


def full_disk_at_the_first_end(input_shape, num_outputs):
    """The slow model; the last checkpoint of the first start cannot be written. A file beside this one says so."""
    mark, save_now = Path(__file__).with_name("was full"), Checkpointing.save_now
    if launched_rank() is not None and not mark.exists():

        def fail(self, request_id, answers="", *, is_last_try=True):
            save_now(self, request_id, answers, is_last_try=is_last_try)
            mark.touch()
            raise DistributedError("the checkpoint was not saved: no space left")

        Checkpointing.save_now = fail
    return slow(input_shape, num_outputs)


def slow_to_load(input_shape, num_outputs):
    """The slow model, for which rank 1 waits for a file beside this one, and says so with another one."""
    if launched_rank() == 1:
        Path(__file__).with_name("loading").touch()
        deadline = time.monotonic() + 60
        while not Path(__file__).with_name("loaded").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    return slow(input_shape, num_outputs)


def stopping(input_shape, num_outputs, at: str):
    """The slow model; rank 1 of the first start stops before it trains. A file beside this one says so."""
    mark = Path(__file__).with_name("stopped")

    def stop(*arguments, **named):
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)

    if launched_rank() == 1 and not mark.exists():
        match at:
            case "loading":
                stop()
            case "joining":
                CoordinatorLink.open = stop
            case "preparing":
                run.prepare_training = stop
    return slow(input_shape, num_outputs, 0.005)
