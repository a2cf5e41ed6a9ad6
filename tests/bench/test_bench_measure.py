"""Measurements with ranks as threads: that they do the work that they say they time."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ddp_bp.bench import models as models_module
from ddp_bp.bench import protection as protection_module
from ddp_bp.bench import scaling as scaling_module
from ddp_bp.bench import shards as shards_module
from ddp_bp.bench import training as training_module
from ddp_bp.bench.exchange import measure_exchange
from ddp_bp.bench.memory import measure_memory, model_of
from ddp_bp.bench.models import BenchModel, OurTraining, made_up_samples
from ddp_bp.bench.products import both_ways
from ddp_bp.bench.protection import measure_protection
from ddp_bp.bench.scaling import Turns, measure_scaling
from ddp_bp.bench.shards import measure_shards
from ddp_bp.bench.summing import MpiAllreduce, OurExchange
from ddp_bp.bench.torch_orders import Found, Look, Steps
from ddp_bp.bench.torch_peer import torch_peer
from ddp_bp.bench.torch_process import TorchProcess
from ddp_bp.bench.torch_ranks import torch_ranks
from ddp_bp.bench.training import measure_training, num_parameters
from ddp_bp.bench.update import build_update
from ddp_bp.errors import DistributedError, InputError, RemoteError
from ddp_bp.parallel.nodes import Nodes, find_nodes
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.failures import RankFailure
from ddp_bp.worker.ledger import Ledger

SMALL = BenchModel((6, 5, 3), batch_per_rank=4, steps_per_block=2)


@pytest.fixture(autouse=True)
def no_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks as threads of one process cannot have a process group of PyTorch's each."""
    if request.node.get_closest_marker("parity") is None:
        monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (models_module, protection_module, scaling_module, shards_module, training_module):
        monkeypatch.setattr(module, "MODELS", {"small": SMALL})


def ours(communicator, node_of_rank: list[int] | None = None) -> OurExchange:
    nodes = find_nodes(communicator) if node_of_rank is None else Nodes(node_of_rank)
    return OurExchange(communicator, nodes, num_elements=5000, ring=3)


WAYS = {
    "ours": ours,
    "ours on two nodes": lambda c: ours(c, [0, 0, 1][: c.size]),
    "MPI": lambda c: MpiAllreduce(c, num_elements=5000, ring=3),
}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", WAYS)
def test_every_rank_can_read_the_sum_that_numpy_gives(name: str, size: int) -> None:
    parts = np.random.default_rng(0).integers(-1000, 1000, (4, size, 5000)).astype(np.float32)

    def run(communicator) -> None:
        way = WAYS[name](communicator)
        way.verify(communicator)
        assert not any(part.any() for part in way.parts)
        for number in range(4):  # the ring has three
            way.parts[number % 3][:] = parts[number, communicator.rank]
            communicator.barrier()
            way.run(number)
            np.testing.assert_array_equal(way.sums[number % 3], parts[number].sum(axis=0))
            communicator.barrier()

    run_ranks(size, run)


def test_a_wrong_sum_is_an_error_on_the_rank_that_reads_it() -> None:
    def run(communicator):
        way = ours(communicator)
        right = way.run

        def wrong(number: int) -> None:
            right(number)
            communicator.barrier()
            if number == 1 and communicator.rank == 0:
                way.sums[1][7] += 1
            communicator.barrier()

        way.run = wrong  # type: ignore[method-assign]
        with pytest.raises(DistributedError, match=r"OurExchange on rank \d of 2: expected sums of 3, got .* 3 to 4"):
            way.verify(communicator)

    run_ranks(2, run)


def test_the_update_that_is_timed_is_an_adam_step_with_the_mean_of_the_partials() -> None:
    num_parameters = 70_000

    def run(communicator):
        update, partial = build_update(communicator, find_nodes(communicator), num_parameters)
        partial = partial.copy()
        for step in range(2):
            update.take_step(step, communicator.size, 1)
        return partial, update._parameters.data.copy()

    outcomes = run_ranks(2, run)
    gradient = (outcomes[0][0].astype(np.float64) + outcomes[1][0]) / 2
    # With an unchanging gradient both averages are unbiased, so that each step is lr * g / (|g| + eps).
    expected = -2e-3 * gradient / (np.abs(gradient) + 1e-8)
    for _, parameters in outcomes:
        np.testing.assert_allclose(parameters, expected, rtol=1e-4, atol=1e-9)
    assert not np.array_equal(outcomes[0][0], outcomes[1][0])


def test_a_report_of_the_exchange_has_every_size_and_way() -> None:
    reports = run_ranks(2, lambda c: measure_exchange(c, [8, 4096], 3000, num_repeats=3, cache_bytes=4096))
    assert reports[0] == reports[1]
    report = reports[0]
    assert (report.world_size, report.num_nodes, report.repeats, report.torch) == (2, 1, 3, None)
    assert [size.num_bytes for size in report.sizes] == [8, 4096]
    assert [size.ring for size in report.sizes] == [8, 2]
    for size in report.sizes:
        assert [contender.name for contender in size.contenders] == ["ddp_bp", "MPI"]
        assert size.contenders[0].ratio == 1
        assert all(contender.seconds > 0 for contender in size.contenders)
    assert report.update.bytes_moved == 3000 * 4 * 8
    assert report.update.copy_share > 0
    assert report.copy_bytes_per_second > 0


# ---- whole steps


def test_steps_are_those_of_a_job_and_go_on_from_block_to_block() -> None:
    def run(communicator, *counts: int) -> float:
        training = OurTraining(communicator, SMALL)
        return [training.steps(count) for count in counts][-1]

    whole = run_ranks(2, lambda c: run(c, 1, 30))
    assert run_ranks(2, lambda c: run(c, 11, 10, 10)) == whole
    assert whole[0] == whole[1]
    assert whole[0] < run_ranks(2, lambda c: run(c, 1))[0]


def test_made_up_samples_are_the_same_everywhere() -> None:
    (x, t), (again, _) = made_up_samples(SMALL, 12), made_up_samples(SMALL, 12)
    assert (x.shape, x.dtype, t.shape, t.dtype) == ((12, 6), np.float32, (12,), np.int64)
    assert x.tobytes() == again.tobytes()
    assert set(t) <= {0, 1, 2}


def test_a_report_of_training_without_pytorch_is_ours_alone(small_models) -> None:
    [report, other] = run_ranks(2, lambda c: measure_training(c, ["small"], 2))
    assert report == other
    assert (report.world_size, report.blocks, report.torch) == (2, 2, None)
    [model] = report.models
    assert (model.name, model.description) == ("small", "6-5-3, batch 4 a rank")
    assert model.num_parameters == 6 * 5 + 5 + 5 * 3 + 3
    assert model.ddp is None
    assert model.seconds_per_step > 0
    assert model.products.ddp_ratio is None
    assert model.products.share > 0


@pytest.mark.parametrize("num_shards", [1, 2])
def test_the_products_of_a_step_are_those_of_every_layer_and_of_backward(num_shards) -> None:
    layers = [6 * 5, 5 * 3]
    for products in both_ways(SMALL, num_shards):
        # Forward, the gradients of the weights, and of what enters every layer but the first.
        assert products.num_operations == 2 * SMALL.batch_per_rank * (2 * sum(layers) + layers[1])
        products.steps(2)


def test_a_report_of_memory_without_pytorch_is_ours_alone() -> None:
    [report, other] = run_ranks(2, lambda c: measure_memory(c, 50_000))
    assert report.num_parameters == other.num_parameters == 4 * (111 * 111 + 111)
    assert (report.world_size, report.num_nodes, report.torch, report.ratio) == (2, 1, None, None)
    [result] = report.results
    assert result.name == "ddp_bp"
    assert result.before_bytes > 0


@pytest.mark.parametrize("count", [8, 1000, 10**6, 10**8])
def test_a_network_has_about_as_many_parameters_as_asked_for(count: int) -> None:
    model = model_of(count)
    assert abs(num_parameters(model) - count) <= 4 * model.widths[0] + 4


@pytest.mark.parity
def test_ddp_trains_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    inputs, targets = made_up_samples(SMALL, 4)
    communicator = SingleCommunicator()
    with torch_peer(communicator, find_nodes(communicator)) as peer:
        assert peer is not None
        assert peer.version == torch.__version__
        vector = np.arange(5, dtype=np.float32)
        peer.allreduce(vector)()
        assert vector.tolist() == [0, 1, 2, 3, 4]
        training = peer.ddp(SMALL.widths, inputs, targets, 25)
        shapes = [tuple(parameter.shape) for parameter in training._model.parameters()]
        assert shapes == [(5, 6), (5,), (3, 5), (3,)]
        first = training.steps(1)
        assert training.steps(50) < first
    assert not torch.distributed.is_initialized()


@pytest.mark.parity
def test_pytorch_trains_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    communicator = SingleCommunicator()
    with torch_ranks(communicator, find_nodes(communicator)) as peer:
        assert peer is not None
        assert peer.version == torch.__version__
        peer.build(SMALL, 25)
        peer.build(SMALL, 1)
        first = peer.steps(25, 1)
        assert peer.steps(25, 50) < first
        peer.build(SMALL, 25)
        assert abs(peer.steps(25, 1) - first) < 1, "a new network starts anew"
        process = peer._process
        assert process.poll() is None
    assert process.returncode == 0
    assert not torch.distributed.is_initialized(), "this process takes no part"


@pytest.mark.parity
def test_the_end_of_pytorchs_process_is_an_error() -> None:
    communicator = SingleCommunicator()
    with (
        pytest.raises(DistributedError, match=r"rank 0: the process for PyTorch has ended, when told Steps"),
        torch_ranks(communicator, find_nodes(communicator)) as peer,
    ):
        assert peer is not None
        peer.build(SMALL, 1)
        peer._process.kill()
        peer._process.wait()
        peer.steps(1, 2)


def test_orders_that_take_others_before_them_are_refused() -> None:
    process = TorchProcess()
    assert process.carry_out(Look("127.0.0.1", 0, 1)) == Found(None), "no PyTorch here"
    with pytest.raises(InputError, match=r"told .*count=1.*, which takes another order before it"):
        process.carry_out(Steps(25, 1))


# ---- protection


def test_a_report_of_protection_takes_the_same_steps_with_and_without(
    small_models, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, lines = [], []

    class Watched(OurTraining):
        def __init__(self, *arguments, **settings) -> None:
            super().__init__(*arguments, **settings)
            jobs.append(self)

    class Recorded(Ledger):
        def commit(self, *arguments, **settings) -> None:
            super().commit(*arguments, **settings)
            lines.append(arguments[0])

    monkeypatch.setattr(protection_module, "OurTraining", Watched)
    monkeypatch.setattr(protection_module, "Ledger", Recorded)
    [report, other] = run_ranks(2, lambda c: measure_protection(c, ["small"], 4))
    assert report == other
    assert (report.world_size, report.blocks, report.goes_on) == (2, 4, True)
    [model] = report.models
    assert (model.name, model.description) == ("small", SMALL.description)
    assert model.seconds_per_step > 0
    assert model.overhead > -1
    # On each rank three jobs of five kinds, of which four mark, and four have a ledger; 7 blocks of 2 steps each.
    assert len(jobs) == 2 * 15
    assert [job.team.journal.marks for job in jobs].count(True) == 2 * 9
    assert len(lines) == 2 * 9 * 7 * SMALL.steps_per_block
    assert sum(job.team.shards.gradient_size.squared() == 0 for job in jobs) == 2 * 6
    assert {job.num_steps for job in jobs} == {7 * SMALL.steps_per_block}
    weights = [job.team.trained.parameters.data.tobytes() for job in jobs]
    assert len(set(weights)) == 1


# ---- shards


def test_a_report_of_shards_has_one_a_rank_and_the_numbers_asked_for(small_models) -> None:
    [report, other] = run_ranks(2, lambda c: measure_shards(c, ["small"], [4, 2], 3))
    assert report == other
    [model] = report.models
    assert [shards.num_shards for shards in model.shards] == [2, 4, 8]
    assert model.shards[0].ratio == 1
    assert all(shards.seconds_per_step > 0 and shards.ratio > 0 for shards in model.shards)


def test_more_shards_take_the_same_steps() -> None:
    one, four = (run_ranks(2, lambda c: OurTraining(c, SMALL, number).steps(20)) for number in (1, 4))  # noqa: B023
    assert one == pytest.approx(four, rel=1e-4)
    assert one != four, "another order of summation"


# ---- scaling


@pytest.mark.parametrize("size", [1, 3])
def test_a_report_of_scaling_has_every_number_of_ranks(small_models, size: int) -> None:
    reports = run_ranks(size, lambda c: measure_scaling(c, ["small"], 2))
    assert all(report == reports[0] for report in reports)
    [model] = reports[0].models
    assert [ranks.num_ranks for ranks in model.ranks] == list(range(1, size + 1))
    assert model.ranks[0].efficiency == 1
    assert all(ranks.samples_per_second > 0 for ranks in model.ranks)
    assert all(ranks.node_bytes > 0 for ranks in model.ranks)


@pytest.mark.parametrize("node_of_rank", [[0, 0, 0], [0, 0, 1]])
def test_only_those_whose_turn_it_is_work(node_of_rank: list[int]) -> None:
    def run(communicator) -> list[int | None]:
        turns = Turns(communicator, Nodes(node_of_rank))
        rank = communicator.rank
        return [turns.take((lambda: 10 * count + rank) if rank < count else None) for count in (1, 3, 2)]  # noqa: B023

    assert run_ranks(3, run) == [[10, 30, 20], [None, 31, 21], [None, 32, None]]


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_a_turn_wakes_the_others_and_is_everyones(broken: int) -> None:
    def work(rank: int) -> None:
        if rank == broken:
            raise ArithmeticError("no")

    def run(communicator) -> str:
        turns, rank = Turns(communicator, find_nodes(communicator)), communicator.rank
        with pytest.raises((RankFailure, RemoteError)) as caught:
            turns.take((lambda: work(rank)) if rank < 2 else None)
        return type(caught.value).__name__

    names = run_ranks(3, run)
    assert names == ["RankFailure" if rank == broken else "RemoteError" for rank in range(3)]
