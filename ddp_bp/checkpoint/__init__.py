"""Checkpoints: their format, and a store that survives a crash at any moment.

A checkpoint is a folder of safetensors files and a manifest with the digest of each of them. This room knows nothing of
models, optimizers or ranks; it keeps named arrays.
"""

from __future__ import annotations

from ddp_bp.checkpoint.format import Manifest, weights_sha256
from ddp_bp.checkpoint.read import Checkpoint, load_checkpoint
from ddp_bp.checkpoint.store import CheckpointStore, Entry

__all__ = ["Checkpoint", "CheckpointStore", "Entry", "Manifest", "load_checkpoint", "weights_sha256"]
