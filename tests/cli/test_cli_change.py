"""A job that is to go on otherwise is stopped once a checkpoint is there, and nobody hears of it if it has ended."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from ddp_bp.cli.change import Change
from ddp_bp.cli.resize import RETRY_SECONDS, Resizing
from ddp_bp.recipes.fault import FaultSection

WANTED: dict[str, Any] = {
    "state": "training",
    "ready": True,
    "world_size": 1,
    "lost_ranks": [],
    "wanted_world_size": 2,
}


class Scene:
    """A change of which everything that it does is kept."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.complaints: list[str] = []
        self.trials: list[Future[str]] = []
        self.change = Change(Resizing(FaultSection()), self._begin, self.said.append, self.complaints.append)

    def _begin(self) -> Future[str]:
        self.trials.append(Future())
        return self.trials[-1]

    def told(self, newest: dict[str, Any] | None = WANTED, now: float = 1.0) -> str | None:
        return self.change.told(lambda: newest, now)


def test_ranks_are_told_when_the_checkpoint_is_there_and_not_before() -> None:
    scene = Scene()
    assert scene.told() is None
    for _ in range(2):
        scene.change.follow(WANTED, 0.0)
        assert scene.told() is None
    assert scene.said == ["2 ranks asked for; saving a checkpoint"] and len(scene.trials) == 1
    scene.trials[0].set_result("")
    assert [scene.told(), scene.told()] == ["resize", "resize"]
    assert scene.complaints == []


def test_a_job_that_cannot_save_one_is_not_stopped_and_says_why() -> None:
    scene = Scene()
    scene.change.follow(WANTED, 0.0)
    scene.trials[0].set_result("the disk is full")
    assert scene.told() is None
    assert scene.complaints == ["ddp-bp: the disk is full; so the job does not stop, and goes on as it is"]
    scene.change.follow(WANTED, 2.0)
    assert len(scene.trials) == 1
    scene.change.follow(WANTED, 1.0 + RETRY_SECONDS)
    assert len(scene.trials) == 2


@pytest.mark.parametrize("newest", [None, {**WANTED, "state": "finished"}, {**WANTED, "state": "stopping"}])
def test_of_a_job_that_has_ended_meanwhile_nothing_is_said(newest: dict[str, Any] | None) -> None:
    scene = Scene()
    scene.change.follow(WANTED, 0.0)
    scene.trials[0].set_result("the coordinator ends")
    assert scene.told(newest) is None
    assert scene.complaints == [] and scene.change.wish is None
    # If it was only the coordinator, the one in its place is asked at once.
    scene.change.follow(WANTED, 1.1)
    assert len(scene.trials) == 2


def test_another_coordinator_is_asked_at_once_for_what_the_one_before_has_not_answered() -> None:
    scene = Scene()
    scene.change.forget_trial()
    scene.change.follow(WANTED, 0.0)
    scene.change.forget_trial()
    assert scene.told() is None and scene.change.wish is None
    scene.change.follow(WANTED, 0.2)
    scene.trials[0].set_result("too late")
    assert scene.told() is None and len(scene.trials) == 2
    scene.trials[1].set_result("")
    assert scene.told() == "resize" and scene.complaints == []
    scene.change.forget_trial()
    assert scene.told() == "resize", "the checkpoint is there"
