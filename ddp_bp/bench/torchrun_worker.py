"""One worker of PyTorch's under `torchrun`, which `ddp-bp torchrun-worker` is.

Trains a network of `bench.models` under DistributedDataParallel without an end, notes each step in a folder, and goes
on from the checkpoint there, which rank 0 writes. It has no MPI.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddp_bp.bench.models import MODELS, made_up_samples
from ddp_bp.bench.step_notes import StepWriter
from ddp_bp.bench.torch_peer import launched_group

STEPS_FILE = "steps"
_CHECKPOINT_FILE = "checkpoint.npz"
_NUM_STEPS = "num_steps"
_DEFAULT_BUCKET_MB = 25


def train(folder: Path, name: str, every_steps: int, num_restarts: int) -> None:
    """Train the network of that name until somebody ends this process. Collective.

    `every_steps`: how often a checkpoint is written. `num_restarts`: how often all workers were started again.
    """
    model, checkpoint = MODELS[name], folder / _CHECKPOINT_FILE
    with launched_group(num_restarts) as (peer, rank):
        training = peer.ddp(model.widths, *made_up_samples(model, model.batch_per_rank), _DEFAULT_BUCKET_MB)
        step = 0
        if checkpoint.exists():
            with np.load(checkpoint) as file:
                arrays = dict(file)
            step = int(arrays.pop(_NUM_STEPS))
            training.load(arrays)
        notes = StepWriter(folder / STEPS_FILE, rank)
        while True:
            training.steps(1)
            step += 1
            notes.note(step)
            if rank == 0 and step % every_steps == 0:
                beside = checkpoint.with_suffix(".new.npz")
                saved: dict[str, Any] = {**training.state(), _NUM_STEPS: np.array(step)}
                np.savez(beside, **saved)
                beside.replace(checkpoint)
