"""Verifying the ledger of a run from nothing but its plan: each sample exactly once an epoch, over all restarts.

The chain is computed anew from the beginning, and what checkpoints and summary say of it is compared. A run that is
still going, or was cut short, is verified up to its last whole line. Reads a run directory; computes no step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddp_bp.data import ShardPlan, digest_ids
from ddp_bp.errors import InputError
from ddp_bp.recipes.load import decode
from ddp_bp.recipes.schema import Recipe
from ddp_bp.worker.ledger import Ledger, Record, read_record
from ddp_bp.worker.rundir import ENVIRONMENT_FILE, LEDGER_FILE, RECIPE_FILE, SUMMARY_FILE, RunDirectory


@dataclass(frozen=True)
class StartedRun:
    """What a run was started with: the resolved recipe, the folder its paths start from, and the plan of samples."""

    recipe: Recipe
    recipe_folder: Path
    plan: ShardPlan
    blas: str


def read_started(path: Path) -> StartedRun:
    """What the run in the folder `path` was started with. Raises InputError if there is no run, or one too old."""
    try:
        recipe = decode((path / RECIPE_FILE).read_bytes(), str(path / RECIPE_FILE))
        environment = json.loads((path / ENVIRONMENT_FILE).read_bytes())
        folder, num_samples = Path(environment["recipe_folder"]), int(environment["training_samples"])
        blas = str(environment["blas"])
    except OSError as error:
        raise InputError(f"{path}: expected a run directory, and {error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path / ENVIRONMENT_FILE}: expected the environment of a run of this version, got {error!r}"
        ) from error
    assert recipe.train.shards is not None
    plan = ShardPlan(num_samples, recipe.train.batch_size, recipe.train.shards, recipe.train.seed)
    return StartedRun(recipe, folder, plan, blas)


def read_ledger(path: Path) -> Iterator[Record]:
    """The records of the run in the folder `path`, without a last line that is not finished yet.

    Raises InputError if there is no ledger, or at a line that is none.
    """
    ledger = path / LEDGER_FILE
    try:
        with ledger.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield read_record(line, f"{ledger}, line {number},")
    except OSError as error:
        raise InputError(f"{ledger}: expected the ledger of a run: {error.strerror}") from error


@dataclass(frozen=True)
class Problem:
    """What is wrong, and at which step (counted from 0), where it has one."""

    step: int | None
    problem: str


@dataclass
class Verification:
    """What was verified: counts are of what was right. `ledger_sha256` is the chain's head after `steps` steps."""

    run_dir: str
    ledger_sha256: str
    steps: int = 0
    whole_epochs: int = 0
    samples: int = 0
    skipped_steps: int = 0
    checkpoints: int = 0
    has_summary: bool = False
    problems: list[Problem] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "valid": self.valid}


def verify_run(run: RunDirectory) -> Verification:
    """Verify the ledger of `run`. Of wrong lines only the first is named: everything after it hangs on it.

    Raises InputError if there is nothing to verify.
    """
    plan = read_started(run.path).plan
    # In this order, so that a running job cannot be ahead in what is read first.
    claims = [*_summary_claim(run.path), *_checkpoint_claims(run)]
    genesis = Ledger.genesis(plan.seed, plan.num_samples, plan.batch_size, plan.num_shards)
    verification, heads = Verification(str(run.path), genesis), {0: genesis}
    wanted, check = {claim.steps for claim in claims}, _Check(plan)
    try:
        for record in read_ledger(run.path):
            if (problem := check.problem(record, verification.ledger_sha256)) is not None:
                verification.problems.append(Problem(check.step, problem))
                break
            check.take(record, verification)
            if verification.steps in wanted:
                heads[verification.steps] = verification.ledger_sha256
    except InputError as error:
        if check.step == 0 and not (run.path / LEDGER_FILE).exists():
            raise
        verification.problems.append(Problem(check.step, str(error)))
    for claim in claims:
        _compare(claim, heads, verification)
    return verification


@dataclass(frozen=True)
class _Claim:
    """What a file says of the ledger: its head after `steps` steps; or why it says nothing."""

    path: Path
    steps: int
    head: str
    problem: str | None = None


def _summary_claim(path: Path) -> list[_Claim]:
    try:
        summary = json.loads((path / SUMMARY_FILE).read_bytes())
        return [_Claim(path / SUMMARY_FILE, int(summary["steps"]), str(summary["ledger_sha256"]))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [_Claim(path / SUMMARY_FILE, 0, "", f"cannot be read: {error!r}")]


def _checkpoint_claims(run: RunDirectory) -> list[_Claim]:
    claims = []
    for entry in run.store.entries():
        head = entry.manifest.ledger_sha256 if entry.manifest is not None else ""
        problem = None if entry.manifest is not None else entry.problem
        claims.append(_Claim(entry.path, entry.step, head, problem))
    return claims


def _compare(claim: _Claim, heads: dict[int, str], verification: Verification) -> None:
    """Count what a file says of the ledger as right, or note what is wrong with it."""
    problem, head = claim.problem, heads.get(claim.steps)
    if problem is None and head is None:
        if verification.problems and verification.problems[0].step is not None:
            return  # What the ledger was there, nobody knows.
        problem = f"is of step {claim.steps}, but the ledger ends after {verification.steps} steps"
    elif problem is None and claim.head != head:
        problem = f"expected {head} as the ledger's hash after {claim.steps} steps, got {claim.head}"
    if problem is not None:
        verification.problems.append(Problem(None, f"{claim.path}: {problem}"))
    elif claim.path.name == SUMMARY_FILE:
        verification.has_summary = True
    else:
        verification.checkpoints += 1


class _Check:
    """Goes through the records of a run and holds each of them against the plan."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan
        self.step = 0
        self._order = np.empty(0, np.int64)
        self._uses = np.zeros(plan.num_samples, np.int64)

    def problem(self, record: Record, head: str) -> str | None:
        """What is wrong with `record`, which comes after `head`; None if nothing is."""
        plan, step = self._plan, self.step
        epoch, step_in_epoch = plan.position(step)
        if record.step == step and step_in_epoch == 0:
            self._order, self._uses[:] = plan.epoch_order(epoch), 0
        num_samples = plan.batch_size_at(step_in_epoch)
        if step == 0 and record.step > 0:
            return (
                f"the ledger begins with step {record.step}: expected the steps before it as well; if the run began "
                "with a checkpoint of another one, that has them in its ledger"
            )
        for what, got, needed in (
            ("the line of step", record.step, step),
            ("epoch", record.epoch, epoch),
            ("a number of samples of", record.samples, num_samples),
            ("a number of shards of", len(record.shards), plan.num_shards),
            ("a number of results of", len(record.results), plan.num_shards),
        ):
            if got != needed:
                return f"expected {what} {needed}, got {got}"
        for shard, digest in enumerate(record.shards):
            _, lo, hi = plan.shard_range(step, shard)
            ids = self._order[lo:hi]
            expected = f"{digest_ids(ids):016x}"
            if digest != expected:
                return (
                    f"shard {shard}: expected the digest {expected}, of samples {ids[:8].tolist()}"
                    f"{'...' if len(ids) > 8 else ''}, got {digest}: it was fed other samples"
                )
            self._uses[ids] += 1
        if step_in_epoch == plan.steps_per_epoch - 1 and (self._uses != 1).any():
            return f"epoch {epoch} ends here, and sample {np.flatnonzero(self._uses != 1)[0]} was not used exactly once"
        if (problem := _owners_problem(record, plan.num_shards)) is not None:
            return problem
        if (expected := record.follows(head)) != record.chain:
            return f"expected the hash {expected}, got {record.chain}: this line or one before it has been changed"
        return None

    def take(self, record: Record, verification: Verification) -> None:
        """Count a record that is right."""
        self.step += 1
        verification.steps = self.step
        verification.whole_epochs = self.step // self._plan.steps_per_epoch
        verification.samples += record.samples
        verification.skipped_steps += record.skipped
        verification.ledger_sha256 = record.chain


def _owners_problem(record: Record, num_shards: int) -> str | None:
    edge = 0
    for rank, first, last in record.owners:
        if first != edge or last <= first or not 0 <= rank < record.world_size:
            return f"owners {record.owners}: expected runs of shards in order, of ranks below {record.world_size}"
        edge = last
    return None if edge == num_shards else f"owners {record.owners}: expected {num_shards} shards, got {edge}"
