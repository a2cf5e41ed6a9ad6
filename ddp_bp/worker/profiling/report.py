"""What the ranks saw, as rows: for each operation, each module and each phase. Sums are over ranks and steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from ddp_bp.engine.profiling import Call, ModuleCall
from ddp_bp.wire.phases import PHASES
from ddp_bp.worker.profiling.measure import RankProfile

MODEL, OUTSIDE = "(model)", "(loss)"
"""Names of the rows of the whole model, and of what runs outside of it: only the loss does."""


class Row(msgspec.Struct, kw_only=True):
    """One line of a table. Seconds are spent in operations only, without what Python does between them.

    A module's row includes the modules in it. `gradients` counts what backward computed, `gradients_possible` the
    inputs of the same operations; `ratio` is backward over forward seconds.
    """

    name: str
    kind: str = ""
    calls: int = 0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    forward_flops: int = 0
    backward_flops: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0
    backward_calls: int = 0
    gradients: int = 0
    gradients_possible: int = 0
    ratio: float | None = None
    gflops_per_second: float | None = None

    def add(self, call: Call) -> None:
        """Count one call of an operation, but not as a call of what the row is about."""
        self.forward_seconds += call.forward[1] - call.forward[0]
        self.backward_seconds += sum(ended - began for began, ended in call.backward)
        self.forward_flops += call.forward_flops
        self.backward_flops += call.backward_flops
        self.forward_bytes += call.forward_bytes
        self.backward_bytes += call.backward_bytes
        self.backward_calls += len(call.backward)
        self.gradients += sum(call.gradients)
        self.gradients_possible += len(call.gradients)

    def conclude(self) -> None:
        """Compute the quotients, once all calls have been added."""
        seconds, flops = self.forward_seconds + self.backward_seconds, self.forward_flops + self.backward_flops
        self.ratio = self.backward_seconds / self.forward_seconds if self.forward_seconds else None
        self.gflops_per_second = flops / seconds / 1e9 if seconds else None


class PhaseRow(msgspec.Struct):
    """The seconds that all ranks together spent in a phase."""

    phase: str
    seconds: float


class Skipped(msgspec.Struct):
    """A floating input, by its position, whose gradient backward did not compute in the named modules."""

    operation: str
    input: int
    name: str | None
    shape: tuple[int, ...]
    modules: list[str]


class Report(msgspec.Struct):
    """All tables. `total` sums the operations.

    `median_step_ratio` is the backward over the forward seconds of operations in one step of one rank, in the median
    step: unlike the ratio of the sums it does not feel a step in which something else took the processor.
    """

    steps: int
    world_size: int
    total: Row
    median_step_ratio: float | None
    operations: list[Row]
    modules: list[Row]
    phases: list[PhaseRow]
    gradients_not_computed: list[Skipped]


def make_report(profiles: Sequence[RankProfile]) -> Report:
    """The tables of what the ranks, given in their order, saw."""
    calls = [call for profile in profiles for call in profile.calls]
    total = Row(name="total", calls=len(calls))
    operations: dict[str, Row] = {}
    for call in calls:
        row = operations.setdefault(call.operation, Row(name=call.operation))
        row.calls += 1
        row.add(call)
        total.add(call)
    modules = _module_rows(calls, [called for profile in profiles for called in profile.module_calls])
    for row in (total, *operations.values(), *modules):
        row.conclude()
    seconds = dict.fromkeys(PHASES, 0.0)
    for profile in profiles:
        for lap in profile.phases:
            seconds[lap.phase] += lap.span[1] - lap.span[0]
    return Report(
        steps=profiles[0].num_steps,
        world_size=len(profiles),
        total=total,
        median_step_ratio=_median_step_ratio(profiles),
        operations=sorted(operations.values(), key=lambda row: -row.forward_seconds - row.backward_seconds),
        modules=modules,
        phases=[PhaseRow(phase, spent) for phase, spent in seconds.items()],
        gradients_not_computed=_skipped(calls),
    )


def module_name(path: str | None) -> str:
    """What a module's path is called in tables."""
    return OUTSIDE if path is None else path or MODEL


def _median_step_ratio(profiles: Iterable[RankProfile]) -> float | None:
    ratios: list[float] = []
    for profile in profiles:
        begins = [lap.span[0] for lap in profile.phases if lap.phase == "step"]
        steps = [Row(name="step") for _ in begins]
        for call in profile.calls:
            steps[bisect_right(begins, call.forward[0]) - 1].add(call)
        for step in steps:
            step.conclude()
            if step.ratio is not None:
                ratios.append(step.ratio)
    return median(ratios) if ratios else None


def _module_rows(calls: Iterable[Call], module_calls: Iterable[ModuleCall]) -> list[Row]:
    """In the order in which they were first entered, parents first; what ran outside of the model comes last."""
    rows: dict[str | None, Row] = {}
    for called in sorted(module_calls, key=lambda called: called.span):
        row = rows.setdefault(called.path, Row(name=module_name(called.path), kind=called.kind))
        row.calls += 1
    for call in calls:
        for path in _enclosing(call.module):
            if path in rows:
                rows[path].add(call)
        if call.module is None:
            rows.setdefault(None, Row(name=OUTSIDE)).add(call)
    return list(rows.values())


def _enclosing(path: str | None) -> list[str]:
    """The path itself and those of the modules that it is in: "a.b", "a" and "" for "a.b"."""
    if path is None:
        return []
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]


def _skipped(calls: Iterable[Call]) -> list[Skipped]:
    found: dict[tuple[str, int, str | None], Skipped] = {}
    for call in calls:
        for position, (source, computed) in enumerate(zip(call.inputs, call.gradients, strict=False)):
            if computed or not source.dtype.startswith("float"):
                continue
            key = (call.operation, position, source.name)
            entry = found.setdefault(key, Skipped(call.operation, position, source.name, source.shape, []))
            module = module_name(call.module)
            if module not in entry.modules:
                entry.modules.append(module)
    return list(found.values())
