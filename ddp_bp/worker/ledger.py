"""The ledger: which samples each step used, as a chain of hashes that only the right history can give.

Each record's hash covers the one before it, the step, and for every shard a digest of the sample ids that its owner
really fed. The hash does not cover who computed what, so it is the same for any number of ranks and across restarts;
the world size stands beside it for people. After a restart, the records of repeated steps replace those that no
checkpoint had kept, so that the file is always one history. Knows nothing of files or sockets: it makes lines.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence


class Ledger:
    """The head of the chain, and the lines that lead to it and have not been taken yet."""

    def __init__(self, chain_sha256: str, world_size: int, *, keeps_lines: bool = True) -> None:
        """`chain_sha256`: the head to go on from, as 64 hex digits; `genesis` gives the first.

        `keeps_lines`: whether this rank hands in the lines; the others only follow the chain.
        """
        self._keeps_lines = keeps_lines
        self._head = bytes.fromhex(chain_sha256)
        self._world_size = world_size
        self._lines: list[str] = []

    @staticmethod
    def genesis(seed: int, num_samples: int, batch_size: int, num_shards: int) -> str:
        """The hash before the first step: it fixes the plan from which every step's samples follow."""
        return hashlib.sha256(struct.pack("<4Q", seed, num_samples, batch_size, num_shards)).hexdigest()

    @property
    def chain_sha256(self) -> str:
        """The head of the chain, 64 hex digits."""
        return self._head.hex()

    def commit(self, step: int, epoch: int, num_samples: int, shard_digests: Sequence[int]) -> None:
        """Record step `step` (counted from 0) with one digest of sample ids per shard."""
        body = struct.pack(f"<{3 + len(shard_digests)}Q", step, epoch, num_samples, *shard_digests)
        self._head = hashlib.sha256(self._head + body).digest()
        if not self._keeps_lines:
            return
        record = {
            "step": step,
            "epoch": epoch,
            "samples": num_samples,
            "shards": [f"{digest:016x}" for digest in shard_digests],
            "chain": self.chain_sha256,
            "world_size": self._world_size,
        }
        self._lines.append(json.dumps(record, separators=(",", ":")))

    def take_lines(self) -> list[str]:
        """The lines added since the last call, each a JSON object without a line break."""
        lines, self._lines = self._lines, []
        return lines
