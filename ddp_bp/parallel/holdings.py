"""Who holds the sum over which nodes of the reduction tree, and where.

Usually each rank holds those of its own shards, as `of_shard_runs` lays them out. When a rank has died, what it had
computed still lies in the memory of its node, and what it had not is computed by others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.communicator import Array
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.tree import Node, maximal_nodes, merge_counts, stack_depth


@dataclass(frozen=True)
class Holdings:
    """The partials of all nodes, which together cover the tree.

    tree_nodes: by node, what its partials stand for.
    owners: in the same order, the ranks that computed them.
    vectors: those of this node, (N,) of `dtype`, in memory that its ranks share.
    """

    tree_nodes: tuple[tuple[Node, ...], ...]
    owners: tuple[tuple[int, ...], ...]
    vectors: tuple[Array, ...]
    dtype: np.dtype[np.generic]


def of_shard_runs(
    arena: Arena, num_elements: int, num_shards: int, dtype: npt.DTypeLike
) -> tuple[list[Array], Holdings]:
    """This rank's stack of vectors (N,), on which it sums its shards by carry, and what all ranks hold when they have.

    What is left of a rank's shards is in the lowest vectors of its stack. Collective.
    """
    communicator, nodes = arena.communicator, arena.nodes
    runs = [shard_run(num_shards, communicator.size, rank) for rank in range(communicator.size)]
    # Everyone's tree nodes and stacks follow from the shard plan, so no rank needs to tell.
    owned = [maximal_nodes(run.start, run.stop, num_shards) for run in runs]
    depths = [stack_depth(merge_counts([(shard, shard + 1) for shard in run], num_shards)) for run in runs]
    mine = nodes.ranks[nodes.node_of_rank[communicator.rank]]
    rows = arena.allocate("partials", (sum(depths[rank] for rank in mine), num_elements), dtype)
    edges = np.cumsum([0, *(depths[rank] for rank in mine)])
    stacks = {rank: rows[first:last] for rank, first, last in zip(mine, edges[:-1], edges[1:], strict=True)}
    holdings = Holdings(
        tree_nodes=_by_node(nodes.ranks, owned),
        owners=_by_node(nodes.ranks, [[rank] * len(nodes_of_rank) for rank, nodes_of_rank in enumerate(owned)]),
        vectors=tuple(stacks[rank][place] for rank in mine for place in range(len(owned[rank]))),
        dtype=np.dtype(dtype),
    )
    return list(stacks[communicator.rank]), holdings


def _by_node(ranks_of_node: Sequence[Sequence[int]], by_rank: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(entry for rank in ranks for entry in by_rank[rank]) for ranks in ranks_of_node)
