"""What all optimizers share: a flat parameter vector, flat state beside it, and a step that can be taken in parts.

A subclass says which settings it takes, which state it keeps and how one block of elements is updated. It must update
each element from that element's own values only, so that the result has the same bits however the vector is cut among
ranks. (`layerwise` is for optimizers that need norms of whole parameters besides.)

A rule can also be taken up where another process has died in it: it is run from its beginning then, without the writes
that were made (see `block`). So what it works out for a write must follow from the gradient that it was given and from
what parameters and state are by then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ddp_bp.engine.ops.operation import Array
from ddp_bp.errors import DtypeError, ShapeError
from ddp_bp.optim import state as saved
from ddp_bp.optim.block import Block
from ddp_bp.optim.settings import Check, ParameterGroup, Params, check_settings, read_params
from ddp_bp.optim.state import Allocate

# Elements updated at once: what one block touches (parameters, gradient, state, scratch) stays in a core's cache.
BLOCK_SIZE = 32 * 1024


class Segment(NamedTuple):
    """Elements [first, last) that are updated by the rule of that number."""

    first: int
    last: int
    rule: int


class Piece(NamedTuple):
    """One block of a part, as it is found again in each step, and where its gradient is in that of the part."""

    segment: int
    gradient: slice
    block: Block


Rule = Callable[[Block], None]
MakeBlock = Callable[[int, Array, dict[str, Array]], Block]
"""Makes the block that begins with element `first` of all, from its `parameters` and `state`."""


class Optimizer(ABC):
    """Base of the optimizers.

    `params` is `model.parameters()`, `model.named_parameters()`, a FlatParameters, or a list of groups with settings of
    their own, `[{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": 0.1}]`. A setting that
    a group does not name has the value given to the optimizer; `param_groups` shows all, and takes new values.

    `allocate(name, size, dtype)` returns a zeroed vector to keep state in, where it should not be memory of this
    process alone. Parameters that do not require a gradient are left alone.

    Gradients add up over backward calls until `zero_grad`, so that one step can take those of several batches.
    """

    # The settings by PyTorch's names, and what each must be.
    checks: ClassVar[Mapping[str, Check]] = {}
    state_names: ClassVar[tuple[str, ...]] = ()
    # Whether rules can be taken up in the middle, as said above. If not, blocks are copied before they are changed.
    can_resume: ClassVar[bool] = False

    def __init__(self, params: Params, defaults: Mapping[str, Any], allocate: Allocate | None = None) -> None:
        self.flat, groups = read_params(params)
        self.num_steps = 0
        self.state: dict[str, Array] = {}
        self._allocate = allocate
        self.defaults = self._check(defaults)
        self.param_groups = tuple(
            ParameterGroup(parameters, {**self.defaults, **settings}, self._accept) for parameters, settings in groups
        )
        self._segments = self._cut()
        self._trained = self._flags()
        self._scratch = np.empty((2, min(BLOCK_SIZE, self.flat.size)), self.flat.dtype)

    @property
    def lr(self) -> float:
        """The learning rate of the first group. Setting it sets that of every group."""
        rate: float = self.param_groups[0].settings["lr"]
        return rate

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    def move_to(self, allocate: Allocate) -> None:
        """Keeps its state, and what state it may need later, in vectors from `allocate`; values are kept."""
        self._allocate = allocate
        for name, vector in self.state.items():
            self.state[name] = saved.allocate_vector(allocate, name, self.flat)
            self.state[name][:] = vector

    def step(self) -> None:
        """One step with the gradients in the parameters' `grad`, which it may overwrite; none counts as zero.

        So weight decay and momentum move a parameter without a gradient as well, but not one that requires none.
        """
        self.flat.check_home(type(self).__name__)
        self._follow_flags()
        self.update(0, self.flat.size, self.flat.finish_gradient())
        self.advance()
        self.flat.mark_changed()

    def zero_grad(self) -> None:
        self.flat.zero_grad()

    def update(self, lo: int, hi: int, gradient: Array) -> None:
        """Takes the current step for elements [lo, hi), with their `gradient` (hi - lo,), which it may overwrite.

        The step is complete once this was called for every element, in whatever parts, and `advance` once.
        """
        self._check_part(lo, hi, gradient)
        self.update_pieces(self.pieces(lo, hi), self.rules(), gradient)

    def rules(self) -> list[Rule]:
        """How the current step updates a block, for each group: for `update_pieces`."""
        return [self._step_rule(group.settings) for group in self.param_groups]

    def pieces(self, lo: int, hi: int, make: MakeBlock | None = None) -> list[Piece]:
        """Elements [lo, hi) cut into blocks, for whoever takes one step after another for them.

        Valid as long as parameters and state stay where they are, and the same parameters require a gradient.
        """
        make = make or self.block
        data, vectors = self.flat.data, self.state.items()
        return [
            Piece(
                position,
                slice(start - lo, stop - lo),
                make(start, data[start:stop], {name: vector[start:stop] for name, vector in vectors}),
            )
            for position, (first, last, _) in enumerate(self._segments)
            for start, stop in _blocks(max(first, lo), min(last, hi))
        ]

    def block(self, first: int, parameters: Array, state: dict[str, Array]) -> Block:
        """A block of at most BLOCK_SIZE elements, from `first` on, with scratch memory that all such blocks share."""
        scratch, other = self._scratch[:, : len(parameters)]
        return Block(parameters, scratch, other, state)

    def update_pieces(self, pieces: Sequence[Piece], rules: Sequence[Rule], gradient: Array) -> None:
        """`update` for elements [lo, hi), by their `pieces` and the `rules` of the current step. Nothing is checked.

        `gradient`: (hi - lo,), which may be overwritten.
        """
        for segment, part, block in pieces:
            own, number = gradient[part], self._segments[segment].rule
            if self.param_groups[number].settings["maximize"]:
                np.negative(own, out=own)
            block.begin(own)
            rules[number](block)

    def advance(self) -> None:
        """Counts the step that `update` has taken."""
        self.num_steps += 1

    def state_dict(self) -> dict[str, Array]:
        """A copy of the state: "<parameter>.<state>" in the parameter's shape, and "num_steps" as int64 of shape ().

        Settings are not part of it: a script gives them anew, and a schedule its rates.
        """
        return saved.save(self.flat, self.state, "num_steps", self.num_steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave. If something does not fit: InputError lists it, nothing changes."""
        self.num_steps = saved.restore(type(self).__name__, self.flat, self.state, "num_steps", state)

    def _kept_state(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """The names of the state vectors that these settings need, as PyTorch calls them."""
        return self.state_names

    @abstractmethod
    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        """The update of one block at the current step, with what depends on the step alone worked out beforehand."""

    def _check_together(self, settings: Mapping[str, Any]) -> None:  # noqa: B027
        """Raises InputError for settings that cannot be used together. There are none here."""

    def _check(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        checked = check_settings(type(self).__name__, self.checks, settings)
        self._check_together(checked)
        return checked

    def _accept(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a group after the checks. What state they need and nobody did so far is kept from now on."""
        checked = self._check(settings)
        for name in self._kept_state(checked):
            if name not in self.state:
                self.state[name] = saved.allocate_vector(self._allocate, name, self.flat)
        return checked

    def _cut(self) -> tuple[Segment, ...]:
        """The elements that require a gradient, adjacent ones of a group joined; rules are numbered as the groups."""
        segments: list[Segment] = []
        for segment in self._slot_segments():
            if segments and segments[-1].last == segment.first and segments[-1].rule == segment.rule:
                segments[-1] = segments[-1]._replace(last=segment.last)
            else:
                segments.append(segment)
        return tuple(segments)

    def _flags(self) -> tuple[bool, ...]:
        return tuple([parameter.requires_grad for parameter in self.flat.parameters])

    def _follow_flags(self) -> None:
        """Leaves alone what has been frozen since the last step, and takes up what no longer is."""
        flags = self._flags()
        if flags != self._trained:
            self._trained = flags
            self._arrange()

    def _arrange(self) -> None:
        self._segments = self._cut()

    def _slot_segments(self) -> Iterator[Segment]:
        owner = {id(parameter): n for n, group in enumerate(self.param_groups) for parameter in group.parameters}
        for slot, parameter in zip(self.flat.slots, self.flat.parameters, strict=True):
            if parameter.requires_grad and slot.size:
                yield Segment(slot.offset, slot.offset + slot.size, owner[id(parameter)])

    def _check_part(self, lo: int, hi: int, gradient: Array) -> None:
        if not 0 <= lo <= hi <= self.flat.size or gradient.shape != (hi - lo,):
            raise ShapeError(
                f"update of elements [{lo}, {hi}) of {self.flat.size} got a gradient of shape {gradient.shape}; "
                f"it takes ({hi - lo},)"
            )
        if gradient.dtype != self.flat.dtype:
            raise DtypeError(f"update got a gradient of {gradient.dtype} for parameters of {self.flat.dtype}")

    def __repr__(self) -> str:
        rates = ", ".join(f"lr={group.settings['lr']}" for group in self.param_groups)
        return f"{type(self).__name__}({rates}, num_parameters={self.flat.size}, num_steps={self.num_steps})"


def _blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + BLOCK_SIZE, last)) for start in range(first, last, BLOCK_SIZE))


def decay(block: Block, weight_decay: float) -> None:
    """gradient += weight_decay * p: the gradient of an L2 penalty."""
    if weight_decay:
        np.multiply(block.parameters, weight_decay, out=block.scratch)
        np.add(block.gradient, block.scratch, out=block.gradient)
