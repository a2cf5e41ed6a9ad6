"""Snapshots with ranks as threads: out of so many ranks, into so many others, the same bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from worker_cases import Case, assert_same, build_rank, classes, network, outcome

from ddp_bp import nn, optim
from ddp_bp.data import ShardPlan
from ddp_bp.errors import CheckpointError
from ddp_bp.parallel.threads import run_ranks

CASE = Case(
    classes(34, 64),
    lambda: network(64, 50, 3),
    lambda parameters: optim.AdamW(parameters, lr=0.01),
)
NUM_STEPS = 3


def captured(case: Case, size: int, chunk_bytes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(model, optimizer) tensors, joined from the pieces of all ranks by what `layouts` says."""

    def run(communicator):
        rank = build_rank(communicator, case)
        snapshot = rank.snapshot
        for step in range(NUM_STEPS):
            rank.step.run(step)
        snapshot.capture()
        rank.step.run(NUM_STEPS)  # what is trained after a capture is not in it
        return snapshot.layouts(), [(name, at, bytes(piece)) for name, at, piece in snapshot.pieces(chunk_bytes)]

    outcomes = run_ranks(size, run)
    layouts = outcomes[0][0]
    assert all(other == layouts for other, _ in outcomes)
    arrays = {layout.name: np.zeros(layout.size, layout.dtype) for layout in layouts}
    written = {layout.name: np.zeros(layout.size, int) for layout in layouts}
    for _, pieces in outcomes:
        for name, offset, content in pieces:
            assert 0 < len(content) <= max(chunk_bytes, arrays[name].itemsize)
            values = np.frombuffer(content, arrays[name].dtype)
            arrays[name][offset : offset + len(values)] = values
            written[name][offset : offset + len(values)] += 1
    assert all((count == 1).all() for count in written.values()), "every element once"
    files: dict[str, dict[str, np.ndarray]] = {"model": {}, "optimizer": {}}
    for layout in layouts:
        for tensor in layout.tensors:
            size = int(np.prod(tensor.shape))
            part = arrays[layout.name][tensor.offset : tensor.offset + size]
            files[layout.file][tensor.name] = part.reshape(tensor.shape).copy()
    return files["model"], files["optimizer"]


def test_pieces_are_the_state_at_the_capture_under_the_names_of_pytorch() -> None:
    [rank] = run_ranks(1, lambda c: build_rank(c, CASE))
    for step in range(NUM_STEPS):
        rank.step.run(step)
    model, optimizer = captured(CASE, 1, 1 << 20)
    assert_same(model, rank.parameters.arrays())
    assert list(model) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert model["0.weight"].shape == (50, 64)
    state = rank.optimizer.state_dict()
    del state["num_steps"]
    assert set(optimizer) == set(state)
    assert_same(optimizer, {name: state[name] for name in optimizer})


@pytest.mark.parametrize(("before", "after", "chunk_bytes"), [(1, 3, 1000), (2, 1, 4), (3, 2, 4096), (5, 4, 1 << 20)])
def test_a_round_trip_through_other_ranks_goes_on_with_the_same_bits(before: int, after: int, chunk_bytes: int) -> None:
    model, optimizer = captured(CASE, before, chunk_bytes)

    def resume(communicator):
        rank = build_rank(communicator, dataclasses.replace(CASE, build=lambda: network(64, 50, 3)))
        rank.parameters.data.fill(7)
        communicator.barrier()  # ranks share the memory
        snapshot = rank.snapshot
        root = communicator.rank == 0
        if root:
            snapshot.check(model, optimizer)
        snapshot.restore(model if root else {}, optimizer if root else {}, NUM_STEPS, communicator)
        restored = rank.state()
        rank.step.run(NUM_STEPS)
        return restored, rank.parameters.data.copy()

    def undisturbed(communicator):
        rank = build_rank(communicator, CASE)
        for step in range(NUM_STEPS):
            rank.step.run(step)
        at_capture = rank.state()
        rank.step.run(NUM_STEPS)
        return at_capture, rank.parameters.data.copy()

    [(at_capture, end)] = run_ranks(1, undisturbed)
    for restored, resumed in run_ranks(after, resume):
        assert_same(restored, at_capture)
        assert resumed.tobytes() == end.tobytes()


def test_an_optimizer_without_state_is_only_its_parameters() -> None:
    case = dataclasses.replace(CASE, optimizer=lambda parameters: optim.SGD(parameters, lr=0.1))
    model, optimizer = captured(case, 2, 1 << 20)
    assert len(model) == 4
    assert optimizer == {}


def test_tensors_of_another_model_are_named() -> None:
    model, optimizer = captured(CASE, 1, 1 << 20)
    [rank] = run_ranks(1, lambda c: build_rank(c, CASE))
    snapshot = rank.snapshot
    snapshot.check(model, optimizer)

    def problem(model_changes=None, optimizer_changes=None):
        raised = outcome(lambda: snapshot.check(model | (model_changes or {}), optimizer | (optimizer_changes or {})))
        assert isinstance(raised, CheckpointError)
        assert "written by another model or optimizer" in str(raised)
        return str(raised)

    assert "'0.bias' of the checkpoint: expected float32 (50,), got float32 (51,)" in problem(
        {"0.bias": np.zeros(51, np.float32)}
    )
    assert "'2.weight' of the checkpoint: expected float32 (3, 50), got float64 (3, 50)" in problem(
        {"2.weight": model["2.weight"].astype(np.float64)}
    )
    assert "'0.bias.exp_avg_sq' of the checkpoint: expected float32 (50,), got float32 (1,)" in problem(
        None, {"0.bias.exp_avg_sq": np.zeros(1, np.float32)}
    )
    with pytest.raises(CheckpointError, match=r"'0\.weight\.exp_avg' .* got nothing"):
        snapshot.check(model, {})


# ---- buffers, an average, and weights under two names


class Tied(nn.Module):
    def __init__(self) -> None:
        self.encoder = nn.Linear(64, 50)
        self.norm = nn.BatchNorm1d(50)
        self.hidden = nn.Linear(50, 64)
        self.hidden.weight = self.decoder_weight = nn.Parameter(self.hidden.weight)
        self.again = self.norm
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.hidden(self.norm(self.encoder(x)).tanh()) + 0.1 * self.again(self.encoder(x)).mean())


RICH = dataclasses.replace(CASE, build=Tied, plan=ShardPlan(34, 17, 4, 7), ema_decay=0.5)


def test_a_checkpoint_has_the_names_of_a_state_dict_with_tied_weights_and_buffers() -> None:
    model, optimizer = captured(RICH, 2, 1000)
    [rank] = run_ranks(1, lambda c: build_rank(c, RICH))
    for step in range(NUM_STEPS):
        rank.step.run(step)
    state = rank.objective.model.state_dict()
    assert model.keys() == state.keys() >= {"decoder_weight", "hidden.weight", "norm.running_var", "again.running_var"}
    assert_same(model, {name: state[name] for name in model})
    assert model["norm.num_batches_tracked"] == 2 * NUM_STEPS
    assert rank.snapshot.tied == {
        "hidden.weight": "decoder_weight",
        "again.weight": "norm.weight",
        "again.bias": "norm.bias",
    }
    assert {"norm.running_mean", "again.num_batches_tracked"} < set(rank.snapshot.buffer_names)
    assert optimizer["encoder.weight.ema"].shape == (50, 64)
    weights = {name: a for name, a in model.items() if name not in {*rank.snapshot.buffer_names, *rank.snapshot.tied}}
    assert weights.keys() == rank.parameters.arrays().keys()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 1)])
def test_buffers_and_averages_go_on_with_the_same_bits(before: int, after: int) -> None:
    model, optimizer = captured(RICH, before, 4096)

    def resume(communicator):
        rank = build_rank(communicator, RICH)
        root = communicator.rank == 0
        if root:
            rank.snapshot.check(model, optimizer)
        rank.snapshot.restore(model if root else {}, optimizer if root else {}, NUM_STEPS, communicator)
        restored = rank.state()
        rank.step.run(NUM_STEPS)
        with rank.update.evaluated_weights():
            return restored, rank.parameters.data.copy(), rank.objective.model.state_dict()

    def undisturbed(communicator):
        rank = build_rank(communicator, RICH)
        for step in range(NUM_STEPS):
            rank.step.run(step)
        at_capture = rank.state()
        rank.step.run(NUM_STEPS)
        with rank.update.evaluated_weights():
            return at_capture, rank.parameters.data.copy(), rank.objective.model.state_dict()

    [(at_capture, averaged, end)] = run_ranks(1, undisturbed)
    for restored, resumed, state in run_ranks(after, resume):
        assert_same(restored, at_capture)
        assert resumed.tobytes() == averaged.tobytes()
        assert_same(state, end)


def test_buffers_of_another_model_are_named() -> None:
    model, optimizer = captured(RICH, 1, 4096)
    [rank] = run_ranks(1, lambda c: build_rank(c, RICH))
    del model["norm.running_mean"]
    with pytest.raises(CheckpointError, match=r"'norm\.running_mean' .* expected float32 \(50,\), got nothing"):
        rank.snapshot.check(model, optimizer)
