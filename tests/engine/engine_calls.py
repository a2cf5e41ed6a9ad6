"""Calls of the methods and functions that stand on the operations, which are those of PyTorch.

A call is a function of (library, x, y): `library` is ddp_bp or torch, `x` is (2, 3, 4) and `y` is (3, 4), both floating
tensors of that library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[Any, Any, Any], Any]


def integers(library: Any, *values: Any) -> Any:
    return library.tensor(np.array(values, np.int64))


def mask(x: Any) -> Any:
    return x > 0.2


METHODS: dict[str, list[Call]] = {
    "add": [lambda lib, x, y: x.add(y), lambda lib, x, y: x.add(2)],
    "sub": [lambda lib, x, y: x.sub(y)],
    "mul": [lambda lib, x, y: x.mul(y), lambda lib, x, y: x.mul(0.5)],
    "div": [lambda lib, x, y: x.div(y.abs() + 1)],
    "remainder": [
        lambda lib, x, y: x.remainder(0.7),
        lambda lib, x, y: x % (y.abs() + 1),
        lambda lib, x, y: 2 % (y.detach() + 9),
    ],
    "floor_divide": [
        lambda lib, x, y: x.floor_divide(0.7),
        lambda lib, x, y: x // 0.3,
        lambda lib, x, y: 9 // (y.abs() + 1),
    ],
    "maximum": [lambda lib, x, y: x.maximum(y)],
    "minimum": [lambda lib, x, y: x.minimum(y)],
    "eq": [lambda lib, x, y: x.eq(y)],
    "ne": [lambda lib, x, y: x.ne(y)],
    "lt": [lambda lib, x, y: x.lt(y)],
    "le": [lambda lib, x, y: x.le(0.1)],
    "gt": [lambda lib, x, y: x.gt(y)],
    "ge": [lambda lib, x, y: x.ge(y)],
    "isnan": [lambda lib, x, y: (x.floor().detach() / 0).isnan()],
    "isfinite": [lambda lib, x, y: (x / 0).isfinite()],
    "bitwise": [
        lambda lib, x, y: mask(x) & mask(y),
        lambda lib, x, y: mask(x) | mask(y),
        lambda lib, x, y: mask(x) ^ True,
        lambda lib, x, y: ~mask(x),
        lambda lib, x, y: integers(lib, 5, 6) & 3,
        lambda lib, x, y: 3 | integers(lib, 5, 6),
    ],
    "where": [lambda lib, x, y: x.where(mask(x), y), lambda lib, x, y: x.where(mask(y), 0.5)],
    "masked_fill": [lambda lib, x, y: x.masked_fill(mask(y), -1.0)],
    "clamp": [
        lambda lib, x, y: x.clamp(-0.5, 0.5),
        lambda lib, x, y: x.clamp(min=0),
        lambda lib, x, y: x.clamp(max=0.25),
        lambda lib, x, y: x.clamp(min=y),
        lambda lib, x, y: x.clamp(y - 1, y + 1),
        lambda lib, x, y: integers(lib, 1, -5, 9).clamp(max=3),
        lambda lib, x, y: integers(lib, 1, -5, 9).clamp(-2, 3),
    ],
    "clip": [lambda lib, x, y: x.clip(-0.5, 0.5)],
    "sign": [lambda lib, x, y: x.sign()],
    "floor": [lambda lib, x, y: x.floor(), lambda lib, x, y: integers(lib, 1, -5).floor()],
    "ceil": [lambda lib, x, y: x.ceil()],
    "round": [lambda lib, x, y: (x * 3).round()],
    "trunc": [lambda lib, x, y: (x * 3).trunc()],
    "neg": [lambda lib, x, y: x.neg()],
    "square": [lambda lib, x, y: x.square()],
    "reciprocal": [lambda lib, x, y: (x.abs() + 1).reciprocal(), lambda lib, x, y: integers(lib, 2, 4).reciprocal()],
    "rsqrt": [lambda lib, x, y: (x.abs() + 1).rsqrt()],
    "log1p": [lambda lib, x, y: x.abs().log1p()],
    "log2": [lambda lib, x, y: (x.abs() + 1).log2()],
    "expm1": [lambda lib, x, y: x.expm1()],
    "sin": [lambda lib, x, y: x.sin()],
    "cos": [lambda lib, x, y: x.cos()],
    "to": [lambda lib, x, y: x.to(y.dtype) * 2],
    "float": [lambda lib, x, y: integers(lib, 1, 2).float()],
    "double": [lambda lib, x, y: x.double()],
    "long": [lambda lib, x, y: (x * 5).long()],
    "bool": [lambda lib, x, y: x.floor().bool()],
    "max": [
        lambda lib, x, y: x.max(),
        lambda lib, x, y: x.max(1).values,
        lambda lib, x, y: x.max(-1, keepdim=True)[0],
        lambda lib, x, y: x.max(dim=0).indices,
    ],
    "min": [
        lambda lib, x, y: x.min(),
        lambda lib, x, y: x.min(0)[0],
        lambda lib, x, y: x.min(2, True).values,
        lambda lib, x, y: x.min(2)[1],
    ],
    "argmin": [lambda lib, x, y: x.argmin(), lambda lib, x, y: x.argmin(1, keepdim=True)],
    "any": [lambda lib, x, y: mask(x).any(), lambda lib, x, y: mask(x).any(dim=1, keepdim=True)],
    "all": [lambda lib, x, y: mask(x).all(), lambda lib, x, y: mask(x).all(2)],
    "prod": [lambda lib, x, y: x.prod(), lambda lib, x, y: x.prod(-2, keepdim=True)],
    "var": [
        lambda lib, x, y: x.var(),
        lambda lib, x, y: x.var(False),
        lambda lib, x, y: x.var(1, unbiased=False),
        lambda lib, x, y: x.var((0, -1), keepdim=True),
        lambda lib, x, y: x.var(-1, correction=0, keepdim=True),
    ],
    "std": [lambda lib, x, y: x.std(), lambda lib, x, y: x.std(-1, False, True), lambda lib, x, y: (x * 0).std(1)],
    "logsumexp": [lambda lib, x, y: (x * 400).logsumexp(1), lambda lib, x, y: x.logsumexp((0, 2), keepdim=True)],
    "cumsum": [lambda lib, x, y: x.cumsum(1), lambda lib, x, y: x.cumsum(dim=-1), lambda lib, x, y: mask(x).cumsum(0)],
    "size": [lambda lib, x, y: x * x.size(1) + x.size(-1) + len(x.size())],
    "dim": [lambda lib, x, y: x * x.dim()],
    "view": [lambda lib, x, y: x.view(-1, 6), lambda lib, x, y: x.view((4, 6))],
    "squeeze": [
        lambda lib, x, y: x[:, :1].squeeze(1),
        lambda lib, x, y: x.squeeze(0),
        lambda lib, x, y: x[:1, :, :1].squeeze(),
        lambda lib, x, y: x[:1, :, :1].squeeze((0, -1)),
        lambda lib, x, y: x.sum().squeeze(0),
    ],
    "unsqueeze": [
        lambda lib, x, y: x.unsqueeze(0),
        lambda lib, x, y: x.unsqueeze(-1),
        lambda lib, x, y: x.unsqueeze(-3),
    ],
    "unflatten": [lambda lib, x, y: x.unflatten(-1, (2, -1))],
    "t": [lambda lib, x, y: y.t(), lambda lib, x, y: y[0].t()],
    "mT": [lambda lib, x, y: x.mT],
    "movedim": [lambda lib, x, y: x.movedim(0, -1), lambda lib, x, y: x.movedim(-1, 1)],
    "flip": [lambda lib, x, y: x.flip(0), lambda lib, x, y: x.flip(0, -1), lambda lib, x, y: x.flip((1,))],
    "broadcast_to": [lambda lib, x, y: y.broadcast_to((2, 3, 4))],
    "expand": [lambda lib, x, y: y.expand(2, -1, 4), lambda lib, x, y: x[:, :1].expand(-1, 3, -1)],
    "narrow": [lambda lib, x, y: x.narrow(1, 1, 2), lambda lib, x, y: x.narrow(-1, -2, 1)],
    "split": [
        lambda lib, x, y: x.split(2, 1)[1],
        lambda lib, x, y: x.split(3, -1)[0],
        lambda lib, x, y: x.split([1, 0, 2], dim=1)[2],
        lambda lib, x, y: lib.split(x, 1)[1],
    ],
    "chunk": [lambda lib, x, y: x.chunk(2, 1)[1], lambda lib, x, y: x.chunk(9)[1], lambda lib, x, y: x[:0].chunk(2)[1]],
    "unbind": [lambda lib, x, y: x.unbind()[1], lambda lib, x, y: x.unbind(-1)[3]],
    "select": [lambda lib, x, y: x.select(1, -1)],
    "index_select": [lambda lib, x, y: x.index_select(1, integers(lib, 2, 0, 2, 2))],
    "gather": [lambda lib, x, y: y.gather(1, integers(lib, [3, 3], [0, 1]))],
}

FUNCTIONS: dict[str, list[Call]] = {
    "cat": [lambda lib, x, y: lib.cat([x, y.unsqueeze(0)]), lambda lib, x, y: lib.cat((x, x), dim=-1)],
    "stack": [lambda lib, x, y: lib.stack([x[0], y]), lambda lib, x, y: lib.stack([x, x], dim=-1)],
    "split": [lambda lib, x, y: lib.split(x, [1, 2], dim=1)[1]],
    "broadcast_tensors": [lambda lib, x, y: lib.broadcast_tensors(x, y)[1]],
    "einsum": [
        lambda lib, x, y: lib.einsum("bij,kj->bik", x, y),
        lambda lib, x, y: lib.einsum("...ij, ...kj, ik -> ...", x, y, y[:, :3]),
    ],
    "where": [
        lambda lib, x, y: lib.where(mask(x), x, y),
        lambda lib, x, y: lib.where(mask(x), x, 0.0),
        lambda lib, x, y: lib.where(mask(y), -1, x),
        lambda lib, x, y: lib.where(mask(x), 1.0, 0.0),
    ],
    "maximum": [lambda lib, x, y: lib.maximum(x, y)],
    "minimum": [lambda lib, x, y: lib.minimum(x, y)],
    "pad": [
        lambda lib, x, y: lib.nn.functional.pad(x, (1, 2)),
        lambda lib, x, y: lib.nn.functional.pad(x, (1, -2, 0, 3), value=2.5),
        lambda lib, x, y: lib.nn.functional.pad(x, (3, 2), mode="reflect"),
        lambda lib, x, y: lib.nn.functional.pad(x, (5, 0), mode="replicate"),
        lambda lib, x, y: lib.nn.functional.pad(x, (4, 1), mode="circular"),
        lambda lib, x, y: lib.nn.functional.pad(x.unsqueeze(0), (1, 1, 2, 0), "reflect"),
        lambda lib, x, y: lib.nn.functional.pad(x.unsqueeze(0), (1, 1, 2, 3), "circular"),
    ],
}
