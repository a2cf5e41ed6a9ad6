"""What is started after each start of a job, by scripted ones: again, with as many ranks as can be had, or never."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddp_bp.cli import starts as subject
from ddp_bp.cli.job_start import JobStart
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.placement import Placement
from ddp_bp.cli.run_hold import RunHold, ask_to_stop, hold_run
from ddp_bp.cli.starts import Starts
from ddp_bp.cli.supervise import Attempt, Ending, History
from ddp_bp.errors import HostError, LaunchError
from ddp_bp.recipes.fault import FaultSection

TRAINED = Attempt(Ending.WELL, exit_code=0, has_trained=True)
DEAD = Attempt(Ending.DEATH, why="rank 1 was killed by SIGKILL", has_trained=True)
NEVER_TRAINED = Attempt(Ending.DEATH, why="rank 2 on host ended: Out Of Memory")


def to_be(num_workers: int) -> Attempt:
    """A start that stops to go on with so many ranks."""
    return Attempt(Ending.WELL, exit_code=0, goes_on=True, resize_to=num_workers, has_trained=True)


@dataclass
class Script:
    """What every start is to end with, or to raise, and with what it was begun."""

    endings: list[Attempt | Exception | Callable[[], Attempt]]
    run_dir: Path
    sizes: list[int] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    recoveries: int = 0
    checkpoints: list[Any] = field(default_factory=list)

    def run_attempt(self, start: JobStart, _: object, history: History, *__: object) -> tuple[Attempt, None]:
        self.sizes.append(start.num_workers)
        self.histories.append(history)
        ending = self.endings[len(self.sizes) - 1]
        if isinstance(ending, Exception):
            raise ending
        return ending if isinstance(ending, Attempt) else ending(), None

    # In place of Prepared, its store, HostCheck and TrainingView:

    def entries(self) -> list[Any]:
        return self.checkpoints

    def load(self, path: Path) -> Any:
        return next(one for one in self.checkpoints if one.path == path)

    def is_finished(self) -> bool:
        return len(self.sizes) == len(self.endings)

    def summary(self) -> dict[str, Any]:
        return {"recoveries": self.recoveries}

    def next_start(self, wanted: JobStart) -> JobStart:
        return wanted

    def say(self, text: str) -> None:
        self.said.append(text)

    complain = say


Begin = Callable[..., tuple[Script, Starts, list[str]]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[RunHold]:
    with hold_run(tmp_path) as held:
        yield held


@pytest.fixture
def begin(tmp_path: Path, hold: RunHold, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """A job of 2 ranks whose starts end as is said."""

    class Prepared(Script):
        checkpoint = None

        @property
        def recipe(self) -> Any:
            return type("Recipe", (), {"fault": FaultSection()})

        @property
        def run(self) -> Any:
            return type("Run", (), {"path": tmp_path, "store": self})

    def make(*endings: Attempt | Exception | Callable[[], Attempt]) -> tuple[Script, Starts, list[str]]:
        script = Prepared(list(endings), tmp_path)
        monkeypatch.setattr(subject, "run_attempt", script.run_attempt)
        monkeypatch.setattr(subject.Restarts, "delay_seconds", lambda _: 0.0)
        first = JobStart(
            recipe="digits",
            overrides=(),
            num_workers=2,
            binds=False,
            run_dir=tmp_path,
            total_steps=10,
            grace_seconds=1.0,
            silence_seconds=1.0,
            launcher=Launcher("mpirun", "Open MPI 5"),
            kernels=None,
            placement=Placement(2),
            most_workers=9,
        )
        asked: list[str] = []
        parts: Any = script
        return script, Starts(first, parts, parts, asked, hold, parts), asked

    return make


def test_a_job_goes_on_with_as_many_ranks_as_were_asked_for(begin: Begin) -> None:
    script, starts, _ = begin(to_be(3), DEAD, to_be(1), TRAINED)
    assert starts.run() == TRAINED
    assert script.sizes == [2, 3, 3, 1] and starts.num_workers == 1
    assert [history.num_starts for history in script.histories] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (NEVER_TRAINED, "rank 2 on host ended: Out Of Memory"),
        (Attempt(Ending.ERROR, exit_code=1), "see above"),
        (LaunchError("mpirun could not be started"), "mpirun could not be started"),
    ],
)
def test_a_number_that_cannot_be_started_gives_way_to_the_one_before(
    begin: Begin, refused: Attempt | Exception, why: str
) -> None:
    script, starts, _ = begin(to_be(9), refused, to_be(3), TRAINED)
    assert starts.run() == TRAINED
    assert script.sizes == [2, 9, 2, 3]
    assert [history.num_starts for history in script.histories] == [0, 1, 2, 3], "each start has a name of its own"
    told = [line for line in script.said if "could not be started" in line]
    assert told == [f"ddp-bp: 9 ranks could not be started: {why}; going on with 2 ranks, as before"]


def test_what_fails_with_the_number_before_or_after_training_ends_as_ever(begin: Begin) -> None:
    broken = Attempt(Ending.ERROR, exit_code=1)
    script, starts, _ = begin(to_be(9), NEVER_TRAINED, broken, TRAINED)
    assert starts.run() == broken and script.sizes == [2, 9, 2]
    script, starts, _ = begin(to_be(9), replace(broken, has_trained=True), TRAINED)
    assert starts.run().ending is Ending.ERROR and script.sizes == [2, 9]
    script, starts, _ = begin(LaunchError("no"))
    with pytest.raises(LaunchError):
        starts.run()


def test_a_number_that_needs_a_host_which_is_not_fit_is_not_tried(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_start(self: Script, wanted: JobStart) -> JobStart:
        if wanted.num_workers == 9:
            raise HostError(["c: expected NumPy 2"])
        return wanted

    monkeypatch.setattr(Script, "next_start", next_start)
    script, starts, _ = begin(to_be(9), TRAINED)
    assert starts.run() == TRAINED and script.sizes == [2, 2]
    assert "9 ranks could not be started: the job cannot start on these hosts:\n  c: expected NumPy 2" in script.said[0]
    assert script.said[1:] == ["going on from step 0 with 2 ranks"]


def test_hosts_that_are_away_at_a_restart_are_tried_again_within_its_budget(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_start(self: Script, wanted: JobStart) -> JobStart:
        if away and away.pop():
            raise HostError(["a: did not answer"])
        return wanted

    monkeypatch.setattr(Script, "next_start", next_start)
    away = [True, True]
    script, starts, _ = begin(DEAD, TRAINED)
    assert starts.run() == TRAINED and script.sizes == [2, 2]
    assert ["a: did not answer" in line for line in script.said] == [False, True, True]
    away = [True] * 9
    script, starts, _ = begin(DEAD, TRAINED)
    attempt = starts.run()
    assert attempt.ending is Ending.DEATH and "a: did not answer" in attempt.why
    assert script.sizes == [2] and len(script.said) == FaultSection().max_restarts


def test_what_cannot_be_started_again_is_tried_within_the_budget(begin: Begin) -> None:
    script, starts, _ = begin(DEAD, LaunchError("the coordinator ended"), TRAINED)
    assert starts.run() == TRAINED and script.sizes == [2, 2, 2]
    script, starts, _ = begin(DEAD, *[LaunchError("the coordinator ended")] * 9)
    assert starts.run() == Attempt(Ending.DEATH, why="the coordinator ended")
    assert script.sizes == [2] * (1 + FaultSection().max_restarts)


@pytest.mark.parametrize("ahead_seconds", [-3600, 3600])
def test_a_checkpoint_is_of_this_job_whatever_the_clock_of_its_file_system_says(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_seconds: int
) -> None:
    def checkpoint(step: int) -> SimpleNamespace:
        path = tmp_path / f"step-{step}"
        path.mkdir(exist_ok=True)
        # In whole seconds, as coarse as some file systems have it.
        os.utime(path, (int(time.time()) + ahead_seconds + step,) * 2)
        return SimpleNamespace(path=path, manifest=SimpleNamespace(step=step))

    def die() -> Attempt:
        script.checkpoints.insert(0, checkpoint(20))
        return DEAD

    before = [checkpoint(14)]
    monkeypatch.setattr(Script, "entries", lambda self: self.checkpoints or before)
    script, starts, _ = begin(DEAD, die, TRAINED)
    script.checkpoints = before
    assert starts.run() == TRAINED
    assert [line.split("; ")[1].split(" in ")[0] for line in script.said] == [
        "going on from step 0",
        "going on from step 20",
    ]


def test_recoveries_are_counted_over_all_starts_however_these_end(begin: Begin) -> None:
    script, starts, _ = begin(replace(DEAD, num_recoveries=2), to_be(3), DEAD, TRAINED)
    script.recoveries = 4
    starts.run()
    assert [history.num_recoveries for history in script.histories] == [0, 3, 4, 5]


@pytest.mark.parametrize(("asked_by", "code"), [("user", 130), ("SIGUSR1", 75), ("SIGTERM", 143)])
def test_a_stop_between_two_starts_takes_effect_before_the_next(
    begin: Begin, tmp_path: Path, asked_by: str, code: int
) -> None:
    def ending(attempt: Attempt) -> Callable[[], Attempt]:
        def end() -> Attempt:
            if asked_by == "user":
                assert ask_to_stop(tmp_path)
            else:
                asked.append(asked_by)
            return attempt

        return end

    script, starts, asked = begin(ending(DEAD), TRAINED)
    assert starts.run() == Attempt(Ending.ASKED, exit_code=code) and script.sizes == [2]
    script, starts, asked = begin(ending(to_be(3)), TRAINED)
    assert starts.run() == to_be(3) and asked == [asked_by], "the checkpoint of that start is what it goes on from"


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_stop_after_a_death_says_what_the_job_goes_on_from(
    begin: Begin, tmp_path: Path, has_checkpoint: bool
) -> None:
    """Also where nothing but that death has kept the ranks from a checkpoint of their last steps."""

    def end() -> Attempt:
        if has_checkpoint:
            (path := tmp_path / "step-00000014").mkdir()
            # The file system's own clock may be some milliseconds behind.
            os.utime(path, (time.time(), time.time()))
            script.checkpoints = [SimpleNamespace(path=path, manifest=SimpleNamespace(step=14))]
        asked.append("SIGUSR1")
        return DEAD

    script, starts, asked = begin(end, TRAINED)
    assert starts.run() == Attempt(Ending.ASKED, exit_code=75) and script.sizes == [2]
    where = "step 14" if has_checkpoint else "its beginning"
    assert script.said == [f"stopped after a death ({DEAD.why}); the job goes on from {where}"]


def test_a_stop_while_a_restart_waits_ends_the_wait(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, starts, _ = begin(DEAD, TRAINED)
    monkeypatch.setattr(subject.Restarts, "delay_seconds", lambda _: float(ask_to_stop(tmp_path)) * 3600.0)
    assert starts.run() == Attempt(Ending.ASKED, exit_code=130) and script.sizes == [2]
