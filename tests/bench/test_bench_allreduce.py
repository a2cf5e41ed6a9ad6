"""The choice of MPI's algorithm, from reports that were made up."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_bp.bench.allreduce import ALGORITHMS, beside_the_best
from ddp_bp.bench.exchange import Contender, ExchangeReport, SizeResult, UpdateResult

UPDATE = UpdateResult(10, 320, 1.0, 0.5)


def report(algorithm: str, seconds: dict[int, float], update: UpdateResult | None) -> ExchangeReport:
    sizes = [SizeResult(size, 1, algorithm, [Contender("MPI", time, 1.0, 1.0, 1.0)]) for size, time in seconds.items()]
    return ExchangeReport(2, 1, 5, "Some MPI", None, 64, 1e9, sizes, update)


def test_each_size_is_measured_beside_the_algorithm_that_is_best_there() -> None:
    best = {8: "ring", 64: "rabenseifner", 512: "ring"}
    starts: list[tuple[str, tuple[int, ...], bool]] = []

    def start(algorithm: str, sizes: Sequence[int], is_trial: bool) -> ExchangeReport:
        starts.append((algorithm, tuple(sizes), is_trial))
        is_first = not is_trial and not any(not trial for _, _, trial in starts[:-1])
        seconds = {size: 1.0 if best[size] == algorithm else 2.0 for size in sizes}
        return report(algorithm, seconds, UPDATE if is_first else None)

    found = beside_the_best(start, [8, 64, 512])
    assert starts[: len(ALGORITHMS)] == [(name, (8, 64, 512), True) for name in ALGORITHMS]
    assert starts[len(ALGORITHMS) :] == [("ring", (8, 512), False), ("rabenseifner", (64,), False)]
    assert [(size.num_bytes, size.algorithm) for size in found.sizes] == list(best.items())
    assert found.update == UPDATE


def test_the_librarys_own_choice_is_among_those_that_are_tried() -> None:
    assert () in ALGORITHMS.values()
    assert len(set(ALGORITHMS.values())) == len(ALGORITHMS) == 7
