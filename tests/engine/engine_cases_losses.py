"""Cases of softmax and the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_cases import A, Case, Drawn, along_axis, numbers, positive_shapes, positive_sides, seeds, shapes, sides
from hypothesis import strategies as st

reductions = st.sampled_from(["none", "sum", "mean"])


@st.composite
def logits(draw: Any, reduction: str) -> np.ndarray:
    """(C,), (N, C) or (N, C, ...); of no samples only where there is no mean of them."""
    num_classes = draw(positive_sides)
    others = draw(st.lists(positive_sides if reduction == "mean" else sides, max_size=3))
    return numbers((*others[:1], num_classes, *others[1:]), draw(seeds))


@st.composite
def weights(draw: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    return np.random.default_rng(draw(seeds)).uniform(0.5, 2.0, shape) if draw(st.booleans()) else None


def num_classes_of(a: np.ndarray) -> int:
    return a.shape[0] if a.ndim == 1 else a.shape[1]


@st.composite
def classified(draw: Any, smoothed: bool = True) -> Drawn:
    reduction = draw(reductions)
    a = draw(logits(reduction))
    num_classes = num_classes_of(a)
    shape = () if a.ndim == 1 else (a.shape[0], *a.shape[2:])
    target = np.random.default_rng(draw(seeds)).integers(0, num_classes, shape)
    ignored = draw(st.sampled_from([-100, 0, 7]))
    if target.size and draw(st.booleans()):
        target.reshape(-1)[:: draw(st.integers(1, 3))] = ignored
    if reduction == "mean" and np.all(target == ignored):
        reduction = "sum"
    options = (reduction, draw(weights((num_classes,))), ignored)
    return [a, target], (*options, draw(st.sampled_from([0.0, 0.3, 1.0]))) if smoothed else options


@st.composite
def distributed(draw: Any) -> Drawn:
    reduction = draw(reductions)
    a = draw(logits(reduction))
    target = np.abs(numbers(a.shape, draw(seeds)))
    return [a, target], (reduction, draw(weights((num_classes_of(a),))), draw(st.sampled_from([0.0, 0.3])))


@st.composite
def compared(draw: Any, *more: float) -> Drawn:
    reduction = draw(reductions)
    shape = draw(positive_shapes if reduction == "mean" else shapes)
    options = (draw(st.sampled_from(more)),) if more else ()
    return [numbers(shape, draw(seeds)), numbers(shape, draw(seeds))], (reduction, *options)


@st.composite
def binary(draw: Any) -> Drawn:
    (a, target), (reduction,) = draw(compared())
    kept = a.shape[draw(st.integers(0, a.ndim)) :]
    options = (draw(weights(kept)), draw(weights(a.shape[-1:])))
    return [np.asarray(a * 4), np.asarray(np.abs(np.sin(target)))], (reduction, *options)


@st.composite
def diverging(draw: Any) -> Drawn:
    reduction = draw(st.sampled_from(["none", "sum", "mean", "batchmean"]))
    shape = draw(positive_shapes)
    target = np.abs(numbers(shape, draw(seeds))) + 0.1
    log_target = draw(st.booleans())
    return [numbers(shape, draw(seeds)), np.log(target) if log_target else target], (reduction, log_target)


@st.composite
def paired(draw: Any) -> Drawn:
    reduction = draw(reductions)
    shape = tuple(draw(st.lists(positive_sides if reduction == "mean" else sides, min_size=1, max_size=2)))
    target = np.random.default_rng(draw(seeds)).choice([-1, 1], shape[:-1])
    # Vectors of a length: next to 0 their direction turns faster than central differences can follow.
    pair = [numbers(shape, draw(seeds)) for _ in range(2)]
    inputs = [*(vectors + np.copysign(0.3, vectors) for vectors in pair), np.asarray(target)]
    return inputs, (reduction, draw(st.sampled_from([-0.3, 0.1])))


def of_torch(name: str, *arguments: str) -> Any:
    """The function of torch.nn.functional that takes the options under the names `arguments`."""

    def compute(torch: Any, *given: Any) -> Any:
        inputs, options = given[: len(given) - len(arguments)], given[len(given) - len(arguments) :]
        options = [torch.tensor(o, dtype=inputs[0].dtype) if isinstance(o, np.ndarray) else o for o in options]
        return getattr(torch.nn.functional, name)(*inputs, **dict(zip(arguments, options, strict=True)))

    return compute


SCALAR = np.ones(())
PAIRS_REFUSED = [
    ([np.ones((3, 1)), np.ones(3)], ("mean",)),
    ([A, A.astype(np.int64)], ("mean",)),
    ([A.astype(np.int64), A], ("mean",)),
]
CLASSES_REFUSED = [
    ([A, np.array([0, 3])], ("sum",)),
    ([A, np.array([0, -1])], ("sum",)),
    ([A, np.array([0, 1, 2])], ("sum",)),
    ([A, np.array([0.0, 1.0])], ("sum",)),
    ([A[0], np.array([0, 1])], ("sum",)),
    ([SCALAR, np.array(0)], ("sum",)),
    ([np.ones((2, 3, 4)), np.zeros((2, 3), np.int64)], ("sum",)),
    ([A, np.array([0, 1])], ("sum", np.ones(2))),
]


def refused_with(*more: Any) -> list[Any]:
    return [(inputs, (*options, *more)) for inputs, options in PAIRS_REFUSED]


CASES: dict[str, Case] = {
    "softmax": Case(along_axis(), lambda torch, a, axis: torch.softmax(a, axis), [([A], (2,))]),
    "log_softmax": Case(along_axis(), lambda torch, a, axis: torch.log_softmax(a, axis), [([A], (2,))]),
    "cross_entropy": Case(
        classified(),
        of_torch("cross_entropy", "reduction", "weight", "ignore_index", "label_smoothing"),
        CLASSES_REFUSED,
    ),
    "soft_cross_entropy": Case(
        distributed(),
        of_torch("cross_entropy", "reduction", "weight", "label_smoothing"),
        [
            ([A, A[0]], ("sum",)),
            ([A, A.astype(np.int64)], ("sum",)),
            ([A, A], ("sum", np.ones(2))),
            ([SCALAR, SCALAR], ("sum",)),
        ],
    ),
    "nll_loss": Case(
        classified(smoothed=False), of_torch("nll_loss", "reduction", "weight", "ignore_index"), CLASSES_REFUSED
    ),
    "mse_loss": Case(compared(), of_torch("mse_loss", "reduction"), PAIRS_REFUSED),
    "l1_loss": Case(compared(), of_torch("l1_loss", "reduction"), PAIRS_REFUSED),
    "huber_loss": Case(compared(0.3, 2.0), of_torch("huber_loss", "reduction", "delta"), refused_with(1.0)),
    "smooth_l1_loss": Case(compared(0.0, 0.3, 2.0), of_torch("smooth_l1_loss", "reduction", "beta"), refused_with(1.0)),
    "binary_cross_entropy_with_logits": Case(
        binary(),
        of_torch("binary_cross_entropy_with_logits", "reduction", "weight", "pos_weight"),
        [*PAIRS_REFUSED, ([A, A], ("sum", np.ones(2))), ([A, A], ("sum", None, np.ones((4, 2, 3))))],
    ),
    "kl_div": Case(
        diverging(),
        of_torch("kl_div", "reduction", "log_target"),
        [*refused_with(False), ([SCALAR, SCALAR], ("batchmean", False))],
    ),
    "cosine_embedding_loss": Case(
        paired(),
        of_torch("cosine_embedding_loss", "reduction", "margin"),
        [
            ([A, A, np.ones(3)], ("sum", 0.0)),
            ([A, A[0], np.ones(2)], ("sum", 0.0)),
            ([A[..., None], A[..., None], A], ("sum", 0.0)),
            ([A.astype(np.int64), A, np.ones(2)], ("sum", 0.0)),
        ],
    ),
}
