"""Data sets, the shard plan, and batches.

The way of the data: `DataSpec` -> `load` -> `Dataset`; `ShardPlan` says which samples each shard of each step holds;
`Batches` joins the two. This room knows nothing of models, ranks or checkpoints.
"""

from __future__ import annotations

from ddp_bp.data.augment import Augment, Normalize
from ddp_bp.data.batches import Batch, Batches, evaluation_chunks
from ddp_bp.data.dataset import Dataset
from ddp_bp.data.load import Loaded, load
from ddp_bp.data.plan import ShardPlan, digest_ids
from ddp_bp.data.spec import DataSpec, Task

__all__ = [
    "Augment",
    "Batch",
    "Batches",
    "DataSpec",
    "Dataset",
    "Loaded",
    "Normalize",
    "ShardPlan",
    "Task",
    "digest_ids",
    "evaluation_chunks",
    "load",
]
