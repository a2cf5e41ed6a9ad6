"""`ddp-bp ledger`: verify which samples a run has used, or look at one of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from ddp_bp.cli import options
from ddp_bp.cli.output import print_json, print_table
from ddp_bp.errors import InputError
from ddp_bp.worker.ledger import Record
from ddp_bp.worker.rundir import RunDirectory
from ddp_bp.worker.verify import read_ledger, read_started, verify_run


@click.group()
def ledger() -> None:
    """Verify the ledger of a run, or show one of its steps."""


@ledger.command()
@options.run_dir_argument
@options.json_option
def verify(run_dir: Path, as_json: bool) -> int:
    """Verify that the run in RUN_DIR has used each sample exactly once an epoch, over all its starts.

    The chain of hashes is computed anew from the recipe, and compared with every checkpoint and the summary. A run that
    is still going is verified up to its last line. Exit code 1 if anything is wrong; the first wrong step is named.
    """
    found = verify_run(RunDirectory(run_dir))
    if as_json:
        print_json(found.as_dict())
        return 0 if found.valid else 1
    rows: list[tuple[str, object]] = [
        ("steps", f"{found.steps:,} ({found.whole_epochs} whole epochs, {found.samples:,} samples)"),
        ("skipped steps", found.skipped_steps),
        ("ledger sha256", found.ledger_sha256),
        ("checkpoints", f"{found.checkpoints} agree"),
        ("summary", "agrees" if found.has_summary else None),
    ]
    rows += [
        (f"problem at step {problem.step}" if problem.step is not None else "problem", problem.problem)
        for problem in found.problems
    ]
    print_table(("ledger", "valid" if found.valid else "NOT valid"), rows)
    return 0 if found.valid else 1


@ledger.command()
@options.run_dir_argument
@click.option("--step", type=click.IntRange(min=0), required=True, help="Which step, counted from 0.")
@options.json_option
def show(run_dir: Path, step: int, as_json: bool) -> None:
    """Show step N of the run in RUN_DIR: for each shard its samples, who computed it, and its result's digest."""
    plan, record = read_started(run_dir).plan, find_record(run_dir, step)
    owners = {shard: rank for rank, first, last in record.owners for shard in range(first, last)}
    shards: list[dict[str, Any]] = [
        {
            "shard": shard,
            "rank": owners.get(shard),
            "sample_ids": plan.shard_ids(step, shard).tolist() if shard < plan.num_shards else None,
            "ids_digest": ids_digest,
            "result": result,
        }
        for shard, (ids_digest, result) in enumerate(zip(record.shards, record.results, strict=False))
    ]
    if as_json:
        left_out = {"shards", "results", "owners"}
        kept = {key: value for key, value in msgspec.to_builtins(record).items() if key not in left_out}
        print_json({"skipped": record.skipped, **kept, "shards": shards})
        return
    print(
        f"step {step}, epoch {record.epoch}, {record.samples} samples{', skipped' * record.skipped}; "
        f"membership {record.membership} of {record.world_size} ranks; chain {record.chain}"
    )
    print_table(
        ("shard", "rank", "ids digest", "result", "sample ids by the plan"),
        [
            (
                row["shard"],
                row["rank"],
                row["ids_digest"],
                row["result"],
                " ".join(map(str, row["sample_ids"] or [])),
            )
            for row in shards
        ],
    )


def find_record(run_dir: Path, step: int) -> Record:
    """The record of `step`. Raises InputError if the ledger does not have it."""
    last = -1
    for record in read_ledger(run_dir):
        if record.step == step:
            return record
        last = record.step
    raise InputError(f"{run_dir}: the ledger has no step {step}; its last one is {last}")
