"""One rank of a measurement of steps between hosts: `link_steps.py BATCH_PER_RANK REPEATS`; rank 0 prints JSON.

It trains a multilayer perceptron of 4.3 million parameters in several ways, in turns. `compute`: each rank for itself;
`transfer`: only the exchange, with nothing to compute; the others are whole steps.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddp_bp.bench.race import median_ratio, race
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.mpi import open_communicator
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.recipes.load import validate
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker.assemble import assemble
from ddp_bp.worker.compose import compose
from ddp_bp.worker.failures import print_failure
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.team import Team

RECIPE = """
[model]
name = "mlp"
options = {{ hidden = [730, 730, 730, 730, 730, 730, 730, 730, 730] }}
[data]
name = "digits"
[train]
batch_size = {batch_size}
shards = {num_shards}
[exchange]
algorithm = "messages"
{exchange}
"""
WAYS = {
    "after": 'overlap = "off"',
    "during": 'overlap = "on"',
    "after, bf16": 'overlap = "off"\ncompression = "bf16"',
    "during, bf16": 'overlap = "on"\ncompression = "bf16"',
}


def team_of(communicator: Communicator, batch_per_rank: int, exchange: str) -> Team:
    text = RECIPE.format(batch_size=batch_per_rank * communicator.size, num_shards=communicator.size, exchange=exchange)
    recipe, problems = validate(tomllib.loads(text))
    assert recipe is not None, problems
    job = assemble(recipe, Path.cwd(), check_data=False)
    rank = communicator.rank
    return compose(
        communicator, job, PhaseClock(PHASE_BUCKETS_SECONDS), lambda error, step: print_failure(error, rank, step)
    ).team


def transfer_of(team: Team) -> Callable[[int], object]:
    def transfer(number: int) -> None:
        team.exchange.begin()
        team.exchange.release_all()
        team.exchange.finish()

    return transfer


def main(batch_per_rank: int, num_repeats: int) -> None:
    communicator = open_communicator()
    teams = {name: team_of(communicator, batch_per_rank, exchange) for name, exchange in WAYS.items()}
    alone = team_of(SingleCommunicator(), batch_per_rank, "")
    contestants: dict[str, Callable[[int], object]] = {
        "compute": alone.step.run,
        "transfer": transfer_of(teams["during"]),
        "transfer, bf16": transfer_of(teams["during, bf16"]),
    }
    contestants.update({name: team.step.run for name, team in teams.items()})
    seconds = race(communicator, contestants, num_repeats, 2)
    if communicator.rank == 0:
        larger = np.maximum(seconds["compute"], seconds["transfer"])
        print(
            json.dumps(
                {
                    "hosts": communicator.size,
                    "batch_per_rank": batch_per_rank,
                    "seconds": {name: float(np.median(each)) for name, each in seconds.items()},
                    "of_the_larger": {name: median_ratio(seconds[name], larger) for name in WAYS},
                    "choice": teams["during"].trained.buckets.line,
                }
            )
        )
    for team in teams.values():
        team.exchange.close()
    communicator.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
