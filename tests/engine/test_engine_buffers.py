"""Buffers where a batch is cut into shards: all kinds of numbers move by the mean of their moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import ddp_bp as ddp
from ddp_bp.engine.buffers import Buffers
from ddp_bp.errors import InputError

DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool"]


@given(st.data(), st.sampled_from(DTYPES))
def test_what_no_shard_changes_keeps_its_bits(data: st.DataObject, dtype: str) -> None:
    elements = arrays.from_dtype(np.dtype(dtype), allow_nan=False)
    value = data.draw(arrays.arrays(dtype, (2, 3), elements=elements))
    buffers = Buffers([("a", ddp.tensor(value))])
    moves = np.full(buffers.size, np.nan, np.float32)
    buffers.begin()
    buffers.moves(moves)
    buffers.commit(moves)
    assert buffers.committed[0].tobytes() == value.tobytes()


def test_each_kind_moves_by_the_mean() -> None:
    tensors = [ddp.tensor(np.array(value)) for value in (0.5, 2**60, False)]
    buffers = Buffers(zip("abc", tensors, strict=True))
    total = np.zeros(3, np.float32)
    for _ in range(4):
        buffers.begin()
        with ddp.no_grad():
            tensors[0].add_(0.25)
            tensors[1].add_(3)
            tensors[2].fill_(True)
        moves = np.empty(3, np.float32)
        buffers.moves(moves)
        total += moves
    buffers.commit(total / 4)
    assert [tensor.item() for tensor in tensors] == [0.75, 2**60 + 3, True]
    assert [value.item() for value in buffers.committed] == [0.75, 2**60 + 3, True]


def test_a_buffer_that_leaves_infinity_is_named_and_one_that_becomes_infinite_is_not_yet_an_error() -> None:
    tensors = [ddp.tensor(np.array([-np.inf, 0.0])), ddp.tensor(np.array([1.0, 0.0]))]
    buffers = Buffers(zip(("least", "other"), tensors, strict=True))
    moves = np.empty(4)
    with ddp.no_grad():
        tensors[1][0] = np.inf
    buffers.moves(moves)
    assert moves.tolist() == [0, 0, np.inf, 0]
    with ddp.no_grad():
        tensors[0][0] = 3.0
    with pytest.raises(InputError, match="buffer 'least' has moved away from a value that is not finite"):
        buffers.moves(moves)


def test_values_change_hands() -> None:
    tensor = ddp.tensor(np.arange(3.0))
    buffers = Buffers([("a", tensor)])
    aside = buffers.suspend()
    buffers.restore([np.ones(3)])
    assert tensor.tolist() == [1, 1, 1] == buffers.committed[0].tolist()
    buffers.resume(aside)
    assert tensor.tolist() == [0, 1, 2]
    buffers.begin()
    assert tensor.tolist() == [1, 1, 1]
