"""Gradients rounded to bfloat16: what is rounded, the same bits for any ranks and nodes, skips, and checkpoints."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from test_worker_buckets import CASE, NODES, PLAN, train
from worker_cases import Case, Rank, assert_same, build_rank, classes, network

from ddp_bp import optim
from ddp_bp.data import Dataset, ShardPlan
from ddp_bp.parallel.bfloat16 import round_to_bfloat16
from ddp_bp.parallel.bucket_choice import NO_BUCKETS, BucketChoice
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import ThreadCommunicator, run_ranks

COMPRESSED = dataclasses.replace(CASE, compressed=True)


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, np.ndarray], list[Any]]:
    [result] = run_ranks(1, lambda c: train(c, COMPRESSED))
    return result


@pytest.mark.parametrize("nodes", [*NODES, [0, 0], [0, 0, 0], [0] * 7], ids=lambda nodes: "".join(map(str, nodes)))
@pytest.mark.parametrize("in_background", [True, False], ids=["early", "late"])
def test_every_rank_holds_what_one_rank_alone_would(nodes: list[int], in_background: bool, alone: Any) -> None:
    case = dataclasses.replace(COMPRESSED, nodes=nodes, buckets=BucketChoice(1024, in_background))
    for state, results in run_ranks(len(nodes), lambda c: train(c, case)):
        assert results == alone[1]
        assert_same(state, alone[0])


def test_the_bits_are_others_than_without(alone: Any) -> None:
    [(state, _)] = run_ranks(1, lambda c: train(c, CASE))
    assert state["parameters"].tobytes() != alone[0]["parameters"].tobytes()


def rounded(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    round_to_bfloat16(values)
    return values


def test_steps_by_hand() -> None:
    """Each shard's gradient with what the step before has left of it, and each sum, is rounded; then SGD."""
    plan = ShardPlan(16, 8, 2, 3)
    case = Case(classes(16, 64), lambda: network(64, 20, 3), lambda p: optim.SGD(p, lr=1.0), plan)
    plain = build_rank(SingleCommunicator(), case)
    rank = build_rank(SingleCommunicator(), dataclasses.replace(case, compressed=True))
    errors = [np.zeros(plain.parameters.size, np.float32) for _ in range(2)]
    vector = np.zeros(plain.team.trained.vector_size, np.float32)
    for step in range(4):
        before = rank.parameters.data.copy()
        plain.parameters.data[:] = before
        plain.parameters.mark_changed()
        sent = []
        weight = 0.0
        for shard in range(2):
            _, shard_weight, *_ = plain.team.shards.compute_into(step, shard, vector)
            weight += shard_weight
            exact = vector[: plain.parameters.size] + errors[shard]
            sent.append(rounded(exact))
            errors[shard] = exact - sent[shard]
        total = rounded(sent[0] + sent[1])
        rank.step.run(step)
        np.testing.assert_array_equal(rank.parameters.data, before - total * (1.0 / weight))
        # After an even number of steps, and after an odd one.
        if step in (0, 3):
            np.testing.assert_array_equal(rank.team.trained.compression.settle(), errors)
            assert any(error.any() for error in errors)


def test_a_step_that_is_skipped_leaves_what_rounding_had_left() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((70, 64)).astype(np.float32)
    inputs[PLAN.epoch_order(0)[PLAN.batch_size + 3]] = math.nan
    case = dataclasses.replace(COMPRESSED, dataset=Dataset(inputs, rng.integers(0, 3, 70)))
    rank = build_rank(SingleCommunicator(), case)
    rank.step.run(0)
    before = rank.team.trained.compression.settle().copy()
    assert before.any()
    assert rank.step.run(1).nonfinite_shards
    np.testing.assert_array_equal(rank.team.trained.compression.settle(), before)
    rank.step.run(2)
    assert rank.team.trained.compression.settle().tobytes() != before.tobytes()


def saved(ranks: list[Rank]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors of a checkpoint, joined from what all ranks hand in, each element once."""
    model: dict[str, np.ndarray] = {}
    optimizer: dict[str, np.ndarray] = {}
    for rank in ranks:
        rank.snapshot.capture()
    for layout in ranks[0].snapshot.layouts():
        whole = np.zeros(layout.size, layout.dtype)
        seen = np.zeros(layout.size, int)
        for rank in ranks:
            for name, start, data in rank.snapshot.pieces(1000):
                if name == layout.name:
                    piece = np.frombuffer(data, layout.dtype)
                    whole[start : start + piece.size] = piece
                    seen[start : start + piece.size] += 1
        assert (seen == 1).all()
        for tensor in layout.tensors:
            size = math.prod(tensor.shape)
            part = whole[tensor.offset : tensor.offset + size].reshape(tensor.shape)
            (model if layout.file == "model" else optimizer)[tensor.name] = part
    return model, optimizer


@pytest.mark.parametrize(("first", "second"), [([0], [0, 1, 2]), ([0, 1, 1], [0, 0]), ([0, 1, 0, 1], [0])])
def test_a_checkpoint_has_what_rounding_has_left_for_any_ranks_that_go_on(
    first: list[int], second: list[int], alone: Any
) -> None:
    def case_of(nodes: list[int]) -> Case:
        buckets = BucketChoice(1024, True) if len(set(nodes)) > 1 else NO_BUCKETS
        return dataclasses.replace(COMPRESSED, nodes=nodes, buckets=buckets)

    def begin(communicator: ThreadCommunicator) -> Rank:
        rank = build_rank(communicator, case_of(first))
        for step in range(2):
            rank.step.run(step)
        rank.team.exchange.close()
        return rank

    ranks = run_ranks(len(first), begin)
    model, optimizer = saved(ranks)
    assert "first.weight.compression_error.7" in optimizer
    num_updates = ranks[0].optimizer.num_steps

    def go_on(communicator: ThreadCommunicator) -> dict[str, np.ndarray]:
        rank = build_rank(communicator, case_of(second))
        if communicator.rank == 0:
            rank.snapshot.check(model, optimizer)
        tensors = (model, optimizer) if communicator.rank == 0 else ({}, {})
        rank.snapshot.restore(*tensors, num_updates, communicator)
        for step in (2, 3):
            rank.step.run(step)
        rank.team.exchange.close()
        return rank.state()

    for state in run_ranks(len(second), go_on):
        assert_same(state, alone[0])
