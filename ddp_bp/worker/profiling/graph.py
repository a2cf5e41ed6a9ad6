"""The recorded graph of one backward pass as a drawing in the DOT language, with shapes, and modules as boxes.

Language: https://graphviz.org/doc/info/lang.html. Whether Graphviz is there to make a picture of it is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ddp_bp.engine.profiling import Call, Source
from ddp_bp.worker.profiling.measure import RankProfile


@dataclass
class _Box:
    """A module's part of the drawing: its own lines, and the boxes of the modules in it by path."""

    label: str
    lines: list[str] = field(default_factory=list)
    boxes: dict[str, _Box] = field(default_factory=dict)


def dot_text(profiles: Sequence[RankProfile], title: str) -> str:
    """The graph of the first backward pass that the lowest rank saw; without nodes if none saw one."""
    profile = next((profile for profile in profiles if _root(profile.calls) is not None), profiles[0])
    calls = profile.calls
    kinds = {called.path: called.kind for called in profile.module_calls}
    top = _Box(title)
    edges: list[str] = []
    drawn: set[str] = set()
    for number in _graph(calls):
        call = calls[number]
        here = _box(top, call.module or "", kinds)
        here.lines.append(_node(f"call{number}", [call.operation, f"{call.shape} {call.dtype}"], "box"))
        for position, source in enumerate(call.inputs):
            if source.call is not None:
                start = f"call{source.call}"
            elif source.name is not None:
                start = _quoted(f"tensor {source.name}")
                module, _, name = source.name.rpartition(".")
                if start not in drawn:
                    drawn.add(start)
                    _box(top, module, kinds).lines.append(_node(start, [name, _described(source)], "ellipse"))
            else:
                start = f"data{number}_{position}"
                here.lines.append(_node(start, ["data", _described(source)], "plain"))
            computed = position < len(call.gradients) and call.gradients[position]
            edges.append(f"{start} -> call{number}" + ("" if computed else " [style=dashed, color=gray50]"))
    legend = f"{title}\nsolid: backward computes the gradient; dashed: it does not"
    lines = [
        "digraph recorded {",
        f"  label={_quoted(legend)}; labelloc=t; rankdir=TB;",
        '  node [fontname="sans-serif", fontsize=10]; graph [fontname="sans-serif", fontsize=10];',
        *_body(top, "  ", iter(range(len(calls) * 2 + 1))),
        *(f"  {edge};" for edge in edges),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _root(calls: Sequence[Call]) -> int | None:
    """The first call that backward came by and no other call took the output of."""
    consumed = {source.call for call in calls for source in call.inputs}
    return next((n for n, call in enumerate(calls) if call.backward and n not in consumed), None)


def _graph(calls: Sequence[Call]) -> list[int]:
    """Numbers of the calls that the first root depends on, and its own, in the order in which they ran."""
    root = _root(calls)
    pending, found = ([] if root is None else [root]), set()
    while pending:
        number = pending.pop()
        if number not in found:
            found.add(number)
            pending += [source.call for source in calls[number].inputs if source.call is not None]
    return sorted(found)


def _box(top: _Box, path: str, kinds: dict[str, str]) -> _Box:
    """The box of the module at `path`, made with those around it if they are new."""
    box, parts = top, path.split(".") if path else []
    for length, part in enumerate(parts, start=1):
        inner = ".".join(parts[:length])
        kind = kinds.get(inner)
        box = box.boxes.setdefault(inner, _Box(f"{part}: {kind}" if kind else part))
    return box


def _body(box: _Box, indent: str, numbers: Iterator[int]) -> Iterator[str]:
    for line in box.lines:
        yield f"{indent}{line};"
    for inner in box.boxes.values():
        yield f"{indent}subgraph cluster_{next(numbers)} {{"
        yield f"{indent}  label={_quoted(inner.label)}; color=gray70;"
        yield from _body(inner, indent + "  ", numbers)
        yield f"{indent}}}"


def _node(name: str, label: list[str], shape: str) -> str:
    text = "\n".join(label)
    return f"{name} [label={_quoted(text)}, shape={shape}]"


def _described(source: Source) -> str:
    return f"{source.shape} {source.dtype}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
