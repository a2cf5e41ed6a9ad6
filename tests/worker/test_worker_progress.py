"""How far a run has come, and that a checkpoint carries it across a restart to the bit."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.checkpoint import Manifest
from ddp_bp.worker.evaluation import EvaluationResult
from ddp_bp.worker.progress import Progress

numbers = st.floats(0, 1e6)
commits = st.lists(st.tuples(numbers, st.integers(1, 50), st.integers(0, 50), st.booleans()), min_size=1, max_size=12)


def commit(progress: Progress, commits: list[tuple[float, int, int, bool]]) -> None:
    for loss, num_samples, correct, first_in_epoch in commits:
        weight, num_answers = float(num_samples), 3.0 * num_samples  # as for a text of 3 characters a sample
        progress.commit(loss, weight, float(correct), num_samples, num_answers, first_in_epoch=first_in_epoch)


def restored(progress: Progress) -> Progress:
    """Through a manifest, as JSON on a disk."""
    manifest = Manifest(
        step=progress.step, epoch=0, step_in_epoch=0, samples=progress.samples, seed=0, shards=1, world_size=1,
        train_loss=progress.last_train_loss, eval_loss=progress.eval_loss, eval_accuracy=progress.eval_accuracy,
        extra=progress.extra(),
    )  # fmt: skip
    return Progress.of(msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest))


def test_skipped_steps_count_and_are_not_in_the_losses() -> None:
    progress = Progress()
    commit(progress, [(8.0, 4, 2, True)])
    progress.skip(4, 3, first_in_epoch=False)
    progress.skip(2, 1, first_in_epoch=False)
    assert (progress.step, progress.updates, progress.samples, progress.last_train_loss) == (3, 1, 10, 2.0)
    assert (progress.skipped_steps, progress.skips_in_a_row, progress.first_skip_shard) == (2, 2, 3)
    assert restored(progress) == progress
    commit(progress, [(4.0, 4, 2, True)])
    assert (progress.skipped_steps, progress.skips_in_a_row, progress.first_skip_shard) == (2, 0, None)
    assert progress.last_train_loss == 1.0


def test_a_new_run_knows_nothing() -> None:
    progress = Progress()
    assert (progress.step, progress.samples) == (0, 0)
    assert progress.last_train_loss is progress.train_accuracy is progress.eval_loss is None
    assert restored(progress) == progress


@settings(max_examples=60)
@given(commits)
def test_losses_are_means_over_the_epoch_so_far_and_counts_go_on(history: list) -> None:
    progress = Progress()
    commit(progress, history)
    begins = [index for index, (*_, first_in_epoch) in enumerate(history) if first_in_epoch]
    epoch = history[begins[-1] if begins else 0 :]
    num_samples = sum(count for _, count, _, _ in epoch)
    assert progress.step == len(history)
    assert progress.samples == sum(count for _, count, _, _ in history)
    assert progress.last_train_loss is not None
    assert math.isclose(progress.last_train_loss, math.fsum(loss for loss, *_ in epoch) / num_samples, rel_tol=1e-12)
    assert progress.train_accuracy == sum(correct for *_, correct, _ in epoch) / (3 * num_samples)


@settings(max_examples=60)
@given(history=commits, cut=st.integers(0, 12), evaluated=st.booleans())
def test_a_restart_anywhere_goes_on_with_the_same_bits(history: list, cut: int, evaluated: bool) -> None:
    undisturbed, resumed = Progress(), Progress()
    for progress in (undisturbed, resumed):
        commit(progress, history[:cut])
        if evaluated:
            progress.evaluated(EvaluationResult(loss=0.1, accuracy=1 / 3, num_samples=3, seconds=0.1))
            progress.schedule = {"best": 0.1, "num_bad_epochs": 2, "lrs": [1 / 3]}
    resumed = restored(resumed)
    assert resumed == undisturbed
    commit(undisturbed, history[cut:])
    commit(resumed, history[cut:])
    assert resumed == undisturbed


def test_an_evaluation_is_noted_with_its_step() -> None:
    progress = Progress(step=9)
    progress.evaluated(EvaluationResult(loss=0.5, accuracy=None, num_samples=3, seconds=0.1))
    assert (progress.eval_loss, progress.eval_accuracy, progress.evaluated_at_step) == (0.5, None, 9)
