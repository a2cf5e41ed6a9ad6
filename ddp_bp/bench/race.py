"""Several ways to do one thing, timed in turns, so that what disturbs the machine disturbs all of them alike.

Knows nothing of what it times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.communicator import Communicator

Seconds = npt.NDArray[np.float64]


def race(
    communicator: Communicator, contestants: Mapping[str, Callable[[int], object]], num_repeats: int, num_warm_up: int
) -> dict[str, Seconds]:
    """Call every contestant in turn, `num_repeats` times, each time after a barrier. Collective.

    A contestant is given the number of the call, counted from 0 with those that warm up.

    Returns:
        For each contestant (num_repeats,): the seconds of each call, those of the rank that took longest.
    """
    own = np.zeros((len(contestants), num_repeats))
    for number in range(num_warm_up + num_repeats):
        for row, function in zip(own, contestants.values(), strict=True):
            communicator.barrier()
            began = perf_counter()
            function(number)
            ended = perf_counter()
            if number >= num_warm_up:
                row[number - num_warm_up] = ended - began
    table = np.zeros((communicator.size, own.size))
    communicator.allgather(own.reshape(-1), table)
    return dict(zip(contestants, table.max(axis=0).reshape(own.shape), strict=True))


def median_ratio(seconds: Seconds, others: Seconds) -> float:
    """The median of the ratios of two contestants, call by call: steadier than the ratio of their medians."""
    return float(np.median(seconds / others))
