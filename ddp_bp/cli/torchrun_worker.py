"""`ddp-bp torchrun-worker`, which `bench recovery` has torchrun start: one worker of PyTorch's.

Knows not what it trains.
"""

from __future__ import annotations

from pathlib import Path

import click

from ddp_bp.bench.torchrun_worker import train
from ddp_bp.cli.environment import torchrun_restarts


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("model")
@click.argument("every_steps", type=click.IntRange(min=1))
def torchrun_worker(folder: Path, model: str, every_steps: int) -> None:
    """Train MODEL with PyTorch until the end of the process, with a checkpoint in FOLDER after EVERY_STEPS steps."""
    train(folder, model, every_steps, torchrun_restarts())
