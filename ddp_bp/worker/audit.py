"""Audits: some shards are computed once more by another rank before the update, so that a wrong machine is named.

Which shards, and by whom, follows from (seed, step), so that every rank knows it. Where none are audited, nothing is
done. Knows nothing of how a shard is computed.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from ddp_bp.data import ShardPlan
from ddp_bp.data.order import AUDIT, random_words
from ddp_bp.errors import DisagreementError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.worker.failures import together
from ddp_bp.worker.shards import ShardComputation


class Assignment(NamedTuple):
    """A shard that is audited, the rank that computes it, and the one that does so once more."""

    shard: int
    owner: int
    auditor: int


class Audit:
    """One rank's part in the audits. Construct and call on all ranks alike."""

    def __init__(self, shards: ShardComputation, plan: ShardPlan, communicator: Communicator, fraction: float) -> None:
        """`fraction`: how many of all (step, shard) pairs are audited, 0 to 1. Of a job of one rank, by itself."""
        self._shards, self._plan, self._communicator = shards, plan, communicator
        self._fraction = fraction
        runs = [shard_run(plan.num_shards, communicator.size, rank) for rank in range(communicator.size)]
        self._owner = [rank for rank, run in enumerate(runs) for _ in run]
        self._assigned: list[Assignment] = []
        self._found: dict[int, int] = {}

    def begin(self, step: int) -> Collection[int]:
        """The shards of step `step` that are audited, of which their owners are to keep full digests."""
        self._found.clear()
        self._assigned = self.assignments(step) if self._fraction else []
        return [assigned.shard for assigned in self._assigned]

    def assignments(self, step: int) -> list[Assignment]:
        """Who audits whom at step `step`: the same on all ranks."""
        words = random_words(self._plan.num_shards, seed=self._plan.seed, index=step, purpose=AUDIT)
        others = self._communicator.size - 1
        found = []
        # The upper 53 bits of a word are a number in [0, 1), the lower 11 choose the rank.
        for shard in np.flatnonzero((words >> np.uint64(11)) * 2.0**-53 < self._fraction).tolist():
            owner = self._owner[shard]
            ahead = 1 + int(words[shard] & np.uint64(2047)) % others if others else 0
            found.append(Assignment(shard, owner, (owner + ahead) % self._communicator.size))
        return found

    def recompute(self, step: int) -> None:
        """Compute the shards that this rank is to audit. Not collective."""
        for shard, _, auditor in self._assigned:
            if auditor == self._communicator.rank:
                _, self._found[shard] = self._shards.recompute(step, shard)

    def compare(self, step: int) -> None:
        """Compare what owners and auditors found. Collective, in steps that have audits.

        Raises DisagreementError on all ranks, naming the rank that differs: by a third rank's computation, where there
        is one.
        """
        if not self._assigned:
            return
        own = np.zeros((2, len(self._assigned)), np.uint64)
        for place, (shard, owner, auditor) in enumerate(self._assigned):
            if owner == self._communicator.rank:
                own[0, place] = self._shards.full_digests[shard]
            if auditor == self._communicator.rank:
                own[1, place] = self._found[shard]
        gathered = np.zeros((self._communicator.size, own.size), np.uint64)
        self._communicator.allgather(own.reshape(-1), gathered)
        table = gathered.reshape(self._communicator.size, *own.shape)
        for place, assigned in enumerate(self._assigned):
            claimed, found = int(table[assigned.owner, 0, place]), int(table[assigned.auditor, 1, place])
            if claimed != found:
                self._accuse(step, assigned, claimed, found)

    def _accuse(self, step: int, assigned: Assignment, claimed: int, found: int) -> None:
        """Have a third rank compute the shard, if there is one, and raise. Collective."""
        shard, owner, auditor = assigned
        rank, size = self._communicator.rank, self._communicator.size
        third = next((other for other in range(size) if other not in (owner, auditor)), None)
        digest = together(self._communicator, lambda: self._shards.recompute(step, shard)[1] if rank == third else 0)
        told = self._communicator.allgather_bytes(json.dumps([socket.gethostname(), digest]).encode())
        hosts, digests = zip(*map(json.loads, told), strict=True)
        votes = [(owner, claimed), (auditor, found)]
        if third is not None:
            votes.append((third, digests[third]))
        ids = self._plan.shard_ids(step, shard)[:8].tolist()
        computed = ", ".join(f"rank {voter} on {hosts[voter]} {digest:#018x}" for voter, digest in votes)
        raise DisagreementError(
            f"audit of step {step}, shard {shard} (sample ids {ids}...): the same samples and parameters gave "
            f"different results: {computed}. {_verdict(votes)}. Take that machine out of the job, and go on from a "
            "checkpoint; or, if the model draws random numbers, have it do so with ddp_bp.engine.generator"
        )


def _verdict(votes: list[tuple[int, int]]) -> str:
    """Who is wrong, as far as the votes, (rank, digest), can tell."""
    digest, count = Counter(digest for _, digest in votes).most_common(1)[0]
    if len(votes) == 3 and count == 2:
        return f"Rank {next(rank for rank, other in votes if other != digest)} computes wrongly"
    ranks = list(dict.fromkeys(rank for rank, _ in votes))
    return f"One of ranks {', '.join(map(str, ranks))} computes wrongly" if len(ranks) > 1 else f"Rank {ranks[0]} does"
