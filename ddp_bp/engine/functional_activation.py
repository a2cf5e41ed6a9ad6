"""Activations beyond the methods of Tensor as functions, with PyTorch's arguments."""

from __future__ import annotations

from ddp_bp.engine.misuse import number
from ddp_bp.engine.ops import activation
from ddp_bp.engine.tensor import Tensor, apply


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x above 0, negative_slope * x elsewhere."""
    return apply(activation.LEAKY_RELU, (input,), (number("leaky_relu", "negative_slope", negative_slope),))


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha * (exp(x) - 1) elsewhere."""
    return apply(activation.ELU, (input,), (number("elu", "alpha", alpha),))


def silu(input: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return apply(activation.SILU, (input,))


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x is above the threshold."""
    return apply(
        activation.SOFTPLUS, (input,), (number("softplus", "beta", beta), number("softplus", "threshold", threshold))
    )


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x times the probability that a standard normal number is below x, exactly or by the "tanh" formula."""
    return apply(activation.GELU, (input,), (approximate,))
