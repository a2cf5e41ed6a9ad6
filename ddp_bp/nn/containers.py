"""Modules made of modules."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from types import MappingProxyType
from typing import Any, overload

from ddp_bp.engine.tensor import Tensor
from ddp_bp.errors import InputError, ShapeError
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

    @overload
    def __getitem__(self, position: int) -> Module: ...
    @overload
    def __getitem__(self, position: slice) -> Sequential: ...
    def __getitem__(self, position: int | slice) -> Module:
        if isinstance(position, slice):
            return Sequential(*self._sequence[position])
        return self._sequence[position]

    def __len__(self) -> int:
        return len(self._sequence)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._sequence)


class ModuleList(Module):
    """Modules by number, to be called by the module that holds the list."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._list: list[Module] = []
        self.extend(modules)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(position), module) for position, module in enumerate(self._list))

    def append(self, module: Module) -> ModuleList:
        self._list.append(_module("ModuleList", str(len(self._list)), module))
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        for module in modules:
            self.append(module)
        return self

    def __getitem__(self, position: int) -> Module:
        return self._list[position]

    def __setitem__(self, position: int, module: Module) -> None:
        self._list[position] = _module("ModuleList", str(position), module)

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._list)


class ModuleDict(Module):
    """Modules by name, in the order in which they came, to be called by the module that holds the dict."""

    def __init__(self, modules: Mapping[str, Module] = MappingProxyType({})) -> None:
        self._dict: dict[str, Module] = {}
        for name, module in modules.items():
            self[name] = module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return iter(self._dict.items())

    def __getitem__(self, name: str) -> Module:
        return self._dict[name]

    def __setitem__(self, name: str, module: Module) -> None:
        if not name or "." in name:
            raise InputError(f"ModuleDict takes names without a dot, which are not empty, and got {name!r}")
        self._dict[name] = _module("ModuleDict", name, module)

    def __delitem__(self, name: str) -> None:
        del self._dict[name]

    def __contains__(self, name: object) -> bool:
        return name in self._dict

    def __len__(self) -> int:
        return len(self._dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict)

    def keys(self) -> KeysView[str]:
        return self._dict.keys()

    def values(self) -> ValuesView[Module]:
        return self._dict.values()

    def items(self) -> ItemsView[str, Module]:
        return self._dict.items()


class Residual(Module):
    """`module(x) + x`, or `module(x) + shortcut(x)` where the shapes differ (He et al., 2016)."""

    def __init__(self, module: Module, shortcut: Module | None = None) -> None:
        self.module = _module("Residual", "module", module)
        self.shortcut = None if shortcut is None else _module("Residual", "shortcut", shortcut)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.module(input)
        beside: Tensor = input if self.shortcut is None else self.shortcut(input)
        if output.shape != beside.shape:
            raise ShapeError(
                f"Residual got {output.shape} from its module beside {beside.shape}; it takes equal shapes: give a "
                "shortcut that brings the input to the module's shape"
            )
        return output + beside


def _module(container: str, name: str, module: Module) -> Module:
    if not isinstance(module, Module):
        raise InputError(f"{container} takes modules, and {name} is a {type(module).__name__}")
    return module
