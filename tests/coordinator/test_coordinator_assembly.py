from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from coordinator_fakes import MOMENTS, PARAMETERS, checkpoint_parts, manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.coordinator.assembly import Assembly, Coverage
from ddp_bp.errors import WireError
from ddp_bp.wire import messages as m


def _begin(rank: int, **changes: Any) -> m.CheckpointBegin:
    fields: dict[str, Any] = {"manifest": manifest(5), "arrays": [PARAMETERS, MOMENTS], "world_size": 2}
    return m.CheckpointBegin("a", rank=rank, **{**fields, **changes})


def _chunk(rank: int, lo: int, hi: int, array: str = "parameters") -> tuple[m.CheckpointChunk, bytes]:
    return m.CheckpointChunk("a", rank, array, lo), np.arange(lo, hi, dtype="<f4").tobytes()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 20), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12))
def test_coverage_is_that_of_a_set(size: int, intervals: list[tuple[int, int]]) -> None:
    coverage, expected = Coverage(size), set[int]()
    for a, b in intervals:
        lo, hi = min(a, b, size), min(max(a, b), size)
        new = set(range(lo, hi))
        assert coverage.add(lo, hi) is not bool(new & expected)
        if not new & expected:
            expected |= new
        gap = coverage.first_gap()
        missing = sorted(set(range(size)) - expected)
        assert (gap is None) == (not missing)
        if gap is not None:
            assert gap[0] == missing[0] and set(range(*gap)) <= set(missing)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_ranks_may_interleave_in_any_way(world_size: int, random: Any) -> None:
    queues = [checkpoint_parts(rank, 5, "a", world_size) for rank in range(world_size)]
    assembly: Assembly | None = None
    complete = []
    while queues:
        queue = random.choice(queues)
        message, payloads = queue.pop(0)
        if not queue:
            queues.remove(queue)
        match message:
            case m.CheckpointBegin() if assembly is None:
                assembly = Assembly(message, world_size, 0.0)
            case m.CheckpointBegin():
                assembly.begin(message, 0.0)
            case m.CheckpointChunk():
                assert assembly is not None
                assembly.chunk(message, payloads[0], 0.0)
            case m.CheckpointEnd():
                assert assembly is not None
                complete.append(assembly.end(message, 0.0))
    assert complete == [False] * (world_size - 1) + [True]
    assert assembly is not None and assembly.num_bytes == 80
    fields, model, optimizer = assembly.result()
    assert fields["step"] == 5
    np.testing.assert_array_equal(model["0.weight"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(model["0.bias"], np.arange(6, 10))
    np.testing.assert_array_equal(optimizer["0.weight.exp_avg"], -np.arange(6).reshape(2, 3))
    assert model["0.bias"].dtype == np.float32


def test_the_manifest_is_that_of_rank_0() -> None:
    assembly = Assembly(_begin(1, manifest={"step": 5, "from": 1}), 2, 0.0)
    assembly.begin(_begin(0, manifest={"step": 5, "from": 0}), 0.0)
    assert assembly.result()[0]["from"] == 0


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([_chunk(0, 0, 5), _chunk(0, 4, 6)], r"rank 0 sent elements \[4, 6\) of array 'parameters', some of which"),
        ([_chunk(0, 8, 11)], r"elements \[8, 11\) of array 'parameters', which has only 10"),
        ([(m.CheckpointChunk("a", 0, "parameters", 2**62), b"1234")], "which has only 10"),
        ([_chunk(0, 0, 1, "momentum")], "sent array 'momentum', expected one of parameters, exp_avg"),
        ([(m.CheckpointChunk("a", 0, "parameters", 0), b"123")], "3 bytes .* expected a multiple of 4"),
        ([_chunk(1, 0, 5)], "rank 1 sent elements before its begin"),
    ],
)
def test_elements_that_do_not_fit_are_named(chunks: Sequence[tuple[m.CheckpointChunk, bytes]], problem: str) -> None:
    assembly = Assembly(_begin(0), 2, 0.0)
    with pytest.raises(WireError, match=problem):
        for message, payload in chunks:
            assembly.chunk(message, payload, 0.0)


@pytest.mark.parametrize(
    ("begin", "problem"),
    [
        (_begin(1, world_size=3), "rank 1 counts 3 ranks, expected 2"),
        (_begin(1, manifest=manifest(6)), "rank 1 is at step 6, expected 5"),
        (_begin(1, arrays=[PARAMETERS]), "rank 1 announces other arrays"),
        (_begin(1, manifest={}), "step None, expected an integer"),
    ],
)
def test_ranks_that_disagree_are_named(begin: m.CheckpointBegin, problem: str) -> None:
    assembly = Assembly(_begin(0), 2, 0.0)
    with pytest.raises(WireError, match=problem):
        assembly.begin(begin, 0.0)


def test_a_rank_that_begins_again_sends_its_whole_part_again() -> None:
    assembly = Assembly(_begin(0), 2, 0.0)
    for part in (0, 1, 0):
        messages = checkpoint_parts(part, 5, "step-5")
        for message, payloads in messages:
            if isinstance(message, m.CheckpointBegin) and (part, message.rank) != (0, -1):
                assembly.begin(message, 0.0)
            elif isinstance(message, m.CheckpointChunk):
                assembly.chunk(message, payloads[0], 0.0)
            elif isinstance(message, m.CheckpointEnd) and part == 1:
                assert not assembly.end(message, 0.0)
        # As if the connection had been lost before the end.
    assert assembly.missing_ranks() == [0]
    assert assembly.end(m.CheckpointEnd("step-5", 0), 0.0)
    _, model, _ = assembly.result()
    assert np.concatenate([array.reshape(-1) for array in model.values()]).tolist() == list(range(10))


def _layout(*tensors: m.TensorLayout, name: str = "a", size: int = 4) -> m.ArrayLayout:
    return m.ArrayLayout(name, "model", "float32", size, list(tensors))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ([_layout(), _layout()], "array 'a' is announced twice"),
        ([_layout(m.TensorLayout("t", [5], 0))], r"elements \[0, 5\) lie outside array 'a' of 4"),
        ([_layout(m.TensorLayout("t", [2], 0), m.TensorLayout("u", [2], 1))], "'u'.* overlap"),
        ([_layout(m.TensorLayout("t", [2], 0), m.TensorLayout("u", [1, 2], 0))], "'u'.* overlap"),
        ([_layout(m.TensorLayout("t", [2], 0), m.TensorLayout("t", [2], 2))], "tensor 't' of the model file"),
        ([_layout(size=2**60)], "more than the coordinator can hold"),
    ],
)
def test_layouts_that_make_no_sense_are_named(arrays: list[m.ArrayLayout], problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        Assembly(_begin(0, arrays=arrays), 2, 0.0)


def test_tied_weights_are_one_tensor_under_two_names() -> None:
    arrays = [_layout(m.TensorLayout("t", [2, 2], 0), m.TensorLayout("u", [2, 2], 0))]
    assembly = Assembly(_begin(0, arrays=arrays, world_size=1), 1, 0.0)
    payload = np.arange(4, dtype=np.float32)
    assembly.chunk(m.CheckpointChunk("a", 0, "a", 0), payload, 0.0)
    assert assembly.end(m.CheckpointEnd("a", 0), 0.0)
    _, model, _ = assembly.result()
    assert model["t"].tolist() == model["u"].tolist() == [[0, 1], [2, 3]]


def test_what_is_missing_at_the_end_is_named() -> None:
    assembly = Assembly(_begin(0), 2, 0.0)
    assembly.begin(_begin(1), 0.0)
    for message, payload in (_chunk(0, 0, 4), _chunk(1, 6, 10), _chunk(0, 0, 10, "exp_avg")):
        assembly.chunk(message, payload, 0.0)
    assert assembly.missing_ranks() == [0, 1]
    assert not assembly.end(m.CheckpointEnd("a", 1), 0.0)
    assert assembly.missing_ranks() == [0]
    with pytest.raises(WireError, match=r"elements \[4, 6\) of array 'parameters' came from no rank"):
        assembly.end(m.CheckpointEnd("a", 0), 0.0)


def test_an_end_counts_once() -> None:
    assembly = Assembly(_begin(0), 2, 0.0)
    assembly.end(m.CheckpointEnd("a", 0), 0.0)
    with pytest.raises(WireError, match="or twice"):
        assembly.end(m.CheckpointEnd("a", 0), 0.0)
    with pytest.raises(WireError, match="after its end"):
        assembly.chunk(*_chunk(0, 0, 1), 0.0)


def test_scalars_and_empty_tensors_have_their_shapes() -> None:
    arrays = [_layout(m.TensorLayout("scalar", [], 0), m.TensorLayout("empty", [3, 0], 1), size=1)]
    assembly = Assembly(m.CheckpointBegin("a", 0, 1, {"step": 0}, arrays), 1, 0.0)
    assembly.chunk(m.CheckpointChunk("a", 0, "a", 0), np.float32(2.5).tobytes(), 0.0)
    assert assembly.end(m.CheckpointEnd("a", 0), 0.0)
    _, model, _ = assembly.result()
    assert model["scalar"].shape == () and model["scalar"] == 2.5
    assert model["empty"].shape == (3, 0)
