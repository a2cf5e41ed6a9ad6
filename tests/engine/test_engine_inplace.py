"""Changes in place: allowed where backward stays right, refused or found out where it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.errors import DtypeError, GraphError, ShapeError


def leaf(*values: float) -> ddp.Tensor:
    return ddp.tensor(np.array(values), requires_grad=True)


def test_values_that_are_not_recorded_change_in_their_memory() -> None:
    x = ddp.tensor([1.0, 2.0, 3.0])
    alias = x
    x += 1
    x -= 2
    x *= 4
    x /= 2
    assert alias is x
    x[1:] = ddp.tensor([7.0, 8.0])
    x[0] = 5
    assert alias.tolist() == [5.0, 7.0, 8.0]
    assert x.fill_(3).tolist() == [3.0] * 3
    assert x.copy_(np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]
    assert x.zero_().tolist() == [0.0] * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.add_(1),
        lambda y: y.mul_(2),
        lambda y: y.zero_(),
        lambda y: y.__setitem__(0, 1.0),
        lambda y: y.detach().add_(1),
        lambda y: y.detach()[0].fill_(3),
    ],
)
def test_changing_what_backward_needs_is_found_out(change: Callable[[ddp.Tensor], object]) -> None:
    x = leaf(1.0, 2.0)
    y = x * 2
    z = (y * y).sum()
    change(y)
    with pytest.raises(GraphError, match="backward through mul needs a value that was changed in place"):
        z.backward()


def test_changing_a_view_is_found_out_in_its_base_and_the_other_way_round() -> None:
    x = leaf(1.0, 2.0)
    base = ddp.tensor([3.0, 4.0])
    z = (x * base).sum()
    base[:1].add_(1)
    with pytest.raises(GraphError, match="changed in place"):
        z.backward()
    row = base.reshape(2, 1)
    z = (x.reshape(2, 1) * row).sum()
    base.add_(1)
    with pytest.raises(GraphError, match="changed in place"):
        z.backward()


def test_changing_what_backward_does_not_need_is_fine() -> None:
    x = leaf(1.0, 2.0)
    y = x + 1
    z = (y + 1).sum()
    with ddp.no_grad():
        y.zero_()
    z.backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0]


def test_a_recorded_change_is_part_of_the_history() -> None:
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = x * 1
    y += w
    y *= w
    y.sum().backward()
    assert x.grad is not None and w.grad is not None
    np.testing.assert_allclose(x.grad, [3.0, 4.0])
    np.testing.assert_allclose(w.grad, [1 + 2 * 3, 2 + 2 * 4])


def test_a_recorded_change_by_itself() -> None:
    x = leaf(2.0, 3.0)
    y = x * 1
    y *= y
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, [4.0, 6.0])


def test_recorded_values_can_be_written_into_a_plain_tensor() -> None:
    x = leaf(2.0, 3.0)
    y = ddp.tensor(np.zeros(4))
    y[1:3] = x * x
    y[3] = 5.0
    (y * y).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, 4 * np.array([8.0, 27.0]))


def test_changing_the_other_operand_of_a_recorded_change_is_found_out() -> None:
    x, w = leaf(1.0, 2.0), ddp.tensor(np.array([3.0, 4.0]))
    y = x * 1
    y *= w
    w += 1
    with pytest.raises(GraphError, match="changed in place"):
        y.sum().backward()


def test_a_leaf_that_requires_a_gradient_changes_only_under_no_grad() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(GraphError, match=r"add in place.*leaf.*no_grad"):
        x += 1
    assert x.tolist() == [1.0, 2.0]
    with ddp.no_grad():
        x += 1
    assert x.tolist() == [2.0, 3.0]
    assert x.requires_grad


def test_a_recorded_change_of_viewed_memory_is_refused() -> None:
    y = leaf(1.0, 2.0) * 1
    view = y[:1]
    with pytest.raises(GraphError, match="other tensors view"):
        y += 1
    with pytest.raises(GraphError, match="other tensors view"):
        view += 1


@pytest.mark.parametrize("recorded", [False, True])
def test_a_result_that_does_not_fit_is_refused(recorded: bool) -> None:
    x = ddp.tensor([1.0, 2.0])
    if recorded:
        x = x.requires_grad_() * 1
    with pytest.raises(ShapeError, match=r"add in place on a tensor of \(2,\) float32"):
        x += np.ones((3, 2), np.float32)
    with pytest.raises(ShapeError, match="add in place"):
        x += np.ones(3, np.float32)
    with pytest.raises(ShapeError, match="setitem in place"):
        x[5] = 1.0
    assert x.tolist() == [1.0, 2.0]
    counts = ddp.tensor([1, 2])
    with pytest.raises(DtypeError, match="add in place"):
        counts += 0.5
    with pytest.raises(GraphError, match="read-only"):
        ddp.tensor([1.0]).expand(3).zero_()
