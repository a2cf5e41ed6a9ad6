"""Ranks that are silent or stuck: who is named and who is evicted, by scripted ranks and a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coordinator_fakes import Machine, hello, report, sent
from test_coordinator_membership import samples

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.coordinator.memory import memory_of, recall
from ddp_bp.coordinator.status import status_of
from ddp_bp.wire import messages as m

BEAT = 0.5
WORKING = "forward"


class Ranks(Machine):
    """Three ranks that train. `doing`: the phase of each that is awake, which stays what it is until it is changed."""

    def __init__(self, run_dir: Path, num_present: int = 3, **changes: Any) -> None:
        super().__init__(run_dir, **{"world_size": 3, "parent_fd": 0, **changes})
        for rank in range(num_present):
            self.receive(str(rank).encode(), hello(rank, world_size=3, process=f"name-{rank}"))
        self.doing: dict[int, str] = dict.fromkeys(range(3), WORKING)
        self.since = dict.fromkeys(range(3), self.now)
        self.left: list[e.Instruction] = []

    def do(self, **phases: str) -> None:
        """Ranks, as `r0`, begin something else."""
        for name, phase in phases.items():
            self.doing[int(name[1:])] = phase
            self.since[int(name[1:])] = self.now

    def live(self, seconds: float) -> list[e.Instruction]:
        """Time passes; whoever is awake has heartbeats, and answers where its threads are."""
        instructions: list[e.Instruction] = []
        end = self.now + seconds
        while self.now < end:
            for rank, phase in self.doing.items():
                position = m.Position(7, phase, self.now - self.since[rank])
                instructions += self.receive(str(rank).encode(), m.Heartbeat(position))
            for _ in range(5):
                instructions += self._answered(self.tick(BEAT / 5))
        return instructions

    def _answered(self, instructions: list[e.Instruction]) -> list[e.Instruction]:
        more: list[e.Instruction] = []
        for identity, question in sent(instructions, m.TellStacks):
            if int(identity) in self.doing:
                threads = [m.ThreadStack("MainThread", [f"rank {int(identity)}"])]
                more += self.receive(identity, m.Stacks(question.request_id, threads))
        return instructions + more

    def named(self) -> dict[int, str]:
        return {one.rank: one.reason for one in self.coordinator.suspicions(self.now)}


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(tmp_path)


def kills(instructions: list[e.Instruction]) -> list[e.Kill]:
    return [one for one in instructions if isinstance(one, e.Kill)]


def warnings(instructions: list[e.Instruction]) -> list[str]:
    return [one.text for one in instructions if isinstance(one, e.Log) and one.level == "warning"]


# ---- naming


def test_a_rank_of_which_nothing_is_heard_is_named_and_no_more_when_it_is_back(ranks: Ranks) -> None:
    ranks.live(1.0)
    del ranks.doing[1]
    ranks.live(0.5)
    assert ranks.named() == {}
    (text,) = warnings(ranks.live(1.0))
    assert "rank 1 (process 101 on node; step 7, forward) has not been heard of for 1.5 s" in text
    assert ranks.named() == {1: "silent"}
    rows = status_of(ranks.coordinator, ranks.now)["ranks"]
    assert [row["suspected"] for row in rows] == [None, "silent", None]
    assert rows[1]["doing"] == "forward" and 1.5 < rows[1]["heartbeat_age_seconds"] < 2.1
    ranks.doing[1] = WORKING
    assert warnings(ranks.live(1.0)) == ["rank 1 is heard of again, and goes on"]
    assert ranks.named() == {}


def test_the_one_that_all_others_wait_for_is_named(ranks: Ranks) -> None:
    ranks.do(r0="waiting", r2="waiting")
    ranks.live(1.0)
    assert ranks.named() == {}
    ranks.live(1.0)
    assert ranks.named() == {1: "stuck"}
    ranks.since[1] = ranks.now
    ranks.live(0.5)
    assert ranks.named() == {}, "it makes progress"


@pytest.mark.parametrize("first", ["dies", "is stuck"])
def test_a_stuck_rank_is_named_and_evicted_also_where_others_wait_to_go_on_without_a_dead_one(
    ranks: Ranks, first: str
) -> None:
    ranks.live(1.0)
    if first == "is stuck":
        ranks.do(r0="waiting", r2="waiting")
        ranks.live(5.0)
    del ranks.doing[2]
    ranks.event(e.Disconnected(b"2"))
    if first == "dies":
        ranks.do(r0="waiting")
        ranks.live(5.0)
    ranks.live(2.0)
    assert ranks.named() == {1: "stuck", 2: "silent"}
    assert kills(ranks.live(50.0)) == []
    assert [kill.rank for kill in kills(ranks.live(5.0))] == [1]
    assert ranks.coordinator.lookout.evictions.num_evictions == {"stuck": 1}


def test_all_that_wait_for_a_silent_one_are_in_no_deadlock(ranks: Ranks) -> None:
    ranks.live(1.0)
    del ranks.doing[1]
    ranks.do(r0="waiting", r2="waiting")
    ranks.live(5.0)
    assert ranks.named() == {1: "silent"}


@pytest.mark.parametrize("evicted", [False, True])
def test_once_a_spare_has_died_the_others_are_watched_as_before(tmp_path: Path, evicted: bool) -> None:
    ranks = Ranks(tmp_path, world_size=2, num_spares=1, silence_seconds=3.0)
    ranks.live(1.0)
    del ranks.doing[2]
    if evicted:
        assert [kill.rank for kill in kills(ranks.live(6.0))] == [2]
        ranks.event(e.Killed(2, "killed"))
    ranks.event(e.Disconnected(b"2"))
    ranks.do(r0="waiting")
    assert kills(ranks.live(30.0)) == [], "nobody is silent any more"
    assert ranks.named() == {1: "stuck"} and ranks.coordinator.state is State.TRAINING
    del ranks.doing[1]
    assert [kill.rank for kill in kills(ranks.live(6.0))] == [1]


def test_a_spare_out_of_reach_is_struck_from_the_spares_at_its_deadline(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, world_size=2, num_spares=1, silence_seconds=3.0)
    ranks.live(1.0)
    del ranks.doing[2]
    assert [kill.rank for kill in kills(ranks.live(6.0))] == [2]
    ranks.event(e.Killed(2, "elsewhere"))
    assert samples(ranks)["ddp_bp_spares_connected", ""] == 0
    assert [row["rank"] for row in status_of(ranks.coordinator, ranks.now)["ranks"]] == [0, 1]
    ranks.do(r0="waiting")
    ranks.live(2.0)
    assert ranks.named() == {1: "stuck"}, "others are watched as before"
    del ranks.doing[1]
    assert [kill.rank for kill in kills(ranks.live(6.0))] == [1]


@pytest.mark.parametrize("first", [1, 2])
def test_a_stopped_spare_is_killed_at_its_own_deadline_also_while_others_go_on_without_a_dead_rank(
    tmp_path: Path, first: int
) -> None:
    """They wait in MPI for the spare, whoever was heard of last."""
    ranks = Ranks(tmp_path, world_size=2, num_spares=1, silence_seconds=3.0)
    ranks.do(r0="waiting")
    ranks.live(1.0)
    del ranks.doing[first]
    ranks.live(0.5)
    del ranks.doing[3 - first]
    ranks.event(e.Disconnected(b"1"))
    killed = {}
    while len(killed) < 2 and ranks.now < 1020:
        for kill in kills(ranks.live(0.5)):
            killed[kill.rank] = ranks.now
            ranks.event(e.Killed(kill.rank, "gone" if kill.rank == 1 else "killed"))
    # The rest is the time that ranks have to say where their threads are.
    assert killed.keys() == {1, 2} and killed[2] <= 1000 + 1.5 + 3.0 + 3.0
    ranks.receive(b"0", m.Membership(1, 0, 1, [1, 2], []))
    assert sent(ranks.live(30.0), m.End) == [] and ranks.coordinator.state is State.TRAINING


@pytest.mark.parametrize("dies", ["before", "long after"])
def test_a_spare_that_nobody_can_kill_ends_a_job_that_waits_for_it_and_no_other(tmp_path: Path, dies: str) -> None:
    ranks = Ranks(tmp_path, world_size=2, num_spares=1, silence_seconds=10.0)
    ranks.live(1.0)
    del ranks.doing[2]

    def die() -> None:
        del ranks.doing[1]
        ranks.event(e.Disconnected(b"1"))
        ranks.do(r0="waiting")

    ranks.live(5.0)
    if dies == "before":
        die()
    assert kills(ranks.live(4.0)) == []
    assert [kill.rank for kill in kills(ranks.live(3.0))] == [2]
    ranks.event(e.Killed(2, "elsewhere"))
    if dies == "long after":
        ranks.do(r0="waiting", r1="waiting")
        assert sent(ranks.live(30.0), m.End) == [], "nobody needs it"
        die()
    instructions = ranks.live(3.0)
    ((identity, end),) = sent(instructions, m.End)
    assert identity == b"0" and "MPI waits for rank 2, a spare that is silent" in end.reason
    assert ranks.coordinator.state is State.FAILED
    (fault,) = [one.record for one in instructions if isinstance(one, e.AppendFault)]
    assert (fault["event"], fault["why"]) == ("not gone on", end.reason)


def test_a_spare_that_has_come_back_or_takes_part_ends_no_job(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, world_size=2, num_spares=1, silence_seconds=3.0)
    ranks.live(1.0)
    del ranks.doing[2]
    assert [kill.rank for kill in kills(ranks.live(6.0))] == [2]
    ranks.event(e.Killed(2, "elsewhere"))
    del ranks.doing[1]
    ranks.event(e.Disconnected(b"1"))
    ranks.do(r0="waiting")
    ranks.live(1.0)
    ranks.receive(b"2", hello(2, world_size=3, process="name-2"))
    ranks.do(r2="waiting")
    assert b"0" not in [identity for identity, _ in sent(ranks.live(2.5), m.End)]
    for identity, number in ((b"0", 0), (b"2", 1)):
        ranks.receive(identity, m.Membership(1, number, 2, [1], []))
    assert sent(ranks.live(30.0), m.End) == []


def test_a_spare_can_only_be_silent_and_then_nobody_need_wait_for_it(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, world_size=2, num_spares=1, silence_seconds=3.0)
    ranks.do(r0="waiting", r2="other")
    ranks.live(2.0)
    assert ranks.named() == {1: "stuck"}, "the other one of the team waits; what a spare does is no sign of anything"
    ranks.do(r0=WORKING)
    del ranks.doing[2]
    instructions = ranks.live(2.0)
    assert ranks.named() == {2: "silent"} and not kills(instructions)
    assert [one.rank for one in kills(ranks.live(3.0))] == [2]


@pytest.mark.parametrize(
    "phases",
    [
        {"r0": WORKING, "r2": WORKING},
        {"r0": "waiting", "r1": "checkpoint"},
        {"r0": "waiting", "r1": "sampling"},
        {"r0": "waiting", "r1": "other"},
    ],
)
def test_who_works_for_long_while_nobody_waits_or_may_take_its_time_is_well(
    ranks: Ranks, phases: dict[str, str]
) -> None:
    ranks.do(**phases)
    assert kills(ranks.live(200)) == [] and ranks.named() == {}


def test_with_long_steps_waiting_is_nothing_special(ranks: Ranks) -> None:
    phases = {"step": m.PhaseTotal([0] * 18 + [5], 200.0)}  # 40 s a step
    ranks.receive(b"0", report(0, phases=phases))
    ranks.do(r0="waiting", r2="waiting")
    assert kills(ranks.live(110)) == [] and ranks.named() == {}
    assert [kill.rank for kill in kills(ranks.live(15))] == [1]


def test_a_coordinator_that_was_stopped_itself_suspects_nobody(ranks: Ranks) -> None:
    ranks.do(r0="waiting", r2="waiting")
    ranks.live(1.0)
    assert kills(ranks.tick(1000)) == [] and ranks.named() == {}
    assert kills(ranks.tick(0.1)) == [] and ranks.named() == {}


# ---- evicting


@pytest.mark.parametrize(("reason", "seconds"), [("silent", 30), ("stuck", 60)])
def test_at_the_deadline_stacks_are_kept_and_the_process_is_killed(ranks: Ranks, reason: str, seconds: int) -> None:
    ranks.do(r0="waiting", r2="waiting")
    ranks.live(0.5)
    if reason == "silent":
        del ranks.doing[1]
    assert kills(ranks.live(seconds - 1.5)) == []
    instructions = ranks.live(3)
    assert kills(instructions) == [e.Kill(1, 101, "name-1")]
    ((identity, end),) = sent(instructions, m.End)
    assert identity == b"1" and end.reason == f"rank 1 was evicted: {reason} for {seconds} s"
    (fault,) = ranks.event(e.Killed(1, "killed"))
    assert isinstance(fault, e.AppendFault)
    record = fault.record
    assert (record["event"], record["reason"], record["done"]) == ("evicted", reason, {"1": "killed"})
    assert [row["rank"] for row in record["ranks"]] == [1] and record["ranks"][0]["phase"] == "forward"
    answered = [row["threads"][0]["frames"][0] if row["threads"] else None for row in record["stacks"]]
    assert answered == ["rank 0", None if reason == "silent" else "rank 1", "rank 2"]
    assert ranks.coordinator.lookout.evictions.num_evictions == {reason: 1}
    assert status_of(ranks.coordinator, ranks.now)["evictions"] == 1


@pytest.mark.parametrize("setting", ["silence_seconds", "hang_seconds"])
def test_zero_means_never(tmp_path: Path, setting: str) -> None:
    ranks = Ranks(tmp_path, **{setting: 0.0})
    ranks.do(r0="waiting", r2="waiting")
    if setting == "silence_seconds":
        del ranks.doing[1]
    assert kills(ranks.live(500)) == []
    assert list(ranks.named()) == [1]


def test_a_silent_rank_is_not_evicted_while_others_have_work(ranks: Ranks) -> None:
    ranks.do(r0="waiting", r2=WORKING)
    del ranks.doing[1]
    assert kills(ranks.live(55)) == []
    ranks.do(r2="waiting")
    assert [kill.rank for kill in kills(ranks.live(2))] == [1]


def test_when_all_are_silent_it_is_the_coordinator_that_is_cut_off(ranks: Ranks) -> None:
    ranks.doing.clear()
    assert kills(ranks.live(500)) == []
    assert len(ranks.named()) == 3


def test_a_stopped_rank_is_evicted_when_all_others_have_ended_and_nobody_is_left_to_wait_for_it(ranks: Ranks) -> None:
    ranks.live(0.5)
    ranks.doing.clear()
    for identity in (b"0", b"2"):
        ranks.event(e.Disconnected(identity))
    assert kills(ranks.live(29)) == []
    assert [kill.rank for kill in kills(ranks.live(3))] == [1], "and not those that have ended"
    assert ranks.coordinator.lookout.evictions.num_evictions == {"silent": 1}


def test_a_coordinator_that_takes_over_evicts_all_if_nobody_comes_back_to_it(ranks: Ranks, tmp_path: Path) -> None:
    """They have ended, or are stopped: who lives comes at once."""
    ranks.live(0.5)
    another = Ranks(tmp_path, takes_over=True, num_present=0)
    recall(another.coordinator, memory_of(ranks.coordinator))
    another.doing.clear()
    assert kills(another.live(29)) == []
    assert [(kill.rank, kill.process) for kill in kills(another.live(3))] == [(n, f"name-{n}") for n in range(3)]


def test_a_coordinator_that_takes_over_evicts_nobody_else_if_one_comes_back(ranks: Ranks, tmp_path: Path) -> None:
    ranks.live(0.5)
    another = Ranks(tmp_path, takes_over=True, num_present=0)
    recall(another.coordinator, memory_of(ranks.coordinator))
    another.receive(b"0", hello(0, world_size=3, process="name-0"))
    another.doing = {0: WORKING}
    assert kills(another.live(100)) == []
    another.do(r0="waiting")
    assert [kill.rank for kill in kills(another.live(3))] == [1, 2]


def test_a_rank_that_is_back_at_the_last_moment_stays(ranks: Ranks) -> None:
    ranks.do(r0="waiting", r2="waiting")
    del ranks.doing[1]
    asked: list[e.Instruction] = []
    while not sent(asked, m.TellStacks):
        asked += ranks.tick(0.1)
        for rank in (0, 2):
            ranks.receive(str(rank).encode(), m.Heartbeat(m.Position(7, "waiting", 9.0)))
    ranks.doing[1] = WORKING
    assert kills(ranks.live(3)) == []


def test_a_rank_on_another_machine_is_killed_by_one_that_is_there(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, num_present=0)
    for rank, machine in enumerate(("a", "b", "b")):
        ranks.receive(b"%d" % rank, hello(rank, world_size=3, process=f"{machine} pid:[1] {rank} 5"))
    ranks.do(r0="waiting", r2="waiting")
    del ranks.doing[1]
    assert [kill.rank for kill in kills(ranks.live(32))] == [1]
    told, fault = ranks.event(e.Killed(1, "elsewhere"))
    assert sent([told], m.KillProcess) == [(b"2", m.KillProcess(101, "b pid:[1] 1 5"))]
    assert isinstance(fault, e.AppendFault) and fault.record["done"] == {"1": "to be killed by rank 2"}


def test_after_an_eviction_a_job_that_goes_on_is_left_alone(ranks: Ranks) -> None:
    ranks.do(r0="waiting", r2="waiting")
    del ranks.doing[1]
    assert kills(ranks.live(32))
    ranks.event(e.Killed(1, "killed"))
    for rank, number in ((0, 0), (2, 1)):
        ranks.receive(str(rank).encode(), m.Membership(1, number, 2, [1]))
    ranks.do(r0=WORKING, r2=WORKING)
    instructions = ranks.live(40)
    assert sent(instructions, m.End) == [] and ranks.coordinator.state is State.TRAINING


def test_after_an_eviction_a_job_that_does_not_go_on_is_ended(ranks: Ranks) -> None:
    ranks.do(r0="waiting", r2="waiting")
    del ranks.doing[1]
    assert kills(ranks.live(32))
    (fault,) = ranks.event(e.Killed(1, "elsewhere"))
    assert isinstance(fault, e.AppendFault) and fault.record["done"] == {"1": "told to end"}
    instructions = ranks.live(25)
    assert [identity for identity, _ in sent(instructions, m.End)] == [b"0", b"1", b"2"]
    assert ranks.coordinator.state is State.FAILED
    assert ranks.coordinator.failure is not None
    assert "has not gone on without rank 1" in ranks.coordinator.failure.error


def test_when_all_wait_for_each_other_all_are_evicted(ranks: Ranks) -> None:
    ranks.do(r0="waiting", r1="waiting", r2="waiting")
    instructions = ranks.live(62)
    assert [kill.rank for kill in kills(instructions)] == [0, 1, 2]
    assert ranks.coordinator.lookout.evictions.num_evictions == {"deadlock": 3}


# ---- stacks on request


def test_a_tool_is_told_where_every_rank_is_also_the_one_that_does_not_answer(ranks: Ranks) -> None:
    ranks.do(r0="waiting")
    ranks.live(1.0)
    del ranks.doing[1]
    instructions = ranks._answered(ranks.receive(b"tool", m.StacksRequest()))
    assert sent(instructions, m.StacksReply) == []
    ((identity, reply),) = sent(ranks.live(2.0), m.StacksReply)
    assert identity == b"tool"
    assert [(row["rank"], row["phase"], row["threads"] is None) for row in reply.ranks] == [
        (0, "waiting", False),
        (1, "forward", True),
        (2, "forward", False),
    ]
    ranks.doing[1] = WORKING
    instructions = ranks._answered(ranks.receive(b"tool", m.StacksRequest()))
    assert len(sent(instructions, m.StacksReply)) == 1, "at once when all have answered"


def test_who_computes_in_the_place_of_an_evicted_rank_has_time(ranks: Ranks) -> None:
    ranks.live(0.5)
    ranks.do(r0="waiting", r2="waiting")
    del ranks.doing[1]
    assert kills(ranks.live(35))
    ranks.do(r0="backward")
    for _ in range(8):
        assert not sent(ranks.live(5), m.End), "it takes longer than a job may stand still"
        ranks.do(r0="forward")
    ranks.do(r0="waiting")
    assert [identity for identity, _ in sent(ranks.live(25), m.End)] == [b"0", b"1", b"2"]
