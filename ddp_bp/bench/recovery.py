"""`ddp-bp bench recovery`: how long a job stands still when a process dies. What is killed, and what times add up to.

Pure: starts and kills nothing, so that it can be tested without doing either.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
import numpy as np

from ddp_bp.errors import InputError

COORDINATOR = "coordinator"
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "rank": "a rank, but not 0",
        "rank-0": "rank 0",
        "two": "two ranks at once",
        COORDINATOR: "the coordinator",
    }
)
"""What is killed, by the name that asks for it."""


class Spread(msgspec.Struct):
    """Of several times: the middle one, one that 95 % of them do not exceed (which is one of them), the longest."""

    median_seconds: float
    p95_seconds: float
    largest_seconds: float


class RankKill(msgspec.Struct):
    """What came of a kill of ranks.

    ranks: who was killed, by the number at the start.
    in_place: whether the others went on; else all ranks were started again.
    seconds: from the kill to the first step committed after it. caught_up_seconds: ... that had not been before.
    step_seconds: an ordinary step of this job, before the kill.
    whole_seconds: from the kill until as many ranks as before had committed a step; None where that was not waited for.
    num_recomputed_shards: how many shards were computed in place of dead ranks. recomputed_seconds: about how long.
    """

    ranks: list[int]
    in_place: bool
    seconds: float
    caught_up_seconds: float
    step_seconds: float
    num_recomputed_shards: int = 0
    recomputed_seconds: float = 0.0
    whole_seconds: float | None = None


class RankKills(msgspec.Struct):
    """All kills of one kind. `beyond_shards`: what is left when the shards computed in place are taken off. `whole`:
    until there were as many ranks as before; None where that was not waited for."""

    killed: str
    num_in_place: int
    seconds: Spread
    beyond_shards: Spread
    caught_up: Spread
    whole: Spread | None
    kills: list[RankKill]


class CoordinatorKill(msgspec.Struct):
    """What came of a kill of the coordinator.

    seconds: until it answered at the same address, and all ranks had introduced themselves.
    step_seconds, step_seconds_meanwhile: a step before the kill, and in that time.
    """

    seconds: float
    step_seconds: float
    step_seconds_meanwhile: float


class CoordinatorKills(msgspec.Struct):
    """All kills of the coordinator. `slowdown`: how many times as long steps took meanwhile, the median."""

    seconds: Spread
    slowdown: float
    kills: list[CoordinatorKill]


class PeerKills(msgspec.Struct):
    """The same network under PyTorch DDP and `torchrun`, which starts all workers again when one has died."""

    torch: str
    step_seconds: float
    seconds: Spread
    caught_up: Spread
    kills: list[RankKill]


class RecoveryReport(msgspec.Struct):
    """All that one run found out. `step_seconds`, `shard_seconds`: medians over the jobs.

    trained: the network, or the recipe. recovery, num_spares: what `fault.recovery` and `fault.spares` were.
    """

    world_size: int
    num_spares: int
    times: int
    mpi: str
    trained: str
    recovery: str
    step_seconds: float
    shard_seconds: float | None
    ranks: list[RankKills]
    coordinator: CoordinatorKills | None
    peer: PeerKills | None


def check_kinds(kinds: Sequence[str], world_size: int) -> None:
    """Raise InputError unless each of these kills leaves a rank."""
    fewest = max((3 if kind == "two" else 1 if kind == COORDINATOR else 2 for kind in kinds), default=1)
    if world_size < fewest:
        asked = ", ".join(KINDS[kind] for kind in kinds)
        raise InputError(
            f"bench recovery: expected at least {fewest} workers, so that one is left when one has killed {asked}; got "
            f"-n {world_size}"
        )


def victims(kind: str, world_size: int, generator: random.Random) -> list[int]:
    """Which ranks a kill of this kind is for, drawn at random where it does not say."""
    if kind == "rank-0":
        return [0]
    if kind == "two":
        return sorted(generator.sample(range(world_size), 2))
    return [generator.randrange(1, world_size)]


def spread(seconds: Sequence[float]) -> Spread:
    """Of one time or more."""
    return Spread(
        float(np.median(seconds)), float(np.quantile(seconds, 0.95, method="inverted_cdf")), float(max(seconds))
    )


def recomputed_seconds(num_shards: int, num_left: int, shard_seconds: float) -> float:
    """How long `num_left` ranks take for so many shards, which they share as evenly as can be."""
    return math.ceil(num_shards / num_left) * shard_seconds


def summed_up(killed: str, kills: Sequence[RankKill]) -> RankKills:
    """Of one kill or more of one kind."""
    whole = [kill.whole_seconds for kill in kills if kill.whole_seconds is not None]
    return RankKills(
        killed=killed,
        num_in_place=sum(kill.in_place for kill in kills),
        seconds=spread([kill.seconds for kill in kills]),
        beyond_shards=spread([kill.seconds - kill.recomputed_seconds for kill in kills]),
        caught_up=spread([kill.caught_up_seconds for kill in kills]),
        whole=spread(whole) if len(whole) == len(kills) else None,
        kills=list(kills),
    )


def coordinator_summed_up(kills: Sequence[CoordinatorKill]) -> CoordinatorKills:
    """Of one kill or more."""
    return CoordinatorKills(
        seconds=spread([kill.seconds for kill in kills]),
        slowdown=float(np.median([kill.step_seconds_meanwhile / kill.step_seconds for kill in kills])),
        kills=list(kills),
    )


def peer_summed_up(torch: str, kills: Sequence[RankKill]) -> PeerKills:
    """Of one kill or more."""
    return PeerKills(
        torch=torch,
        step_seconds=float(np.median([kill.step_seconds for kill in kills])),
        seconds=spread([kill.seconds for kill in kills]),
        caught_up=spread([kill.caught_up_seconds for kill in kills]),
        kills=list(kills),
    )
