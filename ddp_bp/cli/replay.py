"""`ddp-bp replay`: compute a step of a run once more, and compare with what its ledger recorded."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from ddp_bp.checkpoint import Checkpoint
from ddp_bp.cli import options
from ddp_bp.cli.environment import user_cache
from ddp_bp.cli.kernels import settle_recorded_kernels
from ddp_bp.cli.output import print_json, print_table
from ddp_bp.cli.prepare import warn
from ddp_bp.errors import CheckpointError, InputError
from ddp_bp.worker.assemble import assemble
from ddp_bp.worker.ledger import Record
from ddp_bp.worker.replay import replay as replay_steps
from ddp_bp.worker.rundir import RunDirectory, check_checkpoint
from ddp_bp.worker.verify import read_ledger, read_started


@click.command()
@options.run_dir_argument
@click.option("--step", type=click.IntRange(min=0), required=True, help="Which step, counted from 0.")
@click.option("--shard", type=click.IntRange(min=0), help="Of that step compute this shard only.")
@options.json_option
def replay(run_dir: Path, step: int, shard: int | None, as_json: bool) -> int:
    """Compute step N of the run in RUN_DIR once more, on this one process, and compare it with the ledger.

    It begins at the newest valid checkpoint before the step, or with the initial weights, and compares the steps in
    between as well, and the weights after the step with a checkpoint of then, if there is one. Nothing is written. Exit
    code 1 if anything came out otherwise than recorded.
    """
    started = read_started(run_dir)
    run = RunDirectory(run_dir)
    kernels = settle_recorded_kernels(started.blas)
    if str(kernels.blas) != started.blas:
        warn(f"the run was last started with {started.blas}, this is {kernels.blas}: bits may differ")
    checkpoint = _newest_checkpoint(run, step)
    records = _records(run_dir, checkpoint.manifest.step if checkpoint else 0, step)
    with contextlib.redirect_stdout(sys.stderr):  # what a model of the user's own prints is no part of our output
        job = assemble(started.recipe, started.recipe_folder, check_data=False, cache=user_cache())
        if job.plan != started.plan:
            raise InputError(
                f"{run_dir}: expected the data that it was started with, {started.plan.num_samples} samples, "
                f"got {job.plan.num_samples}: the data files have changed since"
            )
        if checkpoint is not None:
            check_checkpoint(checkpoint, job, warn)
        found = replay_steps(job, checkpoint, records, shard, _weights_after(run, step) if shard is None else None)
    if as_json:
        print_json(found.as_dict())
        return 0 if found.equal else 1
    begin = f"checkpoint {found.checkpoint}" if found.checkpoint else "the initial weights"
    print(f"steps {found.first_step} to {found.step}, from {begin}: {'equal' if found.equal else 'NOT equal'}")
    print_table(
        (f"shard of step {step}", "samples", "recorded", "replayed", ""),
        [
            (row.shard, row.num_samples, row.recorded, row.replayed, "equal" if row.equal else "DIFFERS")
            for row in found.shards
        ],
    )
    if found.differences:
        first = found.differences[0]
        print(f"first difference at step {first.step}: {first.problem}")
    return 0 if found.equal else 1


def _newest_checkpoint(run: RunDirectory, step: int) -> Checkpoint | None:
    """The newest one at or before `step` whose digests are right."""
    for entry in run.store.entries():
        if entry.step > step:
            continue
        try:
            return run.store.load(entry.path)
        except CheckpointError as error:
            warn(f"checkpoint of step {entry.step} is not used: {error}")
    return None


def _weights_after(run: RunDirectory, step: int) -> str | None:
    """The hash of the weights after `step`, if there is a checkpoint of that moment whose digests are right."""
    for entry in run.store.entries():
        if entry.step == step + 1:
            # What is wrong with it is not this step's matter.
            with contextlib.suppress(CheckpointError):
                return run.store.load(entry.path).manifest.weights_sha256
    return None


def _records(run_dir: Path, first: int, step: int) -> list[Record]:
    """The records of steps `first` to `step`."""
    records = [record for record in read_ledger(run_dir) if first <= record.step <= step]
    if [record.step for record in records] != list(range(first, step + 1)):
        steps = f"all steps from {first} to {step}" if first < step else f"step {step}"
        raise InputError(f"{run_dir}: the ledger does not have {steps}; see `ddp-bp ledger verify {run_dir}`")
    return records
