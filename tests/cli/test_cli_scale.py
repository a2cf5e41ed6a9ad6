"""`ddp-bp scale` asks when there is somebody to ask, and tells how it came out."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from ddp_bp.cli.main import cli
from ddp_bp.cli.run_hold import hold_run
from ddp_bp.coordinator.address import ADDRESS_FILE
from ddp_bp.errors import AddressError, InputError, LaunchError

subject = importlib.import_module("ddp_bp.cli.scale")


def status(state: str = "training", world_size: int = 2, resizes: int = 0, **more: Any) -> dict[str, Any]:
    fields = {"restarts": 0, "stop_cause": None, "total_steps": 9, "step": 4, "wanted_world_size": None}
    return {"state": state, "world_size": world_size, "resizes": resizes, **fields, **more}


class Job:
    """What the coordinators of a job say one after the other; None: there is none. The last is said for ever."""

    def __init__(self, run_dir: Path, *statuses: dict[str, Any] | None) -> None:
        self._run_dir, self._statuses, self._num_asked = run_dir, statuses, 0
        self.asked_for: list[int] = []

    def status(self) -> dict[str, Any]:
        told = self._statuses[min(self._num_asked, len(self._statuses) - 1)]
        self._num_asked += 1
        if told is None:
            raise AddressError("no coordinator answers")
        return told

    def scale(self, num_workers: int) -> None:
        if self.status()["state"] != "training":
            raise InputError("only while it is training")
        self.asked_for.append(num_workers)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


@pytest.fixture
def scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Ask a job for another number of ranks."""
    address = {"pid": 1, "host": "h", "port": 1, "http_port": 1, "run_id": "r", "address": "a", "url": "u"}
    (tmp_path / ADDRESS_FILE).write_text(json.dumps(address))
    monkeypatch.setattr(subject, "POLL_SECONDS", 0.0)

    def run(num_workers: int, *statuses: dict[str, Any] | None) -> Job:
        job = Job(tmp_path, *statuses)
        monkeypatch.setattr(subject, "ToolClient", lambda *_: job)
        monkeypatch.setattr(subject, "fetch_status", lambda _: job.status())
        cli.main(["scale", str(tmp_path), "-n", str(num_workers)], standalone_mode=False)
        return job

    return run


def test_while_ranks_are_started_anew_it_waits_for_them(scale: Callable[..., Job], tmp_path: Path) -> None:
    ends, begins = status("stopping", stop_cause="respawn"), status("waiting", resizes=1)
    with hold_run(tmp_path):
        job = scale(3, ends, None, begins, *[status(resizes=1)] * 2, status("waiting", 3, 2), status("training", 3, 2))
    assert job.asked_for == [3]


def test_without_train_or_when_the_job_is_to_end_it_does_not(scale: Callable[..., Job], tmp_path: Path) -> None:
    with pytest.raises(AddressError):
        scale(3, None)
    with pytest.raises(InputError):
        scale(3, status("waiting"))
    with hold_run(tmp_path), pytest.raises(InputError):
        scale(3, status("stopping", stop_cause="user"))


def test_a_job_that_has_gone_on_with_another_number_is_told(scale: Callable[..., Job], tmp_path: Path) -> None:
    with hold_run(tmp_path), pytest.raises(LaunchError, match="goes on with 2 ranks; `train` says why not with 9"):
        scale(9, *[status()] * 2, status(wanted_world_size=9), status("waiting", 9, 1), status("training", 2, 2))
