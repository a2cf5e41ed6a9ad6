"""The base of all modules: a tree of parameters, buffers and child modules, found among the attributes.

There is no registration: a parameter, buffer or module is part of a module because it is one of its attributes, in the
order in which they were first set. A plain list of modules is not looked into; containers say what their children are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from ddp_bp.engine.graph import no_grad
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Parameter, Tensor, native
from ddp_bp.errors import InputError

T = TypeVar("T", bound=Tensor)


class Buffer(Tensor):
    """State of a module that is saved with it and is not trained, such as running statistics.

    `data` is used as it is, without a copy, unless its byte order is not that of the machine.
    """

    __slots__ = ()

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        super().__init__(native(data), requires_grad)


class IncompatibleKeys(NamedTuple):
    """What a non-strict `load_state_dict` could not match, in sorted order."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of all modules. A subclass sets attributes in `__init__` and computes in `forward`."""

    training = True
    sums_over_shards = False
    """Whether `forward` calls `functional.shard_sum`, so that a job must compute all shards of a batch side by side."""
    # Names this module's draws in a random stream; see `streams`.
    stream_key = 0

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    # ---- the tree

    def named_children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module under `prefix` and all below it under their dotted names, each once, parents first."""
        return self._walk(prefix, set())

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """All parameters under their dotted names in the order of definition; tied ones once, under the first name."""
        return self._tensors(Parameter, prefix)

    def parameters(self) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Buffer]]:
        return self._tensors(Buffer, prefix)

    def buffers(self) -> Iterator[Buffer]:
        return (buffer for _, buffer in self.named_buffers())

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        """The tree in depth-first order; with a set of ids seen so far, each module once."""
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(_join(prefix, name), seen)

    def _tensors(self, kind: type[T], prefix: str) -> Iterator[tuple[str, T]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, value in vars(module).items():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield _join(path, name), value

    # ---- state

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter and buffer under PyTorch's name for it; tied ones under each of their names."""
        return {name: np.array(value.numpy()) for name, value in self.named_state()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies `state` into the parameters and buffers, converted to their dtypes.

        Values are anything that NumPy takes for an array. Raises InputError that lists everything that does not fit,
        and then changes nothing: shapes that differ, and with `strict` missing and unexpected names.
        """
        own = dict(self.named_state())
        arrays = {name: np.asarray(value) for name, value in state.items() if name in own}
        missing = sorted(own.keys() - state.keys())
        unexpected = sorted(state.keys() - own.keys())
        problems = [
            f"{name}: expected shape {own[name].shape}, got {array.shape}"
            for name, array in arrays.items()
            if array.shape != own[name].shape
        ]
        problems += [
            f"{name}: expected numbers, got {array.dtype}"
            for name, array in arrays.items()
            if array.dtype.kind not in "fiub"
        ]
        if strict and missing:
            problems.append(f"missing: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected: {', '.join(unexpected)}")
        if problems:
            lines = "\n  ".join(problems)
            raise InputError(f"the state does not fit this {type(self).__name__}:\n  {lines}")
        with no_grad():
            for name, array in arrays.items():
                own[name].copy_(array.astype(own[name].dtype, copy=False))
        return IncompatibleKeys(missing, unexpected)

    def named_state(self) -> Iterator[tuple[str, Parameter | Buffer]]:
        """Every parameter and buffer under its dotted name; tied ones under each of their names."""
        for path, module in self._walk("", None):
            for kind in (Parameter, Buffer):
                for name, value in vars(module).items():
                    if isinstance(value, kind):
                        yield _join(path, name), value

    # ---- switches

    def train(self, mode: bool = True) -> Self:
        """Sets `training` here and, through their own `train`, in all children: one that overrides it has its way."""
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = None

    # ---- text

    def extra_repr(self) -> str:
        """The arguments to show in `repr`."""
        return ""

    def __repr__(self) -> str:
        children = list(self.named_children())
        extra = self.extra_repr()
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = [extra] if extra else []
        lines += [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in children]
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
