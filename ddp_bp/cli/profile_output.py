"""What `ddp-bp profile` shows and writes: tables or JSON, the Chrome trace, the drawing of the graph."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ddp_bp.cli.output import count_text, print_json, print_table, seconds_text, size_text
from ddp_bp.errors import InputError
from ddp_bp.worker.profiling.graph import dot_text
from ddp_bp.worker.profiling.measure import WARM_UP_STEPS, RankProfile
from ddp_bp.worker.profiling.report import Report, Row, make_report
from ddp_bp.worker.profiling.trace import chrome_trace

LAYOUT_SECONDS = 120.0
_COLUMNS = ("calls", "forward", "backward", "ratio", "FLOP", "GFLOP/s", "bytes", "gradients")


@dataclass(frozen=True)
class ProfileFiles:
    """The files that were asked for, if any."""

    trace: Path | None
    graph: Path | None

    def check(self) -> None:
        """Raise InputError if a file cannot be written, before anything has been measured."""
        for option, path in (("--trace", self.trace), ("--graph", self.graph)):
            if path is not None and not path.absolute().parent.is_dir():
                raise InputError(f"{option} {path}: there is no folder {path.parent}")
        if self.graph is not None and self.graph.suffix not in (".svg", ".dot"):
            raise InputError(f"--graph {self.graph}: expected a name that ends in .svg or .dot")

    def write(self, recipe: str, profiles: Sequence[RankProfile]) -> dict[str, str]:
        """Write them; the path of each by "trace" and "graph"."""
        written: dict[str, str] = {}
        if self.trace is not None:
            with self.trace.open("w", encoding="utf-8") as file:
                json.dump(chrome_trace(profiles), file)
            written["trace"] = str(self.trace)
        if self.graph is not None:
            written["graph"] = str(write_graph(self.graph, dot_text(profiles, recipe)))
        return written


def write_graph(path: Path, text: str) -> Path:
    """Write the DOT `text` to `path`, drawn if it is an .svg. Without a drawing the text goes to a .dot beside it.

    Returns the path of the file written; says on stderr why it is not the one asked for.
    """
    if path.suffix == ".dot":
        path.write_text(text, encoding="utf-8")
        return path
    problem = _draw(path, text)
    if problem is None:
        return path
    instead = path.with_suffix(".dot")
    instead.write_text(text, encoding="utf-8")
    print(f"ddp-bp: warning: {problem}; wrote {instead} instead of {path}", file=sys.stderr)
    return instead


def _draw(path: Path, text: str) -> str | None:
    """Let Graphviz draw `text` to `path`. Returns why it could not, or None."""
    dot = shutil.which("dot")
    if dot is None:
        return "an SVG needs Graphviz, whose command `dot` is not on the PATH (Debian: apt install graphviz)"
    try:
        drawn = subprocess.run([dot, "-Tsvg"], input=text.encode(), capture_output=True, timeout=LAYOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"Graphviz did not lay out the graph within {LAYOUT_SECONDS:g} s"
    if drawn.returncode != 0:
        return f"Graphviz refused the graph: {drawn.stderr.decode(errors='replace').strip()}"
    path.write_bytes(drawn.stdout)
    return None


def show_report(recipe: str, profiles: Sequence[RankProfile], written: dict[str, str], *, as_json: bool) -> None:
    """Print the tables, or one JSON document with the same numbers and more, and where the files are."""
    report = make_report(profiles)
    if as_json:
        print_json({"recipe": recipe, **msgspec.to_builtins(report), **written})
        return
    ranks = f"{report.world_size} rank{'s' if report.world_size > 1 else ''}"
    print(f"{recipe}: {report.steps} steps on {ranks}, after {WARM_UP_STEPS} to warm up; sums over steps and ranks\n")
    print_table(("operation", *_COLUMNS), [(row.name, *_figures(row)) for row in [*report.operations, report.total]])
    print()
    print_table(("module", *_COLUMNS), [(_indented(row), *_figures(row)) for row in report.modules])
    print("\nratio: backward to forward seconds; gradients: computed of those of all inputs, per call\n")
    if report.median_step_ratio is not None:
        print(f"in the median step, backward takes {report.median_step_ratio:.2f} times as long as forward\n")
    _show_phases(report)
    _show_not_computed(report)
    for name, path in written.items():
        hint = " (open it at https://ui.perfetto.dev)" if name == "trace" else ""
        print(f"{name}: {path}{hint}")


def _figures(row: Row) -> tuple[str | int | None, ...]:
    flops = row.forward_flops + row.backward_flops
    gradients = None
    if row.backward_calls:
        per_call = row.calls if row.kind else row.backward_calls
        gradients = f"{row.gradients / per_call:.3g} of {row.gradients_possible / per_call:.3g}"
    return (
        row.calls or None,
        seconds_text(row.forward_seconds),
        seconds_text(row.backward_seconds) if row.backward_calls else None,
        None if row.ratio is None or not row.backward_calls else f"{row.ratio:.2f}",
        count_text(flops) if flops else None,
        f"{row.gflops_per_second:.3g}" if flops and row.gflops_per_second is not None else None,
        size_text(row.forward_bytes + row.backward_bytes),
        gradients,
    )


def _indented(row: Row) -> str:
    """The names and classes of modules as a tree: each under the one that it is in."""
    depth = 0 if row.name.startswith("(") else row.name.count(".") + 1
    return "  " * depth + " ".join(filter(None, (row.name, row.kind)))


def _show_phases(report: Report) -> None:
    step = next(row.seconds for row in report.phases if row.phase == "step")
    computed = {"forward": report.total.forward_seconds, "backward": report.total.backward_seconds}
    rows = []
    for row in report.phases:
        share = f"{row.seconds / step:.1%}" if step else None
        rows.append((row.phase, seconds_text(row.seconds), share, seconds_text(computed.get(row.phase))))
    print_table(("phase", "seconds", "share", "in operations"), rows)
    print()


def _show_not_computed(report: Report) -> None:
    for skipped in report.gradients_not_computed:
        what = skipped.name or f"input {skipped.input} {skipped.shape}"
        print(f"gradient not computed: {what} of {skipped.operation} in {', '.join(skipped.modules)}")
    if report.gradients_not_computed:
        print()
