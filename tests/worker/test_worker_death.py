"""Ranks that kill themselves: exactly at the point that was named, and nowhere before."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from worker_cases import Case, build_rank, classes

from ddp_bp import optim
from ddp_bp.errors import InputError
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.worker import death as death_module
from ddp_bp.worker.death import Death, Point, decode_deaths, die_at, encode_deaths, read_death
from ddp_bp.worker.failures import RankFailure

ADAM = Case(classes(34, 6), optimizer=lambda parameters: optim.Adam(parameters, lr=0.05))


DEATHS: list[tuple[int, list[str]]] = []
"""In which step, and the functions that the thread was in then, the innermost first."""


class Died(BaseException):
    """In place of the end of the process."""


@pytest.fixture(autouse=True)
def mortal(monkeypatch: pytest.MonkeyPatch):
    """Tells of a death, and where the thread then is, instead of dying."""

    def die(_: Death, step: int) -> None:
        threading.settrace(None)  # type: ignore[arg-type]
        sys.settrace(None)
        names, frame = [], sys._getframe(2)
        while frame is not None:
            names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            frame = frame.f_back
        DEATHS.append((step, names))
        raise Died

    before = sys.gettrace()
    DEATHS.clear()
    monkeypatch.setattr(death_module, "_die", die)
    yield
    sys.settrace(before)


def steps_until(death: Death) -> tuple[int, list[str]]:
    """Take steps on one rank until it dies; what stands in DEATHS then."""
    rank, taken = build_rank(SingleCommunicator(), ADAM), [0]
    die_at(death, lambda: taken[0])
    # What is raised while shards are computed, the step tells all ranks in its own way.
    with pytest.raises((Died, RankFailure)):
        for step in range(8):
            rank.step.run(step)
            taken[0] += 1
    return DEATHS.pop()


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ("forward", "train"),
        ("backward", "backward"),
        ("before-agree", "conclude"),
        ("reduce", "total_of"),
        ("optimizer", "_update_block"),
    ],
)
def test_a_rank_dies_where_it_was_told_to(point: Point, inside: str) -> None:
    step, names = steps_until(Death(0, point, 3))
    assert step == 3 and inside in {name.partition(":")[0] for name in names}


def test_another_thread_ends_the_process_while_mpi_has_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    is_dead = threading.Event()

    def die(_: Death, step: int) -> None:
        found.append((step, threading.get_ident()))
        is_dead.set()

    monkeypatch.setattr(death_module, "_die", die)
    rank, taken = build_rank(SingleCommunicator(), ADAM), [0]
    die_at(Death(0, "agree", 3), lambda: taken[0])
    for step in range(4):
        assert not is_dead.is_set()
        rank.step.run(step)
        taken[0] += 1
    assert is_dead.wait(10)
    threading.settrace(None)  # type: ignore[arg-type]
    [(step, thread)] = found
    assert step == 3 and thread != threading.get_ident()


def test_passes_are_counted_from_the_step_on() -> None:
    # One agreement a step.
    assert steps_until(Death(0, "before-agree", 2, passes=3))[0] == 5
    lines: list[Any] = [steps_until(Death(0, "optimizer", 1, passes)) for passes in (0, 5)]
    assert [step for step, _ in lines] == [1, 1]
    assert lines[0][1] != lines[1][1], "it is further on in the same block"
    calls: list[Any] = [steps_until(Death(0, "forward", 1, passes)) for passes in (0, 5)]
    assert [step for step, _ in calls] == [1, 1]
    # The innermost is the tracer's own.
    assert calls[0][1][1].startswith("train:") and not calls[1][1][1].startswith("train:"), "it is further inside"


def test_what_a_rank_says_before_it_dies_can_be_read() -> None:
    line = "ddp-bp: rank 3 kills itself at step 17: before-commit\n"
    assert read_death(line) == Death(3, "before-commit", 17)
    assert read_death("ddp-bp: rank 3 kills itself at step 17: nowhere") is None
    assert read_death("ddp-bp: rank 3 has died") is None


def test_deaths_that_cannot_be_read_are_refused() -> None:
    assert encode_deaths([]) == "" and decode_deaths("") == []
    with pytest.raises(InputError, match="deaths of ranks: expected what `ddp-bp chaos` writes, got 'rank 3'"):
        decode_deaths("rank 3")
