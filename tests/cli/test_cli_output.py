"""Tables and numbers: nothing that a person or a program needs may be cut, coloured or swallowed."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from pathlib import Path

import pytest

from ddp_bp.cli.options import default_run_dir
from ddp_bp.cli.output import print_json, print_table, seconds_text, size_text
from ddp_bp.cli.view import TrainingView, fetch_status, shown_command, summary_line, summary_table

LONG = "/very" * 40 + "/[bold]/[/nothing]/:smile:/step-00000920"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_a_coordinator_that_dies_while_it_answers_does_not_answer(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(said)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert fetch_status(f"http://127.0.0.1:{server.getsockname()[1]}/") is None
        thread.join(5)


def test_training_goes_on_where_its_output_has_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    with (tmp_path / "log").open("w") as log:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, full)
        view = TrainingView(to_stderr=False)
        view.say("not shown")
        view.complain("not shown either")
        monkeypatch.setattr(sys, "stdout", log)
        view.say("shown again")
    assert (tmp_path / "log").read_text() == "shown again\n"
    with pytest.raises(OSError):
        full.close()


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (None, None), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (5 * 10**9, "5.0 GB"),
        (7 * 10**15, "7000.0 TB"),
    ],
)  # fmt: skip
def test_sizes(num_bytes: int | None, text: str | None) -> None:
    assert size_text(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None), (0.0, "0 us"), (0.00085, "850 us"), (0.012, "12.0 ms"), (3.44, "3.4 s"), (119.0, "119.0 s"),
        (125.9, "2 min 5 s"), (7200.0, "120 min 0 s"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str | None) -> None:
    assert seconds_text(seconds) == text


def test_a_table_in_a_file_has_one_line_a_row_and_every_cell_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "value"), [("path", LONG), ("nothing", None), ("digest", "f" * 64)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["name", "value"], ["path", LONG], ["nothing", "-"], ["digest", "f" * 64]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_on_a_narrow_terminal_is_folded_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_table(("name", "value"), [("path", LONG)])
    _, *rows = terminal.getvalue().splitlines()
    assert all(len(row) <= 50 for row in rows)
    assert "".join(row.removeprefix("path").strip() for row in rows) == LONG


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"path": LONG, "step": None}])
    assert json.loads(capsys.readouterr().out) == [{"path": LONG, "step": None}]


def status(**changes: object) -> dict:
    fields = {
        "state": "training", "epoch": 2, "step": 30, "total_steps": 90, "train_loss": 0.25, "eval_loss": 0.5,
        "eval_accuracy": 0.975, "samples_per_second": 12345.6, "eval_step": 23,
    }  # fmt: skip
    return {**fields, **changes}


@pytest.mark.parametrize("to_stderr", [False, True])
def test_without_a_terminal_progress_is_one_line_for_each_evaluation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to_stderr: bool
) -> None:
    answers = [status(), status(step=31), None, status(eval_step=46, eval_loss=None), status(state="finished")]
    monkeypatch.setattr("ddp_bp.cli.view.fetch_status", lambda url: answers.pop(0))
    view = TrainingView(to_stderr=to_stderr)
    with view.live():
        for _ in range(5):
            view.refresh("http://127.0.0.1:1/")
    captured = capsys.readouterr()
    shown, other = (captured.err, captured.out) if to_stderr else (captured.out, captured.err)
    assert other == ""
    assert shown.splitlines() == [
        "state training  epoch 2  step 30/90  loss 0.2500  eval loss 0.5000  eval accuracy 97.50%  samples/s 12,346",
        "state training  epoch 2  step 30/90  loss 0.2500  eval accuracy 97.50%  samples/s 12,346",
        "state finished  epoch 2  step 30/90  loss 0.2500  eval loss 0.5000  eval accuracy 97.50%  samples/s 12,346",
    ]


def test_lines_are_said_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    view = TrainingView(to_stderr=False)
    view.say(LONG)
    view.complain(LONG)
    assert tuple(capsys.readouterr()) == (f"{LONG}\n", f"{LONG}\n")
    assert shown_command(["mpirun", "--set", "title='a b'"]) == """mpirun --set 'title='"'"'a b'"'"''"""


def test_the_closing_table_says_what_came_out_and_where_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {
        "steps": 920, "epochs": 40.0, "samples": 57520, "world_size": 2, "shards": 4, "train_loss": 0.012345678,
        "eval_loss": None, "eval_accuracy": None, "weights_sha256": "a" * 64, "ledger_sha256": "b" * 64,
        "seconds": 3.21, "samples_per_second": 17919.0, "checkpoint": f"{LONG}/step-00000920",
    }  # fmt: skip
    summary_table(tmp_path, summary)
    rows = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows == {
        "steps": "920 (40 epochs, 57,520 samples)",
        "workers": "2 (shards: 4)",
        "time": "3.2 s, 17,919 samples/s",
        "train loss": "0.01235",
        "weights": str(tmp_path / "checkpoints" / "step-00000920" / "model.safetensors"),
        "weights sha256": "a" * 64,
        "ledger sha256": "b" * 64,
        "checkpoints": str(tmp_path / "checkpoints"),
        "summary": str(tmp_path / "summary.json"),
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    line = summary_line(tmp_path)
    assert line.startswith(f"{tmp_path}: steps 920  train_loss 0.012345678  seconds 3.21")
    assert "eval" not in line


def test_a_default_run_directory_is_named_after_recipe_and_time_and_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260131-142355")
    assert default_run_dir("../recipes/own.toml") == Path("runs/own-20260131-142355")
    Path("runs/digits-20260131-142355").mkdir(parents=True)
    Path("runs/digits-20260131-142355-2").mkdir()
    assert default_run_dir("digits") == Path("runs/digits-20260131-142355-3")
