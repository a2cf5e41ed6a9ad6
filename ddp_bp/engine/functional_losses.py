"""The losses as functions of tensors, under the names of torch.nn.functional.

Targets and weights may be tensors or NumPy arrays. Where PyTorch has no gradient for a weight, neither has this; a
weight that requires one is refused.
"""

from __future__ import annotations

from ddp_bp.engine.functional import as_tensor, check_reduction
from ddp_bp.engine.misuse import explained, number
from ddp_bp.engine.ops import classification, divergence, losses
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor, apply
from ddp_bp.errors import GraphError, InputError


@explained
def cross_entropy(
    input: Tensor,
    target: Tensor | Array,
    weight: Tensor | Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The negative log-likelihood of the target's classes under the softmax of logits.

    `input` is (N, C), (N, C, ...) or (C,); `target` holds class numbers, (N,), (N, ...) or (), or is floating, of
    `input`'s shape, and holds the probability of each class. `weight` (C,) says how much each class counts; class
    numbers equal to `ignore_index` do not count. The mean divides by the sum of the weights of the target's classes, or
    for probabilities by the number of samples. Of a target's probability, `label_smoothing` goes to all classes evenly.
    """
    check_reduction("cross_entropy", reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise InputError(f"cross_entropy takes a label_smoothing in [0, 1] and got {label_smoothing}")
    target = as_tensor(target)
    weights = constant("cross_entropy", weight)
    if is_probability(input, target):
        return apply(classification.SOFT_CROSS_ENTROPY, (input, target), (reduction, weights, label_smoothing))
    return apply(classification.CROSS_ENTROPY, (input, target), (reduction, weights, ignore_index, label_smoothing))


@explained
def nll_loss(
    input: Tensor,
    target: Tensor | Array,
    weight: Tensor | Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Minus the logarithms, among log-probabilities `input`, of the target's classes; shapes as in `cross_entropy`."""
    check_reduction("nll_loss", reduction)
    options = (reduction, constant("nll_loss", weight), ignore_index)
    return apply(classification.NLL_LOSS, (input, as_tensor(target)), options)


@explained
def mse_loss(input: Tensor, target: Tensor | Array, *, reduction: str = "mean") -> Tensor:
    """The squared differences of two tensors of one shape."""
    check_reduction("mse_loss", reduction)
    return apply(losses.MSE_LOSS, (input, as_tensor(target)), (reduction,))


@explained
def l1_loss(input: Tensor, target: Tensor | Array, *, reduction: str = "mean") -> Tensor:
    """The absolute differences of two tensors of one shape."""
    check_reduction("l1_loss", reduction)
    return apply(losses.L1_LOSS, (input, as_tensor(target)), (reduction,))


@explained
def smooth_l1_loss(input: Tensor, target: Tensor | Array, *, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """The absolute differences less `beta` / 2, and below `beta` half the squared ones over `beta`."""
    check_reduction("smooth_l1_loss", reduction)
    if not beta >= 0.0:
        raise InputError(f"smooth_l1_loss takes a beta that is not negative and got {beta}")
    return apply(losses.SMOOTH_L1_LOSS, (input, as_tensor(target)), (reduction, float(beta)))


@explained
def huber_loss(input: Tensor, target: Tensor | Array, *, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """Half the squared differences up to `delta`, and from there the tangent."""
    check_reduction("huber_loss", reduction)
    if not delta > 0.0:
        raise InputError(f"huber_loss takes a delta above 0 and got {delta}")
    return apply(losses.HUBER_LOSS, (input, as_tensor(target)), (reduction, float(delta)))


@explained
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor | Array,
    weight: Tensor | Array | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | Array | None = None,
) -> Tensor:
    """The negative log-likelihood of probabilities `target` in [0, 1] under the sigmoid of logits of the same shape.

    `weight` and `pos_weight` broadcast to the logits. `weight` multiplies the losses, `pos_weight` their parts that
    come from `target`; neither changes the number that the mean divides by.
    """
    name = "binary_cross_entropy_with_logits"
    check_reduction(name, reduction)
    options = (reduction, constant(name, weight), constant(name, pos_weight))
    return apply(divergence.BINARY_CROSS_ENTROPY_WITH_LOGITS, (input, as_tensor(target)), options)


@explained
def kl_div(input: Tensor, target: Tensor | Array, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """The terms of the divergence of log-probabilities `input` from probabilities `target`, or from their logarithms.

    A `reduction` of "batchmean" divides the sum by the first side, which gives the mean divergence of the samples.
    """
    if reduction != "batchmean":
        check_reduction("kl_div", reduction)
    return apply(divergence.KL_DIV, (input, as_tensor(target)), (reduction, log_target))


@explained
def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor | Array, *, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """For rows of `input1` and `input2`, (N, D) or (D,): 1 less their cosine where `target`, (N,) or (), is 1, and what
    their cosine has above `margin` where it is -1."""
    check_reduction("cosine_embedding_loss", reduction)
    inputs = (input1, input2, as_tensor(target))
    return apply(
        divergence.COSINE_EMBEDDING_LOSS, inputs, (reduction, number("cosine_embedding_loss", "margin", margin))
    )


def is_probability(input: Tensor, target: Tensor) -> bool:
    """Whether `target` gives `cross_entropy` a probability for each class, rather than the number of one class."""
    return target.dtype.kind == "f" and target.shape == input.shape


def constant(name: str, weight: Tensor | Array | None) -> Array | None:
    """A copy of the weight's array, since backward reads it."""
    if weight is None:
        return None
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise GraphError(f"{name} got a weight that requires a gradient and has none to give it; give weight.detach()")
    return as_tensor(weight).numpy().copy()
