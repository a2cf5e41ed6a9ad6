"""From a recipe's loss section to a loss: which one, for which kind of data. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from ddp_bp.data import Loaded
from ddp_bp.nn import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, KLDivLoss, L1Loss, MSELoss, NLLLoss
from ddp_bp.nn.losses import Loss
from ddp_bp.recipes.optimization import LossSection

_OF_CLASSES: Mapping[str, Callable[..., Loss]] = MappingProxyType({"cross_entropy": CrossEntropyLoss, "nll": NLLLoss})
_OF_VALUES: Mapping[str, Callable[..., Loss]] = MappingProxyType(
    {"mse": MSELoss, "l1": L1Loss, "huber": HuberLoss, "bce_with_logits": BCEWithLogitsLoss, "kl_div": KLDivLoss}
)


def loss_problems(section: LossSection, data: Loaded) -> list[str]:
    """Every reason, one line each with its key, why the loss cannot be taken on `data`."""
    is_classification = data.num_classes is not None
    losses = _OF_CLASSES if is_classification else _OF_VALUES
    if section.name != "auto" and section.name not in losses:
        kind = "classes" if is_classification else "those of a regression"
        names = ", ".join(("auto", *losses))
        return [f"loss.name: expected one of {names}, since the targets are {kind}; got {section.name!r}"]
    if not is_classification and section.name == "auto":
        return [
            f"loss.{key}: does not apply to regression, whose loss is mse unless loss.name says otherwise"
            for key in section.arguments()
        ]
    if data.num_classes is not None and section.ignore_index is not None and section.ignore_index >= data.num_classes:
        return [
            f"loss.ignore_index: expected one of the {data.num_classes} classes, 0 to {data.num_classes - 1}, got "
            f"{section.ignore_index}"
        ]
    return [
        f"loss.{key}: expected {data.num_outputs} numbers, one for each {'class' if is_classification else 'output'}, "
        f"got {len(values)}"
        for key, values in (("weight", section.weight), ("pos_weight", section.pos_weight))
        if values is not None and len(values) != data.num_outputs
    ]


def build_loss(section: LossSection, data: Loaded) -> Loss:
    """The loss of `section`, for which `loss_problems` has found nothing."""
    name = section.name
    if name == "auto":
        name = "mse" if data.num_classes is None else "cross_entropy"
    arguments = section.arguments()
    for key in ("weight", "pos_weight"):
        if key in arguments:
            arguments[key] = np.array(arguments[key], np.float32)
    return {**_OF_CLASSES, **_OF_VALUES}[name](**arguments)
