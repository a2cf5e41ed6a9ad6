"""Recorded gradients against central differences, along random directions.

For a function f, a random vector v of f's output shape and a random direction u of an input's shape, backward from v
gives a gradient g, and <g, u> must equal d/dt <v, f(input + t u)> at t = 0. One such number depends on every element of
the Jacobian, so that a wrong element shows with probability 1, at the cost of two evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddp_bp.engine.graph import no_grad
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor
from ddp_bp.errors import DtypeError, EngineError


def gradcheck(
    fn: Callable[..., Tensor | Sequence[Tensor]],
    *inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-6,
    rtol: float = 1e-5,
    num_projections: int = 3,
    seed: int = 0,
) -> None:
    """Checks the gradients of `fn(*inputs)` with respect to each input that requires one.

    `fn` returns a tensor or several. Inputs to check are float64, since differences of float32 values say little;
    `fn` must be smooth within `eps` of them. Raises EngineError with the worst deviation over all inputs and
    projections if one exceeds `atol + rtol * |expected|`, DtypeError if there is nothing to check in float64.
    """
    checked = [position for position, value in enumerate(inputs) if isinstance(value, Tensor) and value.requires_grad]
    if not checked:
        raise DtypeError("gradcheck got no input with requires_grad=True")
    for position in checked:
        if inputs[position].dtype != np.float64:
            raise DtypeError(f"gradcheck takes float64 inputs, and input {position} is {inputs[position].dtype}")
    values = [value.detach().clone() if isinstance(value, Tensor) else value for value in inputs]
    generator = np.random.Generator(np.random.Philox(seed))
    worst = (0.0, "")
    for projection in range(num_projections):
        weights, gradients = _recorded(fn, values, checked, generator)
        for position in checked:
            direction = generator.standard_normal(values[position].shape)
            recorded = float(np.sum(gradients[position] * direction))
            differences = (
                _projected(fn, _moved(values, position, direction * eps), weights)
                - _projected(fn, _moved(values, position, direction * -eps), weights)
            ) / (2 * eps)
            # In units of the tolerance. Not a number counts as infinitely wrong.
            excess = abs(recorded - differences) / (atol + rtol * abs(differences))
            if not excess <= worst[0]:
                worst = (
                    excess if excess == excess else np.inf,
                    f"input {position} of shape {values[position].shape}, projection {projection}: "
                    f"backward gives {recorded:.12g}, central differences give {differences:.12g}",
                )
    if worst[0] > 1.0:
        raise EngineError(
            f"gradcheck failed at {worst[1]}; the deviation is {worst[0]:.3g} times the tolerance "
            f"(atol {atol:g}, rtol {rtol:g}, eps {eps:g})"
        )


def _outputs(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _recorded(
    fn: Callable[..., Tensor | Sequence[Tensor]],
    values: list[Any],
    checked: list[int],
    generator: np.random.Generator,
) -> tuple[list[Array], dict[int, Array]]:
    """Random weights for each output, and backward's gradient of the weighted sum for each checked input."""
    arguments = list(values)
    for position in checked:
        arguments[position] = Tensor(values[position].numpy().copy(), requires_grad=True)
    outputs = _outputs(fn(*arguments))
    weights: list[Array] = [generator.standard_normal(output.shape) for output in outputs]
    for output, weight in zip(outputs, weights, strict=True):
        if output.requires_grad:
            output.backward(np.asarray(weight), retain_graph=True)
    gradients: dict[int, Array] = {}
    for position in checked:
        gradient = arguments[position].grad
        if gradient is not None and gradient.shape != values[position].shape:
            raise EngineError(f"gradcheck: input {position} got a gradient of shape {gradient.shape}")
        gradients[position] = np.zeros(values[position].shape) if gradient is None else gradient
    return weights, gradients


def _moved(values: list[Any], position: int, by: Array) -> list[Any]:
    moved = list(values)
    moved[position] = Tensor(np.asarray(values[position].numpy() + by))
    return moved


def _projected(fn: Callable[..., Tensor | Sequence[Tensor]], arguments: list[Any], weights: list[Array]) -> float:
    with no_grad():
        outputs = _outputs(fn(*arguments))
    return float(sum(np.sum(output.numpy() * weight) for output, weight in zip(outputs, weights, strict=True)))
