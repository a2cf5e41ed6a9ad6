"""The models that a recipe can name, one module per family.

Each is called as `build(input_shape, num_outputs, **options)`. Options, their limits and defaults are those of the
signature. A model must not know where its options come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ddp_bp.nn.models.cnn import cnn
from ddp_bp.nn.models.gpt import gpt
from ddp_bp.nn.models.mlp import mlp
from ddp_bp.nn.models.resnet import resnet
from ddp_bp.nn.module import Module

MODELS: Mapping[str, Callable[..., Module]] = MappingProxyType(
    {"mlp": mlp, "cnn": cnn, "resnet": resnet, "gpt": gpt},
)

__all__ = ["MODELS", "cnn", "gpt", "mlp", "resnet"]
