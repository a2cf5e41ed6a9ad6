"""Arguments that functions and methods take, and things that they may be given in their place."""

from __future__ import annotations

from typing import Any

import numpy as np

import ddp_bp as ddp
from ddp_bp.engine.tensor import Tensor

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Tensor:
    return ddp.tensor(RNG.standard_normal(shape), requires_grad=True)


def whole(*values: int) -> Tensor:
    return ddp.tensor(np.array(values))


PAIR = [floats(3, 2), floats(3, 2)]
IMAGES = floats(2, 3, 6, 6)
# Arguments that each function takes.
TAKEN: dict[str, list[Any]] = {
    "binary_cross_entropy_with_logits": PAIR,
    "cosine_embedding_loss": [*PAIR, whole(1, -1, 1)],
    "cross_entropy": [floats(3, 2), whole(1, 0, 1)],
    "dropout": [floats(3, 2)],
    "huber_loss": PAIR,
    "kl_div": PAIR,
    "l1_loss": PAIR,
    "linear": [floats(3, 2), floats(4, 2), floats(4)],
    "log_softmax": [floats(3, 2), 1],
    "mse_loss": PAIR,
    "nll_loss": [floats(3, 2), whole(1, 0, 1)],
    "pad": [floats(3, 2), (1, 1)],
    "relu": [floats(3, 2)],
    "sigmoid": [floats(3, 2)],
    "smooth_l1_loss": PAIR,
    "softmax": [floats(3, 2), 1],
    "tanh": [floats(3, 2)],
    "adaptive_avg_pool1d": [floats(2, 3, 5), 2],
    "adaptive_avg_pool2d": [IMAGES, 2],
    "avg_pool1d": [floats(2, 3, 5), 2],
    "avg_pool2d": [IMAGES, 2],
    "shard_sum": [floats(3, 2)],
    "sync_batch_norm": [floats(4, 3), ddp.tensor(np.zeros(3)), ddp.tensor(np.ones(3)), floats(3), floats(3)],
    "batch_norm": [floats(4, 3), ddp.tensor(np.zeros(3)), ddp.tensor(np.ones(3)), floats(3), floats(3), True],
    "bilinear": [floats(3, 2), floats(3, 4), floats(5, 2, 4), floats(5)],
    "conv1d": [floats(2, 3, 6), floats(4, 3, 2), floats(4)],
    "conv2d": [IMAGES, floats(4, 3, 2, 2), floats(4)],
    "conv_transpose2d": [IMAGES, floats(3, 4, 2, 2), floats(4)],
    "elu": [floats(3, 2)],
    "embedding": [whole(1, 0, 2), floats(4, 3)],
    "gelu": [floats(3, 2)],
    "group_norm": [floats(2, 4, 3), 2, floats(4), floats(4)],
    "layer_norm": [floats(2, 4), (4,), floats(4), floats(4)],
    "leaky_relu": [floats(3, 2)],
    "max_pool1d": [floats(2, 3, 5), 2],
    "max_pool2d": [IMAGES, 2],
    "rms_norm": [floats(2, 4), (4,), floats(4)],
    "scaled_dot_product_attention": [floats(2, 3, 4), floats(2, 3, 4), floats(2, 3, 4)],
    "silu": [floats(3, 2)],
    "softplus": [floats(3, 2)],
}
X = floats(2, 3, 4)
METHODS: dict[str, list[Any]] = {
    "sum": [1, True],
    "mean": [1],
    "max": [1],
    "var": [1],
    "logsumexp": [1],
    "cumsum": [1],
    "reshape": [6, 4],
    "transpose": [0, 1],
    "permute": [0, 2, 1],
    "squeeze": [0],
    "unsqueeze": [0],
    "flatten": [0, 1],
    "unflatten": [1, (3, 1)],
    "movedim": [0, 1],
    "flip": [0],
    "expand": [2, 3, 4],
    "broadcast_to": [(2, 3, 4)],
    "narrow": [1, 0, 2],
    "split": [1, 1],
    "chunk": [2, 1],
    "unbind": [0],
    "select": [0, 1],
    "index_select": [0, whole(1, 0)],
    "gather": [1, ddp.tensor(np.zeros((2, 1, 4), np.int64))],
    "clamp": [0, 1],
    "where": [ddp.tensor(np.ones((2, 3, 4), bool)), X],
    "masked_fill": [ddp.tensor(np.ones((2, 3, 4), bool)), 1.0],
    "softmax": [1],
    "to": [np.float32],
    "matmul": [floats(4, 3)],
    "add": [X],
    "maximum": [X],
    "pow": [2],
    "__getitem__": [(0,)],
    "copy_": [np.ones((2, 3, 4))],
}
JOINING: dict[str, list[Any]] = {
    "cat": [[X, X], 1],
    "stack": [[X, X], 1],
    "split": [X, 1, 1],
    "where": [X > 0, X, 0.0],
    "maximum": [X, X],
    "broadcast_tensors": [X, X],
    "einsum": ["bij,bij->", X, X],
}
NONSENSE: list[Any] = [
    *(None, "x", 99, -99, 1.5, np.nan, object(), {}, (), (9, 9), (1.5,), ("a", "b"), [1, 2], [[]]),
    *(np.zeros(3), np.array(["a"]), np.array([1j]), np.array([None])),
    *(floats(7, 5), floats(1, 1, 1, 1, 1, 1), ddp.tensor(np.float64(1)), ddp.tensor(np.zeros(0))),
    *(whole(1, 2, 3), ddp.tensor(np.ones((2, 3, 4), bool)), ddp.tensor(np.ones((3, 2), np.float32))),
]
