"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ddp_bp.errors import InputError
from ddp_bp.nn.module import Module


class Sequential(Module):
    """Calls its modules one after the other. They are named "0", "1", ... as in PyTorch."""

    def __init__(self, *modules: Module) -> None:
        for position, module in enumerate(modules):
            if not isinstance(module, Module):
                raise InputError(f"Sequential takes modules, and argument {position} is a {type(module).__name__}")
        self._sequence = list(modules)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(position), module) for position, module in enumerate(self._sequence))

    def append(self, module: Module) -> Sequential:
        self._sequence.append(module)
        return self

    def forward(self, input: Any) -> Any:
        for module in self._sequence:
            input = module(input)
        return input

    def __getitem__(self, position: int) -> Module:
        return self._sequence[position]

    def __len__(self) -> int:
        return len(self._sequence)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._sequence)
