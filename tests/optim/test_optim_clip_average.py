"""Gradient clipping against torch.nn.utils, and the average of the weights against AveragedModel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ddp_bp import nn, optim
from ddp_bp.engine import FlatParameters
from ddp_bp.errors import EngineError, GraphError, InputError, ShapeError
from ddp_bp.optim.optimizer import BLOCK_SIZE
from ddp_bp.parallel.tree import tree_sum


def with_gradients(scale: float = 1.0) -> list[nn.Parameter]:
    rng = np.random.default_rng(0)
    made = [nn.Parameter(np.zeros(shape, np.float32)) for shape in [(3, 4), (5,), (40, 50)]]
    for parameter in (made[0], made[2]):
        parameter.grad = (scale * rng.standard_normal(parameter.shape)).astype(np.float32)
    return made


@pytest.mark.parity
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("scale", [1e-4, 10.0])
def test_clipping_by_norm(norm_type: float, flat: bool, scale: float) -> None:
    import torch

    ours = with_gradients(scale)
    theirs = [torch.nn.Parameter(torch.tensor(np.array(p.numpy()))) for p in ours]
    for our, their in zip(ours, theirs, strict=True):
        their.grad = None if our.grad is None else torch.tensor(our.grad.copy())
    given = FlatParameters(ours) if flat else ours
    norm = optim.clip_grad_norm_(given, 1.0, norm_type)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 1.0, norm_type).item(), rel=1e-5)
    for our, their in zip(ours, theirs, strict=True):
        if their.grad is None:
            assert our.grad is None
        else:
            np.testing.assert_allclose(our.grad, their.grad.numpy(), rtol=1e-5)


def test_clipping_by_value() -> None:
    parameters = with_gradients(3.0)
    before = [None if p.grad is None else p.grad.copy() for p in parameters]
    optim.clip_grad_value_(iter(parameters), 0.5)
    for parameter, gradient in zip(parameters, before, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            np.testing.assert_array_equal(parameter.grad, np.clip(gradient, -0.5, 0.5))
    single = parameters[0]
    optim.clip_grad_value_(single, 0.25)
    assert np.abs(single.grad).max() == 0.25


def test_gradients_within_bounds_keep_their_bits() -> None:
    parameters = with_gradients()
    flat = FlatParameters(parameters)
    before = flat.finish_gradient().copy()
    assert optim.clip_grad_norm_(flat, 1e6) == pytest.approx(np.linalg.norm(before), rel=1e-6)
    assert flat.gradient.tobytes() == before.tobytes()
    assert optim.clip_grad_norm_([nn.Parameter(np.zeros(3))], 1.0) == 0.0


def test_slices_clip_as_the_whole() -> None:
    """What ranks do: sums of rows side by side, one order of summation, one coefficient."""
    gradient = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    whole = optim.row_square_sums(gradient)
    for cuts in ([1024], [2048, 4096], [0, 3072]):
        bounds = [0, *cuts, 5000]
        pieces = [optim.row_square_sums(gradient[lo:hi], lo) for lo, hi in itertools.pairwise(bounds)]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()
    norm = math.sqrt(tree_sum(whole))
    parameter = nn.Parameter(np.zeros(5000, np.float32))
    parameter.grad = gradient.copy()
    assert optim.clip_grad_norm_([parameter], 2.0) == pytest.approx(norm, rel=1e-14)
    np.testing.assert_allclose(parameter.grad, gradient * optim.clip_coefficient(norm, 2.0), rtol=1e-6)


def test_norms_that_are_not_finite() -> None:
    parameter = nn.Parameter(np.zeros(2, np.float32))
    parameter.grad = np.array([1.0, np.nan], np.float32)
    with pytest.raises(EngineError, match="the norm of the gradients is nan"):
        optim.clip_grad_norm_([parameter], 1.0, error_if_nonfinite=True)
    assert parameter.grad[0] == 1.0
    assert math.isnan(optim.clip_grad_norm_([parameter], 1.0))
    assert np.isnan(parameter.grad).all()
    for limit in (-1.0, math.nan):
        with pytest.raises(InputError, match="max_norm"):
            optim.clip_grad_norm_([parameter], limit)
        with pytest.raises(InputError, match="clip_value"):
            optim.clip_grad_value_([parameter], limit)
    with pytest.raises(InputError, match="norm_type"):
        optim.clip_grad_norm_([parameter], 1.0, 0)


# ---- the average of the weights


@pytest.mark.parity
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_average_of_fifty_steps(dtype: type, tolerance: float) -> None:
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    rng = np.random.default_rng(0)
    ours, theirs = nn.Linear(3, 2, dtype=dtype), torch.nn.Linear(3, 2)
    theirs = theirs.to(torch.float64 if dtype is np.float64 else torch.float32)
    average = optim.ExponentialMovingAverage(ours.named_parameters(), decay=0.9)
    expected = AveragedModel(theirs, avg_fn=get_ema_avg_fn(0.9))
    for _ in range(50):
        state = {"weight": rng.standard_normal((2, 3)).astype(dtype), "bias": rng.standard_normal(2).astype(dtype)}
        ours.load_state_dict(state)
        theirs.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
        average.step()
        expected.update_parameters(theirs)
    saved = average.state_dict()
    assert saved["num_updates"] == 50
    for key, value in expected.module.state_dict().items():
        np.testing.assert_allclose(saved[f"{key}.ema"], value.numpy(), rtol=tolerance, atol=tolerance)


def test_an_average_shares_the_vector_of_the_optimizer() -> None:
    a, b = (nn.Parameter(np.ones(2, np.float32)) for _ in range(2))
    optimizer = optim.SGD([{"params": [b]}, {"params": [a]}])
    average = optim.ExponentialMovingAverage([a, b])
    assert average.flat.data is optimizer.flat.data
    optimizer.step()
    average.step()


def test_cuts_do_not_change_the_bits_of_an_average() -> None:
    def make() -> optim.ExponentialMovingAverage:
        return optim.ExponentialMovingAverage([nn.Parameter(np.zeros(BLOCK_SIZE + 9, np.float32))], 0.7)

    whole, parts = make(), make()
    size = whole.flat.size
    for step in range(3):
        for average in (whole, parts):
            average.flat.data[:] = np.random.default_rng(step).standard_normal(size)
        whole.step()
        for lo, hi in ((17, size), (0, 17)):
            parts.update(lo, hi)
        parts.advance()
    assert whole.state["ema"].tobytes() == parts.state["ema"].tobytes()
    with pytest.raises(ShapeError, match="elements"):
        parts.update(3, size + 1)


def test_an_average_can_be_applied_saved_and_restored() -> None:
    weight = nn.Parameter(np.array([1.0, 2.0], np.float32))
    average = optim.ExponentialMovingAverage([("w", weight)], decay=0.5)
    average.step()
    average.flat.data[:] = [3.0, 6.0]
    average.step()
    loss = (weight * weight).sum()
    with average.applied():
        assert weight.tolist() == [2.0, 4.0]
        with pytest.raises(GraphError, match="changed in place"):
            loss.backward()
    assert weight.tolist() == [3.0, 6.0]
    other = optim.ExponentialMovingAverage([("w", nn.Parameter(np.array([3.0, 6.0], np.float32)))], decay=0.5)
    other.load_state_dict(average.state_dict())
    for each in (average, other):
        each.step()
    assert other.state["ema"].tobytes() == average.state["ema"].tobytes()
    assert other.state["ema"].tolist() == [2.5, 5.0]
    with pytest.raises(InputError, match=r"missing: w.ema"):
        other.load_state_dict({"num_updates": 3})
    with pytest.raises(InputError, match="decay"):
        optim.ExponentialMovingAverage([weight], decay=1.5)
    asked = []
    optim.ExponentialMovingAverage(
        [weight], allocate=lambda name, size, dtype: asked.append((name, size)) or np.zeros(size, dtype)
    )
    assert asked == [("ema", 2)]
