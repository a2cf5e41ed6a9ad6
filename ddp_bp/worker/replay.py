"""Replaying a step of a run on one process, to compare what comes out with what its ledger recorded.

It begins at the newest checkpoint before the step, or with the initial weights, and takes the steps in between as
training does. Knows no run directory: it is given the job, the checkpoint and the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ddp_bp.checkpoint import Checkpoint, weights_sha256
from ddp_bp.errors import InputError
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.compose import Composition, compose
from ddp_bp.worker.failures import print_failure
from ddp_bp.worker.ledger import Ledger, Record
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.restore import first_state, restore


@dataclass(frozen=True)
class ShardOutcome:
    """What came out of a shard of the step that was asked for, and what the ledger has: digests, 16 hex digits."""

    shard: int
    num_samples: int
    recorded: str
    replayed: str

    @property
    def equal(self) -> bool:
        return self.recorded == self.replayed


@dataclass(frozen=True)
class Difference:
    """A step that came out otherwise than recorded: in these shards, or, if there are none, in the chain alone, or in
    the weights."""

    step: int
    shards: list[int]
    problem: str


@dataclass
class Replay:
    """What was replayed: steps `first_step` to `step`, of the last one `shards`.

    `chain_sha256` and `weights_sha256`, of after the step, are None if that was one shard only. `differences`: one
    entry for each step where something differs.
    """

    step: int
    first_step: int
    checkpoint: str | None
    shards: list[ShardOutcome] = field(default_factory=list)
    chain_sha256: str | None = None
    weights_sha256: str | None = None
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        shards = [{**asdict(outcome), "equal": outcome.equal} for outcome in self.shards]
        return {**asdict(self), "shards": shards, "equal": self.equal}


def replay(
    job: Job,
    checkpoint: Checkpoint | None,
    records: Sequence[Record],
    shard: int | None = None,
    weights_after: str | None = None,
) -> Replay:
    """Take the steps of `records` once more, which follow on `checkpoint`, or on the beginning if that is None.

    shard: compute only this one of the last step. weights_after: the `weights_sha256` after the last step, if known.

    Raises:
        InputError: there is no such shard.
        RankFailure: a step raised, or the checkpoint is of another model.
    """
    step, plan = records[-1].step, job.plan
    if shard is not None and shard >= plan.num_shards:
        raise InputError(f"expected a shard below {plan.num_shards}, which the run has, got {shard}")
    communicator = SingleCommunicator()
    composed = compose(communicator, job, PhaseClock(PHASE_BUCKETS_SECONDS), _show_failure)
    if checkpoint is None:
        progress, head = first_state(job)
    else:
        progress, head = restore(communicator, job, composed.snapshot, checkpoint)
    found = Replay(step, progress.step, None if checkpoint is None else str(checkpoint.path))
    ledger = Ledger(head, communicator.size, keeps_lines=False)
    with np.errstate(all="ignore"):
        for record in records:
            job.schedule.apply(record.step)
            # A shard that sums over the others cannot be computed without them.
            if record.step == step and shard is not None and not composed.team.shards.needs_all_shards:
                result, _ = composed.team.shards.recompute(step, shard)
                results = {shard: f"{result.digest:016x}"}
                _compare(record, results, None, found)
                break
            results = _take_step(composed, ledger, job, record)
            if record.step == step and shard is not None:
                results = {shard: results[shard]}
            _compare(record, results, ledger.chain_sha256, found)
            _evaluate(composed, job, record.step + 1)
        else:
            _compare_weights(step, weights_sha256(job.parameters.arrays()), weights_after, found)
    sizes = [hi - lo for _, lo, hi in (plan.shard_range(step, number) for number in range(plan.num_shards))]
    found.shards = [
        ShardOutcome(number, sizes[number], records[-1].results[number], digest) for number, digest in results.items()
    ]
    return found


def _take_step(composed: Composition, ledger: Ledger, job: Job, record: Record) -> dict[int, str]:
    """The digests of the results of all shards."""
    result = composed.team.step.run(record.step)
    epoch, step_in_epoch = job.plan.position(record.step)
    num_samples, skipped = job.plan.batch_size_at(step_in_epoch), bool(result.nonfinite_shards)
    digests = result.shard_digests, result.shard_results
    ledger.commit(record.step, epoch, num_samples, *digests, result.owners, skipped=skipped)
    return {number: f"{digest:016x}" for number, digest in enumerate(result.shard_results)}


def _compare(record: Record, results: dict[int, str], chain_sha256: str | None, found: Replay) -> None:
    differing = [number for number, digest in results.items() if record.results[number] != digest]
    found.chain_sha256 = chain_sha256
    if differing:
        problem = f"the results of shards {', '.join(map(str, differing))} differ from the recorded ones"
        found.differences.append(Difference(record.step, differing, problem))
    elif chain_sha256 is not None and record.chain != chain_sha256 and not found.differences:
        problem = f"all results are as recorded, but the hash is {chain_sha256} and not {record.chain}"
        found.differences.append(Difference(record.step, [], problem))


def _compare_weights(step: int, replayed: str, recorded: str | None, found: Replay) -> None:
    found.weights_sha256 = replayed
    if recorded not in (None, replayed) and not found.differences:
        problem = f"all results are as recorded, but the weights' hash is {replayed} and not {recorded}"
        found.differences.append(Difference(step, [], problem))


def _evaluate(composed: Composition, job: Job, num_steps: int) -> None:
    """Let a rate that follows the evaluations see that of the end of an epoch, as training does."""
    train = job.recipe.train
    epochs, step_in_epoch = job.plan.position(num_steps)
    if job.recipe.schedule.name != "plateau" or step_in_epoch or epochs % train.eval_every_epochs:
        return
    if composed.evaluation is not None:
        job.schedule.evaluated(composed.evaluation.run(num_steps, has_accuracy=job.is_classification).loss)


def _show_failure(error: BaseException, step: int) -> None:
    print_failure(error, 0, step)
