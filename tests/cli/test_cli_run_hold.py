"""One process at a time starts ranks in a run directory, and word can be left with it while there is no coordinator."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path

import pytest
from support import LOOPBACKS

from ddp_bp.cli.main import cli
from ddp_bp.cli.prepare import prepare
from ddp_bp.cli.run_hold import ask_to_stop, hold_run, is_held
from ddp_bp.cli.signals import ends_at_once, stop_exit_code
from ddp_bp.coordinator.address import ADDRESS_FILE
from ddp_bp.coordinator.client import ToolClient
from ddp_bp.errors import AddressError, InputError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.rundir import LAUNCHER_FILE, RunDirectory

stop = importlib.import_module("ddp_bp.cli.stop")


def command(*arguments: object) -> None:
    """A command of `ddp-bp`, in this process."""
    cli.main([str(argument) for argument in arguments], standalone_mode=False)


def test_a_run_directory_is_held_by_one_process_and_free_when_that_has_ended(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "run"
    assert not is_held(run_dir)
    with hold_run(run_dir):
        assert is_held(run_dir)
        with pytest.raises(InputError, match="a job is running in it"), hold_run(run_dir):
            pass
    assert not is_held(run_dir)
    with hold_run(run_dir):
        pass


def test_no_other_job_gets_into_a_directory_between_two_starts(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with hold_run(run_dir):
        with pytest.raises(InputError, match="a job is running in it"):
            prepare("digits", (), 1, run_dir, "auto")
        with pytest.raises(InputError, match="a job is running in it"):
            command("coordinator", "digits", "-n", 1, "--run-dir", run_dir)
    assert [entry.name for entry in run_dir.iterdir()] == [LAUNCHER_FILE]
    # A start that was killed so early has left no run.
    assert RunDirectory(run_dir).resolve(load_recipe("digits")[0], 1).train.shards == 4


def test_word_that_is_left_is_read_once_and_forgotten_with_the_job(tmp_path: Path) -> None:
    asked: list[str] = []
    assert not ask_to_stop(tmp_path)
    with hold_run(tmp_path) as hold:
        hold.note_stop(asked)
        assert asked == [] and ask_to_stop(tmp_path)
        for _ in range(2):
            hold.note_stop(asked)
        assert asked == ["user"]
        assert ask_to_stop(tmp_path)
        hold.note_stop(asked)
        assert asked == ["user", "user"]
    assert not ask_to_stop(tmp_path)
    with hold_run(tmp_path) as hold:
        hold.note_stop(again := [])
        assert again == []


def test_a_stop_without_a_signal_ends_as_after_ctrl_c_and_is_not_the_first_of_two(tmp_path: Path) -> None:
    assert stop_exit_code(["user"]) == 130 and stop_exit_code(["user", "SIGUSR1"]) == 75
    assert not ends_at_once(["user", "SIGINT"]) and ends_at_once(["user", "SIGINT", "SIGTERM"])


@pytest.mark.parametrize("has_address", [False, True], ids=["between two starts", "a coordinator that is gone"])
def test_a_stop_between_two_starts_is_left_with_train(
    tmp_path: Path, has_address: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if has_address:
        monkeypatch.setattr(stop, "ToolClient", partial(ToolClient, timeout_seconds=0.1))
        port = {"pid": 1, "host": LOOPBACKS[0], "port": 1, "http_port": 1, "run_id": "r", "url": "http://127.0.0.1:1/"}
        (tmp_path / ADDRESS_FILE).write_text(json.dumps({**port, "address": "tcp://127.0.0.1:1"}))
    with hold_run(tmp_path) as hold:
        command("stop", tmp_path)
        assert "`ddp-bp train` stops the job as soon as it may" in capsys.readouterr().out
        hold.note_stop(asked := [])
        assert asked == ["user"]
    with pytest.raises(AddressError):
        command("stop", tmp_path)
