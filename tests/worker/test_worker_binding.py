"""Shares of cores: each rank has its own, whatever it was allowed."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker import binding
from ddp_bp.worker.binding import Place, bind_to_own_cores, shares


def place(*cores: int | tuple[int, ...], machine: str = "m") -> Place:
    return Place(machine, tuple((core,) if isinstance(core, int) else core for core in cores))


def sets(*groups: tuple[int, ...] | None) -> list[frozenset[int] | None]:
    return [None if group is None else frozenset(group) for group in groups]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([place(0, 1)], sets((0, 1))),
        ([place(0, 1)] * 2, sets((0,), (1,))),
        ([place(2, 5, 7)] * 2, sets((2,), (5, 7))),
        ([place(0, 1, 2, 3)] * 2, sets((0, 1), (2, 3))),
        # Hardware threads of one core go together, and are not two cores.
        ([place((0, 4), (1, 5))] * 2, sets((0, 4), (1, 5))),
        ([place((0, 4), (1, 5))] * 3, sets(None, None, None)),
        ([place(0)] * 2, sets(None, None)),
        # What the launcher has bound stays.
        ([place(0), place(1)], sets((0,), (1,))),
        ([place(0, 1), place(2, 3), place(0, 1), place(2, 3)], sets((0,), (2,), (1,), (3,))),
        ([place(0, 1), place(2), place(2)], sets((0, 1), None, None)),
        # Ranges that overlap in part: whoever set them knows better.
        ([place(0, 1, 2), place(2, 3)], sets(None, None)),
        ([place((0, 4)), place(4)], sets(None, None)),
        # Machines have nothing to do with each other.
        ([place(0, 1), place(0, 1, machine="n"), place(0, 1)], sets((0,), (0, 1), (1,))),
        ([place(0), place(0, machine="n"), place(0)], sets(None, (0,), None)),
    ],
)
def test_shares(places: list[Place], expected: list[frozenset[int] | None]) -> None:
    assert shares(places) == expected


@given(num_cores=st.integers(1, 40), num_ranks=st.integers(1, 40))
def test_cores_are_divided_evenly_and_none_is_left_over(num_cores: int, num_ranks: int) -> None:
    found = shares([place(*range(num_cores))] * num_ranks)
    if num_ranks > num_cores:
        assert found == [None] * num_ranks
        return
    kept = [share for share in found if share is not None]
    assert len(kept) == num_ranks
    assert sorted(itertools.chain(*kept)) == list(range(num_cores))
    assert max(map(len, kept)) - min(map(len, kept)) <= 1


def test_ranks_bind_the_thread_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of two cores with hardware threads, of which this process is allowed three."""
    bound: list[tuple[int, tuple[int, ...]]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 9, 17})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cpus: bound.append((process, tuple(sorted(cpus)))))
    monkeypatch.setattr(binding, "_siblings", lambda cpu: {8: {8, 16}, 9: {9, 17}, 17: {9, 17}}[cpu])
    run_ranks(2, bind_to_own_cores)
    assert sorted(bound) == [(0, (8,)), (0, (9, 17))]


def test_a_system_that_forbids_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    run_ranks(1, bind_to_own_cores)


@pytest.mark.parametrize(
    ("text", "expected"), [("3", {3}), ("3,7", {3, 7}), ("2-4,9", {2, 3, 4, 9}), ("", {3}), ("?", {3})]
)
def test_the_threads_of_a_core_as_linux_lists_them(monkeypatch, tmp_path, text: str, expected: set[int]) -> None:
    (tmp_path / "3").write_text(text + "\n")
    monkeypatch.setattr(binding, "_SIBLINGS", str(tmp_path / "{}"))
    assert binding._siblings(3) == expected
    assert binding._siblings(5) == {5}
