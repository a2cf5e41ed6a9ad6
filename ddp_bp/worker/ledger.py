"""The ledger: which samples each step used and what came of them, as a chain of hashes that one history alone can give.

Each record's hash covers the one before it, the step, and for every shard a digest of the sample ids that its owner
really fed and a digest of what it computed from them. The hash does not cover who computed what, so it is the same for
any number of ranks and across restarts; membership and owners stand beside it. After a restart, the records of repeated
steps replace those that no checkpoint had kept, so that the file is always one history. Knows nothing of files or
sockets: it makes lines, and reads them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from ddp_bp.errors import InputError

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]

# How many steps wait to be hashed at most.
_MOST_STEPS = 100


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the ledger.

    step, epoch: counted from 0. samples: how many the global batch had.
    shards: for each shard, a digest of its sample ids; see `data.plan.digest_ids`.
    results: for each shard, a digest of its loss and of how large its gradient is; see `digest.result_digest`.
    chain: the hash up to this record.
    membership: the epoch of the membership in which the step was committed, from 0. world_size: its number of ranks.
    owners: who computed what: [rank, first shard, one past the last shard] for each run of shards.
    skipped: whether a loss or gradient was not finite, so that the step changed nothing.
    """

    step: Natural
    epoch: Natural
    samples: Natural
    shards: list[Digest]
    results: list[Digest]
    chain: Hash
    membership: Natural
    world_size: Natural
    owners: list[tuple[int, int, int]]
    skipped: bool = False

    def follows(self, head: str) -> str:
        """The hash that this record has if it comes after the one of `head`."""
        digests = [int(text, 16) for text in (*self.shards, *self.results)]
        numbers = self.step, self.epoch, self.samples, self.skipped
        return _next(bytes.fromhex(head), numbers, digests).hex()


def read_record(line: bytes | str, called: str) -> Record:
    """The record in a line of a ledger. Raises InputError, naming the line as `called`, if there is none."""
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{called} is no line of a ledger of this version: {error}") from error


class _Step(NamedTuple):
    """What is recorded of a step, and the membership in which it was committed."""

    numbers: tuple[int, int, int, bool]
    shard_digests: Sequence[int]
    shard_results: Sequence[int]
    owners: Sequence[int]
    membership: int
    world_size: int


class Ledger:
    """The head of the chain, and the lines that lead to it and have not been taken yet.

    Steps are hashed when somebody asks for either, or some have come together: one by one, between the products of a
    step, each takes several times as long.
    """

    def __init__(self, chain_sha256: str, world_size: int, *, keeps_lines: bool = True, membership: int = 0) -> None:
        """`chain_sha256`: the head to go on from, as 64 hex digits; `genesis` gives the first.

        `keeps_lines`: whether this rank hands in the lines; the others only follow the chain.
        """
        self._keeps_lines = keeps_lines
        self._head = bytes.fromhex(chain_sha256)
        self.membership, self.world_size = membership, world_size
        """The epoch of the membership, and its number of ranks: to be set anew whenever it changes."""
        self._steps: list[_Step] = []
        self._lines: list[str] = []
        self._owners: Sequence[int] | None = None
        self._runs: list[tuple[int, int, int]] = []

    @staticmethod
    def genesis(seed: int, num_samples: int, batch_size: int, num_shards: int) -> str:
        """The hash before the first step: it fixes the plan from which every step's samples follow."""
        return hashlib.sha256(struct.pack("<4Q", seed, num_samples, batch_size, num_shards)).hexdigest()

    @property
    def chain_sha256(self) -> str:
        """The head of the chain, 64 hex digits."""
        self._settle()
        return self._head.hex()

    def go_on_from(self, chain_sha256: str) -> None:
        """Take over another rank's head, which has taken the lines that lead to it."""
        self._settle()
        self._head = bytes.fromhex(chain_sha256)

    def commit(
        self,
        step: int,
        epoch: int,
        num_samples: int,
        shard_digests: Sequence[int],
        shard_results: Sequence[int],
        owners: Sequence[int],
        *,
        skipped: bool = False,
    ) -> None:
        """Record step `step` (counted from 0): for each shard a digest of ids, one of its result, and its rank.

        No sequence may be changed afterwards.
        """
        numbers = step, epoch, num_samples, skipped
        self._steps.append(_Step(numbers, shard_digests, shard_results, owners, self.membership, self.world_size))
        if len(self._steps) >= _MOST_STEPS:
            self._settle()

    def take_lines(self) -> list[str]:
        """The lines added since the last call, each a JSON object without a line break."""
        self._settle()
        lines, self._lines = self._lines, []
        return lines

    def _settle(self) -> None:
        """Hash the steps that have come together, and make their lines."""
        steps, self._steps = self._steps, []
        for step in steps:
            self._head = _next(self._head, step.numbers, (*step.shard_digests, *step.shard_results))
            if self._keeps_lines:
                self._lines.append(msgspec.json.encode(self._record(step)).decode())

    def _record(self, step: _Step) -> Record:
        if step.owners is not self._owners:
            self._owners, self._runs = step.owners, _runs(step.owners)
        number, epoch, num_samples, skipped = step.numbers
        return Record(
            number,
            epoch,
            num_samples,
            _hex(step.shard_digests),
            _hex(step.shard_results),
            self._head.hex(),
            step.membership,
            step.world_size,
            self._runs,
            skipped,
        )


def _next(head: bytes, numbers: tuple[int, int, int, bool], digests: Sequence[int]) -> bytes:
    return hashlib.sha256(head + struct.pack(f"<{4 + len(digests)}Q", *numbers, *digests)).digest()


def _hex(digests: Sequence[int]) -> list[str]:
    return [f"{digest:016x}" for digest in digests]


def _runs(owners: Sequence[int]) -> list[tuple[int, int, int]]:
    runs: list[tuple[int, int, int]] = []
    for shard, owner in enumerate(owners):
        if runs and runs[-1][0] == owner:
            runs[-1] = (owner, runs[-1][1], shard + 1)
        else:
            runs.append((owner, shard, shard + 1))
    return runs
