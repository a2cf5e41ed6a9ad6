"""Recurrent layers in one direction over a whole sequence: the Elman network, GRU and LSTM in PyTorch's formulas.

The products with the inputs are one product over all steps, and so are the weights' gradients; what is left in the loop
over the steps is the product with the hidden state and the gates. Arrays are (T, N, features): step, sample, feature.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.exponentials import logistic
from ddp_bp.engine.ops.flops import recurrent_flops
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.errors import DtypeError, InputError, ShapeError


def _check(name: str, num_gates: int, arrays: tuple[Array, ...], num_states: int) -> None:
    """Arrays: input, states, weight_ih, weight_hh and perhaps bias_ih and bias_hh."""
    a, *states = arrays[: 1 + num_states]
    weights = arrays[1 + num_states :]
    got = f"{name} got {', '.join(describe(array) for array in arrays)}"
    state_names = "a state (N, H)" if num_states == 1 else "two states (N, H)"
    expected = (
        f"it takes an input (T, N, I), {state_names}, weights ({num_gates}H, I) and ({num_gates}H, H) and perhaps two "
        f"biases ({num_gates}H,), of one floating dtype"
    )
    if any(array.dtype != a.dtype or a.dtype.kind != "f" for array in arrays):
        raise DtypeError(f"{got}; {expected}")
    if a.ndim != 3 or states[0].ndim != 2 or len(weights) not in (2, 4):
        raise ShapeError(f"{got}; {expected}")
    rows = num_gates * states[0].shape[1]
    wanted = [(rows, a.shape[2]), (rows, states[0].shape[1]), (rows,), (rows,)]
    if any(state.shape != (a.shape[1], states[0].shape[1]) for state in states) or any(
        weight.shape != shape for weight, shape in zip(weights, wanted, strict=False)
    ):
        raise ShapeError(f"{got}; {expected}")


def _steps(num_steps: int, reverse: bool) -> range:
    return range(num_steps - 1, -1, -1) if reverse else range(num_steps)


def _rows(a: Array) -> Array:
    """(T, N, F) as (T * N, F)."""
    return a.reshape(a.shape[0] * a.shape[1], a.shape[2])


def _project(a: Array, weight: Array, bias: Array | None) -> Array:
    """(T, N, I) times the transpose of (G, I), plus (G,): (T, N, G)."""
    output = _rows(a).dot(weight.T)
    if bias is not None:
        output += bias
    return np.reshape(output, (*a.shape[:2], len(weight)))


def _before(hidden: Array, initial: Array, reverse: bool) -> Array:
    """The state that each step started from: (T, N, H)."""
    if not len(hidden):
        return hidden
    return np.concatenate([hidden[1:], initial[None]] if reverse else [initial[None], hidden[:-1]])


def _weight_gradients(
    a: Array, before: Array, of_inputs: Array, of_states: Array, needs: Needs, out: Any
) -> list[Array | None]:
    """Gradients of weight_ih, weight_hh, bias_ih and bias_hh from those of the gates' two summands (T, N, G)."""
    rows_in, rows_state = _rows(of_inputs), _rows(of_states)
    return [
        np.dot(rows_in.T, _rows(a), out=out[0]) if needs[0] else None,
        np.dot(rows_state.T, _rows(before), out=out[1]) if needs[1] else None,
        *(
            np.add.reduce(rows, axis=0, out=home) if needed else None
            for rows, needed, home in zip((rows_in, rows_state), needs[2:], out[2:], strict=False)
        ),
    ]


def _input_gradient(of_gates: Array, weight: Array) -> Array:
    return np.reshape(_rows(of_gates).dot(weight), (*of_gates.shape[:2], weight.shape[1]))


# ---- Elman: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu


def _rnn(a: Array, initial: Array, *rest: Any) -> tuple[Array, Any]:
    *weights, nonlinearity, reverse = rest
    _check("rnn", 1, (a, initial, *weights), 1)
    if nonlinearity not in ("tanh", "relu"):
        raise InputError(f"rnn takes the nonlinearity 'tanh' or 'relu' and got {nonlinearity!r}")
    weight_ih, weight_hh, *biases = weights
    output = _project(a, weight_ih, biases[0] + biases[1] if biases else None)
    turned = weight_hh.T
    state = initial
    for step in _steps(len(a), reverse):
        output[step] += state.dot(turned)
        state = output[step]
        if nonlinearity == "tanh":
            np.tanh(state, out=state)
        else:
            np.maximum(state, 0, out=state)
    return output, (a, initial, weight_ih, weight_hh, output, bool(biases), nonlinearity, reverse)


def _rnn_vjp(gradient: Array, saved: Any, needs: Needs, out: Any) -> Gradients:
    a, initial, weight_ih, weight_hh, output, has_biases, nonlinearity, reverse = saved
    slopes = 1 - np.square(output) if nonlinearity == "tanh" else (output > 0).astype(output.dtype)
    carried = np.zeros_like(initial)
    for step in _steps(len(a), not reverse):
        carried += gradient[step]
        slopes[step] *= carried
        carried = slopes[step].dot(weight_hh)
    before = _before(output, initial, reverse)
    return (
        _input_gradient(slopes, weight_ih) if needs[0] else None,
        carried if needs[1] else None,
        *_weight_gradients(a, before, slopes, slopes, needs[2:], out)[: 4 if has_biases else 2],
    )


# ---- LSTM: i, f, o = sigmoid(...), g = tanh(...); c' = f c + i g; h' = o tanh(c'). Gates in the order i, f, g, o.


def _lstm(a: Array, initial: Array, initial_cell: Array, *rest: Any) -> tuple[Array, Any]:
    """(T + 1, N, H): the hidden state after each step, in the order of the inputs, then the last cell state."""
    *weights, reverse = rest
    _check("lstm", 4, (a, initial, initial_cell, *weights), 2)
    weight_ih, weight_hh, *biases = weights
    num_steps, num_samples, _ = a.shape
    size = initial.shape[1]
    gates = _project(a, weight_ih, biases[0] + biases[1] if biases else None)
    output = np.empty((num_steps + 1, num_samples, size), a.dtype)
    cells = np.empty((num_steps, num_samples, size), a.dtype)
    turned = weight_hh.T
    state, cell = initial, initial_cell
    with np.errstate(over="ignore"):
        for step in _steps(num_steps, reverse):
            now = gates[step]
            now += state.dot(turned)
            logistic(now[:, : 2 * size], out=now[:, : 2 * size])
            np.tanh(now[:, 2 * size : 3 * size], out=now[:, 2 * size : 3 * size])
            logistic(now[:, 3 * size :], out=now[:, 3 * size :])
            remembered = np.multiply(now[:, size : 2 * size], cell, out=cells[step])
            remembered += now[:, :size] * now[:, 2 * size : 3 * size]
            cell = remembered
            state = np.tanh(cell, out=output[step])
            state *= now[:, 3 * size :]
    output[num_steps] = cell
    return output, (a, initial, initial_cell, weight_ih, weight_hh, output, gates, cells, bool(biases), reverse)


def _lstm_vjp(gradient: Array, saved: Any, needs: Needs, out: Any) -> Gradients:
    a, initial, initial_cell, weight_ih, weight_hh, output, gates, cells, has_biases, reverse = saved
    num_steps, size = len(a), initial.shape[1]
    slopes = np.empty_like(gates)
    cells_before = _before(cells, initial_cell, reverse)
    carried, carried_cell = np.zeros_like(initial), gradient[num_steps].copy()
    for step in _steps(num_steps, not reverse):
        i, f, g, o = (gates[step][:, k * size : (k + 1) * size] for k in range(4))
        slope_i, slope_f, slope_g, slope_o = (slopes[step][:, k * size : (k + 1) * size] for k in range(4))
        carried += gradient[step]
        squashed = np.tanh(cells[step])
        np.multiply(carried, squashed, out=slope_o)
        slope_o *= o
        slope_o *= 1 - o
        np.square(squashed, out=squashed)
        np.subtract(1, squashed, out=squashed)
        squashed *= o
        squashed *= carried
        carried_cell += squashed
        np.multiply(carried_cell, g, out=slope_i)
        slope_i *= i
        slope_i *= 1 - i
        np.multiply(carried_cell, cells_before[step], out=slope_f)
        slope_f *= f
        slope_f *= 1 - f
        np.multiply(carried_cell, i, out=slope_g)
        slope_g *= 1 - np.square(g)
        carried = slopes[step].dot(weight_hh)
        carried_cell *= f
    before = _before(output[:num_steps], initial, reverse)
    return (
        _input_gradient(slopes, weight_ih) if needs[0] else None,
        carried if needs[1] else None,
        carried_cell if needs[2] else None,
        *_weight_gradients(a, before, slopes, slopes, needs[3:], out)[: 4 if has_biases else 2],
    )


# ---- GRU: r, z = sigmoid(...), n = tanh(W_in x + b_in + r (W_hn h + b_hn)); h' = (1 - z) n + z h. Gates r, z, n.


def _gru(a: Array, initial: Array, *rest: Any) -> tuple[Array, Any]:
    *weights, reverse = rest
    _check("gru", 3, (a, initial, *weights), 1)
    weight_ih, weight_hh, *biases = weights
    num_steps, num_samples, _ = a.shape
    size = initial.shape[1]
    gates = _project(a, weight_ih, biases[0] if biases else None)
    output = np.empty((num_steps, num_samples, size), a.dtype)
    # What the reset gate multiplies: W_hn h + b_hn.
    proposals = np.empty_like(output)
    turned = weight_hh.T
    state = initial
    with np.errstate(over="ignore"):
        for step in _steps(num_steps, reverse):
            now = gates[step]
            of_state = state.dot(turned)
            if biases:
                of_state += biases[1]
            now[:, : 2 * size] += of_state[:, : 2 * size]
            logistic(now[:, : 2 * size], out=now[:, : 2 * size])
            proposals[step] = of_state[:, 2 * size :]
            new = now[:, 2 * size :]
            new += now[:, :size] * proposals[step]
            np.tanh(new, out=new)
            update = now[:, size : 2 * size]
            following = np.subtract(state, new, out=output[step])
            following *= update
            following += new
            state = following
    return output, (a, initial, weight_ih, weight_hh, output, gates, proposals, bool(biases), reverse)


def _gru_vjp(gradient: Array, saved: Any, needs: Needs, out: Any) -> Gradients:
    a, initial, weight_ih, weight_hh, output, gates, proposals, has_biases, reverse = saved
    num_steps, size = len(a), initial.shape[1]
    before = _before(output, initial, reverse)
    # The summands of r and z are alike in inputs and states; that of n has the reset gate before the states.
    of_inputs, of_states = np.empty_like(gates), np.empty_like(gates)
    carried = np.zeros_like(initial)
    for step in _steps(num_steps, not reverse):
        r, z, n = (gates[step][:, k * size : (k + 1) * size] for k in range(3))
        slope_r, slope_z, slope_n = (of_inputs[step][:, k * size : (k + 1) * size] for k in range(3))
        carried += gradient[step]
        np.subtract(1, z, out=slope_n)
        slope_n *= 1 - np.square(n)
        slope_n *= carried
        np.subtract(before[step], n, out=slope_z)
        slope_z *= z
        slope_z *= 1 - z
        slope_z *= carried
        np.multiply(slope_n, proposals[step], out=slope_r)
        slope_r *= r
        slope_r *= 1 - r
        of_states[step] = of_inputs[step]
        of_states[step][:, 2 * size :] *= r
        carried = carried * z
        carried += of_states[step].dot(weight_hh)
    return (
        _input_gradient(of_inputs, weight_ih) if needs[0] else None,
        carried if needs[1] else None,
        *_weight_gradients(a, before, of_inputs, of_states, needs[2:], out)[: 4 if has_biases else 2],
    )


_WEIGHTS = "weight_ih, weight_hh, perhaps bias_ih and bias_hh, and a direction"

RNN = Operation(
    "rnn",
    _rnn,
    _rnn_vjp,
    f"an input, a state, {_WEIGHTS}",
    reads=(0, 1, 2, 3),
    reads_output=True,
    flops=recurrent_flops,
    writes=(2, 3, 4, 5),
)
LSTM = Operation(
    "lstm",
    _lstm,
    _lstm_vjp,
    f"an input, a hidden and a cell state, {_WEIGHTS}",
    reads=(0, 1, 2, 3, 4),
    reads_output=True,
    flops=recurrent_flops,
    writes=(3, 4, 5, 6),
)
GRU = Operation(
    "gru",
    _gru,
    _gru_vjp,
    f"an input, a state, {_WEIGHTS}",
    reads=(0, 1, 2, 3),
    reads_output=True,
    flops=recurrent_flops,
    writes=(2, 3, 4, 5),
)

OPERATIONS = (RNN, LSTM, GRU)
