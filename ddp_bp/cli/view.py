"""How a training run looks on a terminal: a live table where there is one, else a line now and then.

What workers write to stderr stays on stderr, as it came. Where output has no room, training goes on without it.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ddp_bp.cli.output import print_table, seconds_text

STATUS_SECONDS = 2.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def fetch_status(url: str) -> dict[str, Any] | None:
    """The job's status from its coordinator, or None if that does not answer."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/status", timeout=STATUS_SECONDS) as reply:
            status = json.load(reply)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        # Also one that is killed in the middle of its answer.
        return None
    return status if isinstance(status, dict) else None


class TrainingView:
    """The output of `ddp-bp train`."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._to_stderr = to_stderr
        self._console = self._new_console()
        self._live: Live | None = None
        self._shown_eval_step: int | None = None

    def say(self, text: str) -> None:
        """One line for people."""
        try:
            self._console.print(text)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            # It keeps what could not be written, and so does the stream behind it, which is enough.
            self._console = self._new_console()

    def complain(self, text: str) -> None:
        """One line for stderr, as it is."""
        if self._live is not None and sys.stderr.isatty():
            self._console.print(text)
            return
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise

    def _new_console(self) -> Console:
        return Console(stderr=self._to_stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """While inside, `refresh` redraws a table at the bottom of the terminal, if there is one."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, redirect_stderr=False, transient=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def refresh(self, url: str) -> dict[str, Any] | None:
        """Ask the coordinator how the job is doing, and show it. What it has answered, if it has."""
        status = fetch_status(url)
        if status is None:
            return None
        if self._live is not None:
            self._live.update(_progress_table(status), refresh=True)
        elif status["eval_step"] != self._shown_eval_step or status["state"] == "finished":
            self._shown_eval_step = status["eval_step"]
            self.say("  ".join(f"{name} {value}" for name, value in _figures(status) if value != "-"))
        return status


def _figures(status: dict[str, Any]) -> list[tuple[str, str]]:
    def number(key: str, form: str) -> str:
        value = status.get(key)
        return "-" if value is None else format(value, form)

    total = status.get("total_steps")
    return [
        ("state", str(status["state"])),
        ("epoch", number("epoch", "d")),
        ("step", number("step", "d") + (f"/{total}" if total else "")),
        ("loss", number("train_loss", ".4f")),
        ("eval loss", number("eval_loss", ".4f")),
        ("eval accuracy", number("eval_accuracy", ".2%")),
        ("samples/s", number("samples_per_second", ",.0f")),
    ]


def _progress_table(status: dict[str, Any]) -> Table:
    figures = _figures(status)
    table = Table(*(name for name, _ in figures), box=None, pad_edge=False, header_style="bold")
    table.add_row(*(value for _, value in figures))
    return table


def shown_command(command: Sequence[str]) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(command)


def summary_line(run_dir: Path) -> str:
    """The summary of a run in one line, for output that is not a terminal."""
    summary = json.loads((run_dir / "summary.json").read_bytes())
    shown = ("steps", "train_loss", "eval_loss", "eval_accuracy", "seconds", "samples_per_second", "weights_sha256")
    figures = "  ".join(f"{key} {summary[key]}" for key in shown if summary.get(key) is not None)
    return f"{run_dir}: {figures}"


def summary_table(run_dir: Path, summary: dict[str, Any]) -> None:
    """The closing table: what came out, and where it lies; after it the text that a model has written."""
    accuracy, loss = summary.get("eval_accuracy"), summary.get("eval_loss")
    rows: list[tuple[str, object]] = [
        ("steps", f"{summary['steps']:,} ({summary['epochs']:g} epochs, {summary['samples']:,} samples)"),
        ("workers", f"{summary['world_size']} (shards: {summary['shards']})"),
        ("time", f"{seconds_text(summary['seconds'])}, {summary['samples_per_second']:,.0f} samples/s"),
        ("train loss", None if summary["train_loss"] is None else f"{summary['train_loss']:.5f}"),
        ("eval loss", None if loss is None else f"{loss:.5f}"),
        ("eval accuracy", None if accuracy is None else f"{accuracy:.2%}"),
        ("weights", str(run_dir / "checkpoints" / Path(summary["checkpoint"]).name / "model.safetensors")),
        ("weights sha256", summary["weights_sha256"]),
        ("ledger sha256", summary["ledger_sha256"]),
        ("checkpoints", str(run_dir / "checkpoints")),
        ("summary", str(run_dir / "summary.json")),
    ]
    print_table(("result", ""), [(name, value) for name, value in rows if value is not None])
    if "sample" in summary:
        print(f"\nwritten by the trained model:\n\n{summary['sample']}")
