"""Ranks that die at any point of a step, as threads: the others finish it, and all bits are as if nobody had died.

Deaths come where a rank times its phases, between any two pieces of work, and where it marks what it writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
import threading
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_worker_update import OPTIMIZERS
from worker_cases import Case, Rank, assert_same, build_rank, build_trained, classes, network, rank_of

from ddp_bp import nn, optim
from ddp_bp.data import ShardPlan
from ddp_bp.errors import NodeLostError, PeerLostError, RemoteError
from ddp_bp.parallel.bucket_choice import BucketChoice
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.journal import Journal
from ddp_bp.parallel.nodes import Nodes, share
from ddp_bp.parallel.threads import ThreadCommunicator, run_ranks
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker import recovery
from ddp_bp.worker.crew import Crew
from ddp_bp.worker.failures import RankFailure
from ddp_bp.worker.phases import Phase, PhaseClock
from ddp_bp.worker.recovery import Recovery
from ddp_bp.worker.team import Team, brief, build_team

# A step has at least 8 laps. Whoever dies does so before the last step but one, so that all others hear of it.
NUM_STEPS = 6
LAST_LAP = 30
PLAN = ShardPlan(35, 8, 4, 3)
# 8,095 parameters: several pages, so that slices of several ranks are not empty.
WIDE = Case(classes(35, 64), lambda: network(64, 119, 3), lambda p: optim.Adam(p, lr=0.01), PLAN)


class MortalClock(PhaseClock):
    """Its rank dies at the `at`-th lap that it counts, 0 being the first."""

    def __init__(self, communicator: Any, at: int | None) -> None:
        super().__init__(PHASE_BUCKETS_SECONDS)
        self.communicator, self.laps_left = communicator, at

    def lap(self, phase: Phase) -> None:
        super().lap(phase)
        if self.laps_left is not None:
            self.laps_left -= 1
            if self.laps_left < 0:
                self.communicator.die()


class Marks(threading.local):
    """How many marks the rank of this thread still makes in journals before it dies; None if it does not."""

    communicator: Any = None
    left: int | None = None


MARKS = Marks()


@pytest.fixture
def mortal_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank dies right after a mark: nothing of the write that was announced is done then, or all of it."""
    mark = Journal.mark

    def mark_and_die(journal: Journal, number: int) -> None:
        mark(journal, number)
        if MARKS.left is not None:
            MARKS.left -= 1
            if MARKS.left < 0:
                MARKS.communicator.die()

    monkeypatch.setattr(Journal, "mark", mark_and_die)


def equip(team: Team) -> None:
    """What a rank needs besides a team: nothing here."""


def train(
    communicator: Communicator,
    case: Case,
    deaths: dict[int, int],
    built: threading.Barrier,
    num_spares: int = 0,
    marks: dict[int, int] | None = None,
) -> tuple[dict[str, np.ndarray], list[float], tuple[int, ...]] | None:
    """Take all steps, going on with those that are left, spares among them.

    What is then held whole, the losses, and who was in the last team; None on a spare that was not called.
    `deaths`, `marks`: for ranks that die, after how many laps or marks. Nobody begins before all have `built` what they
    need.
    """
    MARKS.communicator, MARKS.left = communicator, (marks or {}).get(communicator.rank)
    clock = MortalClock(communicator, deaths.get(communicator.rank))
    trained, nodes, failures = build_trained(communicator, case, clock=clock)
    crew, release = Crew(communicator, nodes, num_spares), communicator.duplicate()
    group = crew.team_communicator
    team = None if group is None else build_team(trained, group, crew.nodes_of(crew.working))
    built.wait(20)
    losses: list[float] = []
    stands, result = team is not None, None
    while len(losses) < NUM_STEPS:
        if team is None and not is_needed(crew, release):
            return None
        try:
            if team is None or not stands:
                raise PeerLostError("in the place of a dead rank")
            result = team.step.run(len(losses))
        except PeerLostError:
            recovery, stands = Recovery(crew, trained, team, lambda team: equip(team)), False
            team = recovery.run()
            if recovery.result is not None:
                losses.append(recovery.result.loss)
            if team is None:
                continue
            with contextlib.suppress(PeerLostError):
                losses = brief_newcomers(team, losses)
                stands = True
            continue
        losses.append(result.loss)
    release.revoke()
    assert team is not None
    return whole_state(rank_of(team, failures)), losses, crew.working


def is_needed(crew: Crew, release: Communicator) -> bool:
    """Whether a spare is to take part in a recovery; otherwise the others have come to their end."""
    deadline = monotonic() + 20
    while not crew.needs_spares():
        if release.is_revoked():
            return False
        assert monotonic() < deadline
        sleep(0.0005)
    return True


def brief_newcomers(team: Team, losses: list[float]) -> list[float]:
    """All that have taken steps have taken the same; the others are told of them."""
    everyone = [json.loads(said) for said in team.communicator.allgather_bytes(json.dumps(losses).encode())]
    longest = max(everyone, key=len)
    assert all(said in ([], longest) for said in everyone)
    brief(team.trained, team.communicator, everyone.index(longest))
    return longest


def whole_state(rank: Rank) -> dict[str, np.ndarray]:
    state = rank.state()
    if rank.team.nodes.ranks != (tuple(range(len(rank.team.nodes.node_of_rank))),) and not rank.team.exchange.is_copied:
        # On several nodes the optimizer's state is in parts.
        state = {name: values for name, values in state.items() if name not in rank.optimizer.state}
    return state


def check(
    case: Case, size: int, deaths: dict[int, int], num_spares: int = 0, marks: dict[int, int] | None = None
) -> int:
    """Compare with an undisturbed run of one rank; how many ranks were in the team at the end.

    `size`: of the team; with `num_spares` more ranks.
    """
    alone = dataclasses.replace(case, nodes=None)
    [(expected, losses, _)] = run_ranks(1, lambda c: train(c, alone, {}, threading.Barrier(1)))
    built = threading.Barrier(size + num_spares)
    outcomes = run_ranks(size + num_spares, lambda c: train(c, case, deaths, built, num_spares, marks))
    left = [outcome for outcome in outcomes if outcome is not None]
    for state, own_losses, team in left:
        assert own_losses == losses
        assert len(team) == len(left)
        assert_same(state, {name: values for name, values in expected.items() if name in state})
    return len(left)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.data())
def test_any_ranks_may_die_at_any_time(size: int, data: st.DataObject) -> None:
    """All but one at most, at random points, also while others recover."""
    victims = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size - 1, unique=True))
    deaths = {victim: data.draw(st.integers(0, LAST_LAP), label=f"laps of {victim}") for victim in victims}
    assert check(WIDE, size, deaths) >= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.data())
def test_spares_take_the_place_of_the_dead(size: int, num_spares: int, data: st.DataObject) -> None:
    """Those that were called may die as well, and so may all that were in the first team but one."""
    ranks = range(size + num_spares)
    victims = data.draw(st.lists(st.sampled_from(ranks), max_size=size + num_spares - 1, unique=True))
    if set(range(size)) <= set(victims):
        victims.remove(data.draw(st.integers(0, size - 1), label="the one that lives"))
    deaths = {victim: data.draw(st.integers(0, LAST_LAP), label=f"laps of {victim}") for victim in victims}
    # A spare dies only where it was called, for only then it has laps.
    assert check(WIDE, size, deaths, num_spares) >= min(size, len(ranks) - len(victims))


@pytest.mark.parametrize("laps", range(0, 16, 3))
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_team_is_whole_again(laps: int, victim: int) -> None:
    case = dataclasses.replace(WIDE, build=batch_norm_network, nodes=[0, 1, 0, 2, 0])
    case = dataclasses.replace(case, dataset=classes(40, 64), plan=ShardPlan(40, 8, 4, 3))
    if victim == 1:  # the only one of its node
        case = dataclasses.replace(case, nodes=[0, 0, 1, 2, 0])
    if victim == 2:
        case = dataclasses.replace(case, nodes=[0, 1, 1, 2, 1])
    assert check(case, 3, {victim: laps}, num_spares=2) == 3, "the spare of another node cannot help, the second can"


@pytest.mark.parametrize("laps", range(16))
@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_at_every_lap_of_a_step(laps: int, victim: int) -> None:
    assert check(WIDE, 2, {victim: laps}) == 1


@pytest.mark.parametrize("clip_norm", [None, 0.3], ids=["", "clipped"])
@pytest.mark.parametrize("ema_decay", [None, 0.9], ids=["", "averaged"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("laps", [9, 11, 12, 13, 14, 15])
def test_every_optimizer_is_finished_by_others(
    name: str, ema_decay: float | None, clip_norm: float | None, laps: int
) -> None:
    case = dataclasses.replace(WIDE, optimizer=OPTIMIZERS[name], clip_norm=clip_norm, ema_decay=ema_decay)
    check(case, 3, {1: laps})


@pytest.mark.usefixtures("mortal_marks")
@pytest.mark.parametrize("clip_norm", [None, 0.3], ids=["", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("marks", range(6, 13))
def test_a_write_that_was_under_way_is_made_by_others(name: str, clip_norm: float | None, marks: int) -> None:
    case = dataclasses.replace(WIDE, optimizer=OPTIMIZERS[name], clip_norm=clip_norm)
    check(case, 3, {}, marks={1: marks})


@pytest.mark.usefixtures("mortal_marks")
@pytest.mark.parametrize("laps", range(9, 24))
@pytest.mark.parametrize("marks", [6, 8, 10])
def test_who_is_to_make_a_write_may_die_before_it_does(marks: int, laps: int) -> None:
    assert check(WIDE, 3, {2: laps}, marks={1: marks}) == 1


@pytest.mark.usefixtures("mortal_marks")
@settings(max_examples=100, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2), st.booleans(), st.booleans(), st.data())
def test_who_makes_a_write_for_others_may_die_of_it(
    size: int, num_spares: int, is_frozen: bool, has_nodes: bool, data: st.DataObject
) -> None:
    """Several die in one step or in different ones, also of what they take over of each other."""
    victims = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size - 1, unique=True))
    if has_nodes:
        victims = [victim for victim in victims if victim > 1]
    marks = {victim: data.draw(st.integers(0, 24), label=f"marks of {victim}") for victim in victims}
    deaths = {victim: data.draw(st.integers(9, LAST_LAP), label=f"laps of {victim}") for victim in victims[1:]}
    case = dataclasses.replace(
        WIDE,
        build=partly_frozen_network if is_frozen else WIDE.build,
        optimizer=OPTIMIZERS[data.draw(st.sampled_from(["Adam", "AdamW", "RMSprop", "Lion", "SGD", "Adagrad"]))],
        nodes=[rank % 2 for rank in range(size + num_spares)] if has_nodes else None,
    )
    check(case, size, deaths, num_spares, marks)


def partly_frozen_network() -> nn.Module:
    """What is updated of a block is in several pieces."""
    model = network(64, 119, 3)
    for position, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(position % 2 == 0)
    return model


def batch_norm_network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 3))


def sync_network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 40), nn.SyncBatchNorm(40), nn.ReLU(), nn.Linear(40, 3))


@pytest.mark.parametrize("build", [batch_norm_network, sync_network])
@pytest.mark.parametrize("laps", [3, 8, 12, 14, 16, 20, 26])
def test_buffers_and_sums_over_shards_survive(build: Any, laps: int) -> None:
    case = dataclasses.replace(WIDE, build=build, dataset=classes(40, 64), plan=ShardPlan(40, 8, 4, 3))
    check(case, 3, {2: laps})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, LAST_LAP), st.integers(0, 3))
def test_a_rank_of_several_nodes_may_die_where_another_of_its_node_is_left(laps: int, victim: int) -> None:
    check(dataclasses.replace(WIDE, nodes=[0, 1, 0, 1]), 4, {victim: laps})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, LAST_LAP), st.integers(0, 3), st.booleans())
def test_a_rank_may_die_while_buckets_are_exchanged(laps: int, victim: int, in_background: bool) -> None:
    check(dataclasses.replace(WIDE, nodes=[0, 1, 0, 1], buckets=BucketChoice(1024, in_background)), 4, {victim: laps})


@pytest.mark.parametrize("clip_norm", [None, 0.3], ids=["", "clipped"])
@pytest.mark.parametrize("name", ["Adam", "LAMB"])
@pytest.mark.parametrize("laps", [10, 13, 15])
def test_every_node_finishes_the_update_of_its_own_copy(name: str, clip_norm: float | None, laps: int) -> None:
    case = dataclasses.replace(WIDE, optimizer=OPTIMIZERS[name], clip_norm=clip_norm, ema_decay=0.9)
    check(dataclasses.replace(case, nodes=[0, 1, 0], buckets=BucketChoice(2048, True)), 3, {2: laps})


def test_a_node_of_which_nobody_is_left_ends_the_step_on_all_others() -> None:
    case = dataclasses.replace(WIDE, nodes=[0, 1, 0])

    built = threading.Barrier(3)

    def run(communicator: Communicator) -> str:
        with pytest.raises(NodeLostError, match=r"all ranks of a node have died \(ranks \[\[1\]\]\)") as caught:
            train(communicator, case, {1: 7}, built)
        return str(caught.value)

    first, dead, last = run_ranks(3, run)
    assert dead is None
    assert first == last


def test_spares_hear_as_well_that_a_restart_helps() -> None:
    """Else they would say that the job ends for an error that comes again."""
    case, built = dataclasses.replace(WIDE, nodes=[0, 1, 0]), threading.Barrier(3)

    def run(communicator: Communicator) -> str:
        with pytest.raises(NodeLostError) as caught:
            train(communicator, case, {1: 7}, built, num_spares=1)
        return str(caught.value)

    first, dead, spare = run_ranks(3, run)
    assert "all ranks of a node have died" in first and dead is None and "cannot go on" in spare


@pytest.mark.parametrize("what", ["build_team", "build_finishing_team", "equip"])
def test_a_rank_that_finds_no_memory_to_go_on_with_lets_all_go_on_from_a_checkpoint(
    what: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    built = threading.Barrier(4)
    module = sys.modules[__name__] if what == "equip" else recovery
    build = getattr(module, what)

    def build_or_fail(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is poor[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        return build(*arguments, **options)

    poor: list[threading.Thread] = []
    monkeypatch.setattr(module, what, build_or_fail)

    def run(communicator: Communicator) -> str:
        if communicator.rank == 1:
            poor.append(threading.current_thread())
        with pytest.raises(NodeLostError) as caught:
            train(communicator, WIDE, {2: 12}, built)
        return str(caught.value)

    first, own, dead, last = run_ranks(4, run)
    assert "rank 1 cannot go on without the dead: OSError: [Errno 24] Too many open files" in own
    assert dead is None and first == last and "cannot go on" in first
    assert "rank 1 failed at step" in capfd.readouterr().err


def test_who_has_offered_memory_may_die_before_others_have_taken_it() -> None:
    def run(communicator: ThreadCommunicator) -> None:
        if communicator.rank == 0:
            # What a process has open is gone with it.
            communicator.allgather_bytes(json.dumps([os.getpid(), 2**20]).encode())
            communicator.die()
        with pytest.raises(PeerLostError):
            share(communicator, Nodes([0, 0, 0]), 8, "lost")

    run_ranks(3, run)


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 0]])
def test_a_job_whose_gradients_are_compressed_goes_on_from_a_checkpoint(nodes: list[int]) -> None:
    case = dataclasses.replace(WIDE, nodes=nodes, buckets=BucketChoice(1024, True), compressed=True)
    built = threading.Barrier(3)

    def run(communicator: Communicator) -> str:
        with pytest.raises(NodeLostError, match=r"with exchange.compression the job must go on from a checkpoint"):
            train(communicator, case, {2: 7}, built)
        return "told"

    assert run_ranks(3, run) == ["told", "told", None]


class RaisesLater(nn.Module):
    """Raises whenever one thread has computed more than so many shards: only in the place of another."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        self.model, self.limit, self.counts = model, limit, threading.local()

    def forward(self, x: Any) -> Any:
        self.counts.value = getattr(self.counts, "value", 0) + 1
        if self.counts.value > self.limit:
            raise ValueError("boom")
        return self.model(x)


def test_an_error_in_the_place_of_a_dead_rank_ends_the_job_on_all() -> None:
    built = threading.Barrier(3)

    def run(communicator: Communicator) -> tuple[str, list[Any]]:
        rank = build_rank(
            communicator,
            dataclasses.replace(WIDE, plan=ShardPlan(35, 8, 3, 3)),
            wrap=lambda model: RaisesLater(model, 1),
            clock=MortalClock(communicator, 1 if communicator.rank == 2 else None),
        )
        crew = Crew(communicator, rank.team.nodes)
        built.wait(20)
        with pytest.raises(PeerLostError):
            rank.step.run(0)
        with pytest.raises((RankFailure, RemoteError)) as caught:
            Recovery(crew, rank.team.trained, rank.team).run()
        return type(caught.value).__name__, rank.failures

    outcomes = [outcome for outcome in run_ranks(3, run) if outcome is not None]
    assert sorted(name for name, _ in outcomes) == ["RankFailure", "RemoteError"]
    assert [str(error) for _, failures in outcomes for error, _ in failures] == ["boom"]
