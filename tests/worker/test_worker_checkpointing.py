"""What the ranks send for a checkpoint: together every element once, and a manifest that a run can go on from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ddp_bp.checkpoint import Manifest
from ddp_bp.errors import DeadlineError, DistributedError
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.recipes import load_recipe
from ddp_bp.wire import messages as m
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker import checkpointing
from ddp_bp.worker.assemble import assemble
from ddp_bp.worker.checkpointing import Checkpointing
from ddp_bp.worker.compose import compose
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.progress import Progress

OVERRIDES = ("train.shards=4", "train.batch_size=64", "model.options.hidden=[40]", "optimizer.name=adam")
CHAIN = "ab" * 32


class Link:
    """Keeps what is sent, and answers from a list."""

    def __init__(self, answers: Iterable[m.FromCoordinator] = ()) -> None:
        self.sent: list[tuple[m.FromWorker, tuple[Any, ...]]] = []
        self.answers = deque(answers)

    def post_stream(self, messages) -> None:
        self.sent += [(message, tuple(bytes(payload) for payload in payloads)) for message, payloads in messages]

    def wait(self, select: Callable[[m.FromCoordinator], Any], silence_seconds: float, what: str) -> Any:
        while self.answers:
            if (selected := select(self.answers.popleft())) is not None:
                return selected
        raise DeadlineError(what)


def build(communicator, link: Link, progress: Progress | None = None) -> Checkpointing:
    recipe, base = load_recipe("digits", OVERRIDES)
    job = assemble(recipe, base, check_data=False)
    job.parameters.data[:] = np.arange(job.parameters.size)
    snapshot = compose(communicator, job, PhaseClock(PHASE_BUCKETS_SECONDS), lambda error, step: None).snapshot
    ledger = Ledger(CHAIN, communicator.size)
    return Checkpointing(job, snapshot, progress or Progress(), ledger, communicator, link, "cd" * 32)  # type: ignore[arg-type]


def alone(link: Link, **progress: Any) -> Checkpointing:
    [communicator] = run_ranks(1, lambda c: c)
    return build(communicator, link, Progress(**progress))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_messages_of_all_ranks_cover_every_element_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(checkpointing, "CHUNK_BYTES", 1000)

    def run(communicator):
        link = Link()
        build(communicator, link).begin("step-7", "asked")
        return link.sent

    outcomes = run_ranks(size, run)
    layouts = outcomes[0][0][0].arrays
    assert {layout.name: layout.file for layout in layouts} == {
        "parameters": "model", "exp_avg": "optimizer", "exp_avg_sq": "optimizer"
    }  # fmt: skip
    covered = {layout.name: np.zeros(layout.size, int) for layout in layouts}
    for rank, sent in enumerate(outcomes):
        (begin, _), *chunks, (end, _) = sent
        assert begin == m.CheckpointBegin("step-7", rank, size, begin.manifest, layouts, "asked")
        assert end == m.CheckpointEnd("step-7", rank)
        for message, (payload,) in chunks:
            assert isinstance(message, m.CheckpointChunk)
            assert (message.request_id, message.rank) == ("step-7", rank)
            assert len(payload) <= 1000
            at = message.offset_elements
            covered[message.array][at : at + len(payload) // 4] += 1
            if message.array == "parameters":
                assert (np.frombuffer(payload, "<f4") == np.arange(at, at + len(payload) // 4)).all()
    assert all((count == 1).all() for count in covered.values())
    for layout in layouts:
        sizes = [int(np.prod(tensor.shape)) for tensor in layout.tensors]
        assert [tensor.offset for tensor in layout.tensors] == [0, *np.cumsum(sizes)[:-1].tolist()]
        assert sum(sizes) == layout.size


def test_what_has_come_to_an_end_is_not_sent_to_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(Link):
        def post_stream(self, messages) -> None:
            self.stream = iter(messages)

    monkeypatch.setattr(checkpointing, "CHUNK_BYTES", 1000)
    link = Lazy()
    checkpoint = alone(link)
    checkpoint.begin("step-7")
    assert [type(next(link.stream)[0]) for _ in range(3)] == [m.CheckpointBegin, m.CheckpointChunk, m.CheckpointChunk]
    checkpoint.done(m.CheckpointDone("step-7", ok=False, message="the disk does not answer"))
    assert list(link.stream) == []


def test_the_manifest_is_where_a_run_goes_on() -> None:
    link = Link()
    progress = {"step": 30, "samples": 1900, "epoch_loss": 0.1 + 0.2, "epoch_weight": 3.0, "last_train_loss": 0.125}
    checkpoint = alone(link, **progress, eval_loss=float("nan"), evaluated_at_step=23)
    checkpoint.begin("step-30")
    fields = link.sent[0][0].manifest  # type: ignore[union-attr]
    assert (fields["step"], fields["epoch"], fields["step_in_epoch"]) == (30, 1, 7), "1438 samples, 64 a step"
    assert (fields["samples"], fields["shards"], fields["world_size"]) == (1900, 4, 1)
    assert (fields["ledger_sha256"], fields["recipe_sha256"]) == (CHAIN, "cd" * 32)
    assert fields["eval_loss"] is None
    manifest = msgspec.json.decode(msgspec.json.encode(fields), type=Manifest)
    assert Progress.of(manifest) == Progress(**progress, evaluated_at_step=23)


def test_one_checkpoint_is_under_way_until_its_own_outcome_comes() -> None:
    checkpoint = alone(Link())
    assert not checkpoint.in_flight
    assert checkpoint.wait() is None
    checkpoint.begin("step-1")
    checkpoint.done(m.CheckpointDone("of a tool", True))
    assert checkpoint.in_flight
    checkpoint.done(m.CheckpointDone("step-1", False))
    assert not checkpoint.in_flight


def test_saving_now_first_waits_for_the_one_under_way() -> None:
    link = Link([m.CheckpointDone("other", True), m.CheckpointDone("step-1", False), m.CheckpointDone("final", True)])
    checkpoint = alone(link)
    checkpoint.begin("step-1")
    assert checkpoint.save_now("final").ok
    assert not checkpoint.in_flight
    begun = [message.request_id for message, _ in link.sent if isinstance(message, m.CheckpointBegin)]
    assert begun == ["step-1", "final"]


def test_a_checkpoint_that_was_not_saved_is_an_error_with_the_reason(tmp_path: Path) -> None:
    checkpoint = alone(Link([m.CheckpointDone("final", False, message="the disk is full")]), step=12)
    with pytest.raises(DistributedError, match="rank 0: the checkpoint of step 12 was not saved: the disk is full"):
        checkpoint.save_now("final")
    with pytest.raises(DeadlineError, match="the outcome of checkpoint final"):
        alone(Link()).save_now("final")


def test_what_is_under_way_is_sent_again_from_its_copy() -> None:
    link = Link()
    checkpoint = alone(link)
    checkpoint.send_again()
    assert link.sent == []
    checkpoint.begin("step-1", "asked")
    first = list(link.sent)
    checkpoint._job.parameters.data[:] = 0.0
    checkpoint._progress.step += 1
    checkpoint.send_again()
    assert link.sent == first + first
    checkpoint.done(m.CheckpointDone("step-1", True, 1, "/c"))
    checkpoint.send_again()
    assert link.sent == first + first
