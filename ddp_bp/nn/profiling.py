"""Profiling of a model: which operations run in which of its modules, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ddp_bp.engine.profiling import Recorder, recording_calls
from ddp_bp.nn.module import Module


@contextmanager
def profiled(model: Module) -> Iterator[Recorder]:
    """Within the block, every operation of this thread is recorded with the module of `model` that it runs in.

    A module's own `forward` attribute stands in front of its class's while the block lasts, so that no other model,
    thread or later call pays for it.
    """
    names = {id(value): name for name, value in [*model.named_buffers(), *model.named_parameters()]}
    recorder = Recorder(names)
    before: list[tuple[Module, dict[str, Any]]] = []
    try:
        for path, module in model.named_modules():
            own = vars(module)
            before.append((module, {"forward": own["forward"]} if "forward" in own else {}))
            own["forward"] = _watched(module, path, recorder)
        with recording_calls(recorder):
            yield recorder
    finally:
        for module, own in before:
            del vars(module)["forward"]
            vars(module).update(own)


def _watched(module: Module, path: str, recorder: Recorder) -> Any:
    forward, kind = module.forward, type(module).__name__

    def watched(*inputs: Any, **options: Any) -> Any:
        recorder.enter(path, kind)
        try:
            return forward(*inputs, **options)
        finally:
            recorder.leave()

    return watched
