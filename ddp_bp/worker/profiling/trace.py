"""What the ranks saw, as a Chrome trace: JSON that https://ui.perfetto.dev and chrome://tracing open.

Format: "Trace Event Format", complete events ("X") and metadata ("M"). A rank is a process of the trace, and each phase
is a thread of it, so that each has a lane of its own; operations and modules lie inside the phase that they ran in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ddp_bp.engine.profiling import Call, Span
from ddp_bp.wire.phases import PHASES
from ddp_bp.worker.profiling.measure import RankProfile
from ddp_bp.worker.profiling.report import module_name

_LANES = {phase: number for number, phase in enumerate(("step", *(phase for phase in PHASES if phase != "step")))}


def chrome_trace(profiles: Sequence[RankProfile]) -> dict[str, Any]:
    """The trace as a JSON object. Times are microseconds since the first event; ranks are aligned by Unix time."""
    origin = min((_unix_nanoseconds(p, lap.span[0]) for p in profiles for lap in p.phases), default=0)
    metadata = [event for profile in profiles for event in _lanes(profile.rank)]
    events = [event for profile in profiles for event in _events(profile, origin)]
    # Of events that begin together, the longer one encloses the other.
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    return {"traceEvents": [*metadata, *events], "displayTimeUnit": "ms"}


def _lanes(rank: int) -> Iterator[dict[str, Any]]:
    yield _metadata("process_name", rank, 0, name=f"rank {rank}")
    yield _metadata("process_sort_index", rank, 0, sort_index=rank)
    for phase, lane in _LANES.items():
        yield _metadata("thread_name", rank, lane, name=phase)
        yield _metadata("thread_sort_index", rank, lane, sort_index=lane)


def _metadata(kind: str, rank: int, lane: int, **values: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": lane, "args": values}


def _unix_nanoseconds(profile: RankProfile, time: float) -> int:
    # Whole numbers: what encloses another event in the measurement does so in the trace.
    return round(time * 1e9) + profile.unix_offset_nanoseconds


def _events(profile: RankProfile, origin: int) -> Iterator[dict[str, Any]]:
    def event(name: str, category: str, phase: str, span: Span, arguments: dict[str, Any]) -> dict[str, Any]:
        began, ended = (_unix_nanoseconds(profile, time) - origin for time in span)
        place = {"pid": profile.rank, "tid": _LANES[phase], "ts": began / 1000, "dur": (ended - began) / 1000}
        return {"ph": "X", "name": name, "cat": category, **place, "args": arguments}

    for lap in profile.phases:
        yield event(lap.phase, "phase", lap.phase, lap.span, {})
    for called in profile.module_calls:
        yield event(f"{module_name(called.path)}: {called.kind}", "module", "forward", called.span, {})
    for call in profile.calls:
        arguments = _arguments(call)
        work = {"flops": call.forward_flops, "bytes": call.forward_bytes}
        yield event(call.operation, "operation", "forward", call.forward, {**arguments, **work})
        arguments["gradients"] = [str(source.shape) if on else None for source, on in _gradients(call)]
        for span in call.backward:
            work = {
                "flops": call.backward_flops // len(call.backward),
                "bytes": call.backward_bytes // len(call.backward),
            }
            yield event(call.operation, "operation", "backward", span, {**arguments, **work})


def _arguments(call: Call) -> dict[str, Any]:
    inputs = [f"{source.name or 'input'} {source.shape} {source.dtype}" for source in call.inputs]
    return {"module": module_name(call.module), "inputs": inputs, "output": f"{call.shape} {call.dtype}"}


def _gradients(call: Call) -> Iterator[tuple[Any, bool]]:
    return zip(call.inputs, call.gradients or (False,) * len(call.inputs), strict=True)
