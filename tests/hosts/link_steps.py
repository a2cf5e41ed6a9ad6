"""One rank of a measurement of steps between hosts: `link_steps.py BATCH_PER_RANK REPEATS`; rank 0 prints JSON.

It trains a multilayer perceptron of 4.3 million parameters in several ways, in turns. `compute`: each rank for itself;
`transfer`: only the exchange, with nothing to compute; the others are whole steps.

Hosts of one machine have one core each, which also has the link to serve: what the kernel and MPI do for a byte is time
in which nothing is computed. So the share of a core that a transfer takes says what a step takes at least, if the two
overlap as well as they can: `least_of_the_larger`.
"""

from __future__ import annotations

import json
import os
import sys
import time
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


def busy_seconds() -> float:
    """What the cores of this machine have worked since it was started, in user programs, the kernel and interrupts."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq")
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    ticks = dict(zip(names, map(int, line.split()[1:]), strict=False))
    return (sum(ticks.values()) - ticks["idle"] - ticks["iowait"]) / os.sysconf("SC_CLK_TCK")


def core_share(communicator: Communicator, transfer: Callable[[int], object], num_times: int) -> float:
    """The share of a core that each host works while nothing but `transfer` goes on. Collective."""
    communicator.barrier()
    began, busy = time.perf_counter(), busy_seconds()
    for number in range(num_times):
        transfer(number)
    busy, seconds = busy_seconds() - busy, time.perf_counter() - began
    communicator.barrier()
    return busy / seconds / communicator.size


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
    shares = {
        name: core_share(communicator, contestants[name], 4 * num_repeats) for name in ("transfer", "transfer, bf16")
    }
    if communicator.rank == 0:
        larger = np.maximum(seconds["compute"], seconds["transfer"])
        least = {
            name: np.maximum(seconds["compute"] + share * seconds[name], seconds[name])
            for name, share in shares.items()
        }
        print(
            json.dumps(
                {
                    "hosts": communicator.size,
                    "batch_per_rank": batch_per_rank,
                    "seconds": {name: float(np.median(each)) for name, each in seconds.items()},
                    "of_the_larger": {name: median_ratio(seconds[name], larger) for name in WAYS},
                    "core_share": shares,
                    "least_of_the_larger": {name: median_ratio(each, larger) for name, each in least.items()},
                    "choice": teams["during"].trained.buckets.line,
                }
            )
        )
    for team in teams.values():
        team.exchange.close()
    communicator.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
