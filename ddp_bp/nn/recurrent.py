"""Recurrent layers: the Elman network, GRU and LSTM, of several layers and in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.functional import concatenate
from ddp_bp.engine.ops import recurrent
from ddp_bp.engine.tensor import Parameter, Tensor, apply
from ddp_bp.errors import InputError, ShapeError
from ddp_bp.nn import functional, init
from ddp_bp.nn.module import Module


class _Recurrent(Module):
    """What the layers share: parameters under PyTorch's names, and the way through layers and directions."""

    num_gates = 1
    num_states = 1

    def _set_up(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: npt.DTypeLike,
    ) -> None:
        name = type(self).__name__
        if min(input_size, hidden_size, num_layers) < 1:
            raise InputError(
                f"{name} takes sizes above 0 and got input_size {input_size}, hidden_size {hidden_size} and "
                f"num_layers {num_layers}"
            )
        if not 0.0 <= dropout <= 1.0:
            raise InputError(f"{name} takes a dropout in [0, 1] and got {dropout}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        rows = self.num_gates * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * (2 if bidirectional else 1)
            for suffix in self._suffixes(layer):
                setattr(self, f"weight_ih_{suffix}", Parameter(np.empty((rows, width), dtype)))
                setattr(self, f"weight_hh_{suffix}", Parameter(np.empty((rows, hidden_size), dtype)))
                if bias:
                    setattr(self, f"bias_ih_{suffix}", Parameter(np.empty(rows, dtype)))
                    setattr(self, f"bias_hh_{suffix}", Parameter(np.empty(rows, dtype)))
        self.reset_parameters()

    def _suffixes(self, layer: int) -> tuple[str, ...]:
        return (f"l{layer}", f"l{layer}_reverse") if self.bidirectional else (f"l{layer}",)

    def _weights(self, suffix: str) -> tuple[Parameter, ...]:
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return tuple(getattr(self, f"{kind}_{suffix}") for kind in kinds)

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _run(
        self, input: Tensor, initial: tuple[Tensor, ...] | None, run: Callable[..., tuple[Tensor, ...]]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs of the last layer, and for each kind of state the last ones (layers * directions, N, H).

        `run(input, states, weights, is_reverse)` is one layer in one direction: its outputs (T, N, H) and last states.
        """
        is_batched = input.ndim == 3
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            axes = "N, T" if self.batch_first else "T, N"
            raise ShapeError(
                f"{type(self).__name__} got an input of shape {input.shape}; it takes ({axes}, {self.input_size}) or "
                f"(T, {self.input_size})"
            )
        if not is_batched:
            input = input[:, None]
        elif self.batch_first:
            input = input.transpose(0, 1)
        if input.shape[0] == 0:
            raise ShapeError(f"{type(self).__name__} got a sequence of no steps; it takes one step or more")
        states = self._states(input, initial, is_batched)
        last: list[list[Tensor]] = [[] for _ in range(self.num_states)]
        for layer in range(self.num_layers):
            outputs = []
            for suffix in self._suffixes(layer):
                number = len(last[0])
                begin = tuple(state[number] for state in states)
                output, *ends = run(input, begin, self._weights(suffix), suffix.endswith("reverse"))
                outputs.append(output)
                for collected, end in zip(last, ends, strict=True):
                    collected.append(end)
            input = outputs[0] if len(outputs) == 1 else concatenate(outputs, 2)
            if layer + 1 < self.num_layers:
                input = functional.dropout(input, self.dropout, self.training, stream_key=self.stream_key)
        joined = tuple(concatenate([end[None] for end in ends]) for ends in last)
        if not is_batched:
            return input[:, 0], tuple(state[:, 0] for state in joined)
        return input.transpose(0, 1) if self.batch_first else input, joined

    def _states(self, input: Tensor, initial: tuple[Tensor, ...] | None, is_batched: bool) -> tuple[Tensor, ...]:
        """The initial states (layers * directions, N, H), zeros unless given."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        shape = (count, input.shape[1], self.hidden_size)
        if initial is None:
            return (Tensor(np.zeros(shape, input.dtype)),) * self.num_states
        wanted = shape if is_batched else (count, self.hidden_size)
        for state in initial:
            if state.shape != wanted:
                raise ShapeError(
                    f"{type(self).__name__} got an initial state of shape {state.shape}; it takes {wanted}"
                )
        return initial if is_batched else tuple(state[:, None] for state in initial)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        if not self.bias:
            text += ", bias=False"
        if self.batch_first:
            text += ", batch_first=True"
        if self.dropout:
            text += f", dropout={self.dropout}"
        return text + ", bidirectional=True" if self.bidirectional else text


def _last(output: Tensor, is_reverse: bool) -> Tensor:
    return output[0] if is_reverse else output[-1]


class RNN(_Recurrent):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu: (T, N, input_size) to (T, N, directions * hidden_size).

    With `batch_first` the axes are (N, T, features); N may be left out. Gives the outputs and the last hidden states
    (layers * directions, N, hidden_size). Layer k has `weight_ih_lk`, `weight_hh_lk`, `bias_ih_lk`, `bias_hh_lk`, and
    the same with `_reverse`, which all start uniform within 1 / sqrt(hidden_size). `dropout` is between layers.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise InputError(f"RNN takes the nonlinearity 'tanh' or 'relu' and got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        self._set_up(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def run(*arguments: Any) -> tuple[Tensor, Tensor]:
            input, states, weights, is_reverse = arguments
            output = apply(recurrent.RNN, (input, *states, *weights), (self.nonlinearity, is_reverse))
            return output, _last(output, is_reverse)

        output, (hidden,) = self._run(input, None if hx is None else (hx,), run)
        return output, hidden


class GRU(_Recurrent):
    """Gated recurrent units: (T, N, input_size) to (T, N, directions * hidden_size).

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr), z likewise, n = tanh(W_in x + b_in + r (W_hn h + b_hn)) and
    h' = (1 - z) n + z h. Weights hold the rows of r, z and n one below the other. The rest is as in `RNN`.
    """

    num_gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._set_up(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def run(*arguments: Any) -> tuple[Tensor, Tensor]:
            input, states, weights, is_reverse = arguments
            output = apply(recurrent.GRU, (input, *states, *weights), (is_reverse,))
            return output, _last(output, is_reverse)

        output, (hidden,) = self._run(input, None if hx is None else (hx,), run)
        return output, hidden


class LSTM(_Recurrent):
    """Long short-term memory: (T, N, input_size) to (T, N, directions * hidden_size).

    i, f and o are sigmoids and g a tanh of W_i x + b_i + W_h h + b_h; c' = f c + i g and h' = o tanh(c'). Weights hold
    the rows of i, f, g and o one below the other. Takes (h, c) or None, and gives the outputs and the last (h, c), each
    (layers * directions, N, hidden_size). The rest is as in `RNN`.
    """

    num_gates = 4
    num_states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._set_up(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        def run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
            input, states, weights, is_reverse = arguments
            # The operation has one result: the outputs and, behind them, the last cell state.
            packed = apply(recurrent.LSTM, (input, *states, *weights), (is_reverse,))
            output = packed[:-1]
            return output, _last(output, is_reverse), packed[-1]

        output, (hidden, cell) = self._run(input, None if hx is None else tuple(hx), run)
        return output, (hidden, cell)
