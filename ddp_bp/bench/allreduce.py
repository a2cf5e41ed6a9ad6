"""Which algorithm of Open MPI's sums a vector fastest: each has to be chosen when the ranks are started.

Open MPI chooses by tables that were measured on other machines. So each of its algorithms is tried in a start of its
own, with a few calls of each size, and what is compared with ours is the best one at that size. Starts nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from ddp_bp.bench.exchange import LIBRARY_CHOICE, ExchangeReport, SizeResult

# Given algorithm, sizes and whether MPI is measured alone: what a start of the ranks found out.
Start = Callable[[str, Sequence[int], bool], ExchangeReport]

_FORCED = ("basic_linear", "nonoverlapping", "recursive_doubling", "ring", "segmented_ring", "rabenseifner")

ALGORITHMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {LIBRARY_CHOICE: ()}
    | {
        name: ("--mca", "coll_tuned_use_dynamic_rules", "1", "--mca", "coll_tuned_allreduce_algorithm", name)
        for name in _FORCED
    }
)
"""The options of Open MPI's mpirun for each of its algorithms."""


def beside_the_best(start: Start, sizes_bytes: Sequence[int]) -> ExchangeReport:
    """Try all algorithms, and measure each size beside the one that is best there."""
    trials = {name: start(name, sizes_bytes, True) for name in ALGORITHMS}
    chosen = best_by_size(trials)
    reports = []
    for name in ALGORITHMS:
        sizes = [size for size in sizes_bytes if chosen[size] == name]
        if sizes:
            reports.append(start(name, sizes, False))
    return joined(reports)


def best_by_size(trials: Mapping[str, ExchangeReport]) -> dict[int, str]:
    """By size in bytes, the algorithm whose median is the smallest."""
    sizes = [size.num_bytes for size in next(iter(trials.values())).sizes]
    seconds = {name: {size.num_bytes: size.contenders[0].seconds for size in trials[name].sizes} for name in trials}
    return {size: min(trials, key=lambda name: seconds[name][size]) for size in sizes}


def joined(reports: Sequence[ExchangeReport]) -> ExchangeReport:
    """One report of all sizes, in their order; what is not by size is that of the first one that has it."""

    def num_bytes(size: SizeResult) -> int:
        return size.num_bytes

    update = next((report.update for report in reports if report.update is not None), None)
    sizes = sorted((size for report in reports for size in report.sizes), key=num_bytes)
    return msgspec.structs.replace(reports[0], sizes=sizes, update=update)
