"""The two phases of LARS and LAMB: the same bits however the vector is cut, and what does not fit is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp import nn, optim
from ddp_bp.errors import DtypeError, InputError, ShapeError
from ddp_bp.optim.optimizer import BLOCK_SIZE
from ddp_bp.optim.rows import row_square_sums, square_sums
from ddp_bp.parallel.membership import SLICE_ALIGNMENT_ELEMENTS

MAKERS: dict[str, Callable[..., optim.LayerwiseOptimizer]] = {
    "lars": lambda params: optim.LARS(params, lr=0.1, weight_decay=0.01),
    "lamb": lambda params: optim.LAMB(params, lr=0.1),
    "maximize": lambda params: optim.LAMB(params, lr=0.1, maximize=True),
}
every_optimizer = pytest.mark.parametrize("name", sorted(MAKERS))


def parameters(sizes: list[int], frozen: int | None = None) -> list[nn.Parameter]:
    rng = np.random.default_rng(0)
    made = [nn.Parameter(rng.standard_normal(size).astype(np.float32)) for size in sizes]
    if frozen is not None:
        made[frozen].requires_grad_(False)
    return made


def test_slices_of_ranks_begin_where_rows_do() -> None:
    assert SLICE_ALIGNMENT_ELEMENTS % optim.ROW_ELEMENTS == 0


@every_optimizer
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_cuts_do_not_change_the_bits(name: str, data: st.DataObject) -> None:
    sizes = data.draw(
        st.lists(st.sampled_from([0, 1, 7, 1024, 1500, 5000, BLOCK_SIZE + 5]), min_size=1, max_size=6).filter(any)
    )
    frozen = data.draw(st.none() | st.integers(0, len(sizes) - 1))
    whole, parts = MAKERS[name](parameters(sizes, frozen)), MAKERS[name](parameters(sizes, frozen))
    size = whole.flat.size
    num_rows = -(-size // 1024)
    cuts = data.draw(st.lists(st.integers(0, num_rows), max_size=4).map(sorted))
    ranges = [(min(lo * 1024, size), min(hi * 1024, size)) for lo, hi in itertools.pairwise([0, *cuts, num_rows])]
    order = data.draw(st.permutations(ranges))
    for step in range(3):
        gradient = np.random.default_rng(step).standard_normal(size).astype(np.float32)
        at_once = gradient.copy()
        whole.update(0, size, at_once, whole.norms(whole.norm_partials(0, size, at_once)))
        partials = np.full((parts.num_partials, 2), np.nan)
        slices = {bounds: gradient[slice(*bounds)].copy() for bounds in ranges}
        for lo, hi in order:
            if lo == hi:
                continue
            first, last = parts.partial_bounds(lo, hi)
            partials[first:last] = parts.norm_partials(lo, hi, slices[lo, hi])
        norms = parts.norms(partials)
        for lo, hi in reversed(order):
            parts.update(lo, hi, slices[lo, hi], norms)
        whole.advance()
        parts.advance()
    assert whole.flat.data.tobytes() == parts.flat.data.tobytes()
    for key, value in whole.state.items():
        assert value.tobytes() == parts.state[key].tobytes()
    if frozen is not None:
        slot = whole.flat.slots[frozen]
        before = parameters(sizes)[frozen].numpy()
        np.testing.assert_array_equal(whole.flat.data[slot.offset : slot.offset + slot.size], before)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 1023, 1024, 3000]), min_size=1, max_size=5).filter(any),
    row=st.integers(0, 3),
)
def test_norms_are_those_of_whole_parameters(sizes: list[int], row: int) -> None:
    optimizer = optim.LARS(parameters(sizes), lr=0.1)
    gradient = np.random.default_rng(1).standard_normal(optimizer.flat.size).astype(np.float32)
    norms = optimizer.norms(optimizer.norm_partials(0, gradient.size, gradient))
    for (own, direction), slot in zip(norms, optimizer.flat.slots, strict=True):
        part = slice(slot.offset, slot.offset + slot.size)
        assert own == pytest.approx(np.linalg.norm(optimizer.flat.data[part].astype(np.float64)), rel=1e-12)
        assert direction == pytest.approx(np.linalg.norm(gradient[part].astype(np.float64)), rel=1e-12)
    sums = row_square_sums(gradient)
    assert sums.dtype == np.float64 and sums.shape == (-(-gradient.size // 1024),)
    lo = min(row * 1024, gradient.size // 1024 * 1024)
    assert sums[lo // 1024 :].tobytes() == row_square_sums(gradient[lo:], lo).tobytes()


def test_sums_of_rows_do_not_depend_on_where_they_are_in_memory() -> None:
    values = np.random.default_rng(0).standard_normal(3 * BLOCK_SIZE + 77).astype(np.float32)
    expected = row_square_sums(values)
    for shift in (1, 3, 8):
        moved = np.empty(values.size + shift, np.float32)[shift:]
        moved[:] = values
        assert row_square_sums(moved).tobytes() == expected.tobytes()
    assert row_square_sums(np.empty(0, np.float32)).shape == (0,)
    pieces = square_sums(values, np.union1d(np.arange(0, values.size, 1024), [5, 2000]))
    assert pieces.sum() == pytest.approx(expected.sum(), rel=1e-14)
    large = np.full(2000, 1e30, np.float32)
    assert row_square_sums(large)[0] == pytest.approx(1024e60, rel=1e-6)


@every_optimizer
def test_a_restored_optimizer_goes_on_with_the_same_bits(name: str) -> None:
    def run(optimizer: optim.LayerwiseOptimizer, steps: range) -> None:
        for step in steps:
            for parameter in optimizer.flat.parameters:
                parameter.grad = np.random.default_rng(step).standard_normal(parameter.shape).astype(np.float32)
            optimizer.step()

    straight, first, second = (MAKERS[name](parameters([6, 1500])) for _ in range(3))
    run(straight, range(6))
    run(first, range(3))
    second.flat.data[:] = first.flat.data
    second.load_state_dict(first.state_dict())
    run(second, range(3, 6))
    assert second.flat.data.tobytes() == straight.flat.data.tobytes()


def test_what_does_not_fit_is_refused() -> None:
    optimizer = optim.LAMB(parameters([3000]))
    gradient = np.zeros(3000, np.float32)
    with pytest.raises(ShapeError, match="multiple of 1024 and got 5"):
        optimizer.norm_partials(5, 3000, gradient[5:])
    with pytest.raises(ShapeError, match="multiple of 1024 and got 1500"):
        optimizer.norm_partials(0, 1500, gradient[:1500])
    with pytest.raises(DtypeError, match="float64"):
        optimizer.norm_partials(0, 3000, np.zeros(3000))
    with pytest.raises(ShapeError, match=r"takes \(3, 2\)"):
        optimizer.norms(np.zeros((2, 2)))
    with pytest.raises(ShapeError, match=r"LAMB.update takes the norms of all parameters \(1, 2\) and got none"):
        optimizer.update(0, 3000, gradient)
    with pytest.raises(ShapeError, match="multiple of 1024"):
        optim.row_square_sums(gradient[:10], 10)
    with pytest.raises(InputError, match="adapt"):
        optim.LARS(parameters([1]), adapt=None)
