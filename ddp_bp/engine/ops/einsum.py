"""Einstein summation by matrix products.

Operands are contracted one after the other, from left to right, each pair by one batched product: axes in both and in
what is still to come are batch axes, axes in both and in nothing to come are summed. The gradient of a pair's operand
is another such contraction, of the output's gradient with the other operand.

A label is an int: the code of a letter, or -1, -2, ... for the axes that an ellipsis stands for, from the right.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ddp_bp.engine.ops.operation import Array, Flops, Gradients, Needs, Operation

Labels: TypeAlias = tuple[int, ...]


def _labels(term: str, ndim: int) -> Labels:
    """The labels of the axes of an operand with `ndim` axes that `term` describes."""
    before, dots, after = term.partition("...")
    letters = before + after
    if not all(letter.isascii() and letter.isalpha() for letter in letters):
        raise ValueError(f"the term {term!r} holds something else than letters and one ellipsis")
    num_hidden = ndim - len(letters)
    if num_hidden < 0 or (num_hidden and not dots):
        raise ValueError(f"the term {term!r} describes no array of {ndim} axes")
    return (*map(ord, before), *range(-num_hidden, 0), *map(ord, after))


def _parse(equation: str, operands: tuple[Array, ...]) -> tuple[list[Labels], Labels]:
    """The labels of each operand and of the output."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"there are {len(terms)} terms for {len(operands)} operands")
    labels = [_labels(term, operand.ndim) for term, operand in zip(terms, operands, strict=True)]
    found = [label for term in labels for label in term]
    hidden = tuple(sorted({label for label in found if label < 0}))
    if not arrow:
        return labels, (*hidden, *sorted(label for label in set(found) if label > 0 and found.count(label) == 1))
    output = (
        _labels(right, len(hidden) + len(right.replace("...", ""))) if "..." in right else _labels(right, len(right))
    )
    if len(set(output)) < len(output) or not set(output) <= set(found):
        raise ValueError("the output names an axis twice, or one that no operand has")
    return labels, output


def _sides(labels: list[Labels], operands: tuple[Array, ...]) -> dict[int, int]:
    """The length of each label's axes: they are equal or 1."""
    sides: dict[int, int] = {}
    for term, operand in zip(labels, operands, strict=True):
        for label, side in zip(term, operand.shape, strict=True):
            known = sides.setdefault(label, side)
            if known == 1:
                sides[label] = side
            elif side not in (known, 1):
                raise ValueError(f"axes of one label have lengths {known} and {side}")
    return sides


class _Reduced(NamedTuple):
    """An operand without repeated labels, stretched axes and axes that only it has, and how it came about."""

    array: Array
    labels: Labels
    shape: tuple[int, ...]  # of the operand
    full: Labels  # of the operand without its stretched axes
    kept: tuple[int, ...]  # its shape without its stretched axes


def _reduce(a: Array, labels: Labels, keep: set[int], sides: dict[int, int]) -> _Reduced:
    pairs = [(label, side) for label, side in zip(labels, a.shape, strict=True) if side == sides[label]]
    full, kept = tuple(label for label, _ in pairs), tuple(side for _, side in pairs)
    array = a.reshape(kept)
    unique = tuple(dict.fromkeys(full))
    if any(full.count(label) < labels.count(label) for label in unique):
        raise ValueError("axes of one label in one operand have different lengths")
    if len(unique) < len(full):
        array = np.einsum(array, [unique.index(label) for label in full], list(range(len(unique))))
    alone = tuple(axis for axis, label in enumerate(unique) if label not in keep)
    if alone:
        array = np.asarray(np.add.reduce(array, axis=alone))
    return _Reduced(array, tuple(label for label in unique if label in keep), a.shape, full, kept)


def _unreduce(gradient: Array, reduced: _Reduced) -> Array:
    """The gradient of the operand from that of what it was reduced to."""
    sides = dict(zip(reduced.full, reduced.kept, strict=True))
    unique = tuple(sides)
    if len(reduced.labels) < len(unique):
        thin = tuple(sides[label] if label in reduced.labels else 1 for label in unique)
        gradient = np.broadcast_to(gradient.reshape(thin), tuple(sides.values()))
    if len(unique) < len(reduced.full):
        spread = np.zeros(reduced.kept, gradient.dtype)
        diagonal = np.einsum(spread, [unique.index(label) for label in reduced.full], list(range(len(unique))))
        diagonal[...] = gradient
        gradient = spread
    return gradient.reshape(reduced.shape)


def _contract(a: Array, labels_a: Labels, b: Array, labels_b: Labels, output: Labels) -> Array:
    """The sum of products over the labels not in `output`, all of which are in both; no label twice in one array."""
    sides = dict(zip((*labels_a, *labels_b), (*a.shape, *b.shape), strict=True))
    batch = [label for label in labels_a if label in labels_b and label in output]
    summed = [label for label in labels_a if label in labels_b and label not in output]
    left = [label for label in labels_a if label not in labels_b]
    right = [label for label in labels_b if label not in labels_a]

    def arranged(array: Array, labels: Labels, *groups: list[int]) -> Array:
        order = [labels.index(label) for group in groups for label in group]
        return array.transpose(order).reshape([math.prod(sides[label] for label in group) for group in groups])

    if summed:
        leading = [batch] if batch else []
        product = np.matmul(
            arranged(a, labels_a, *leading, left, summed), arranged(b, labels_b, *leading, summed, right)
        )
    else:
        product = arranged(a, labels_a, batch, left)[:, :, None] * arranged(b, labels_b, batch, right)[:, None, :]
    found = [*batch, *left, *right]
    product = np.asarray(product.reshape([sides[label] for label in found]))
    return product.transpose([found.index(label) for label in output])


def _einsum(*operands_and_equation: Any) -> tuple[Array, Any]:
    *operands, equation = operands_and_equation
    if len({operand.dtype for operand in operands}) > 1:
        raise TypeError("the dtypes differ")
    labels, output = _parse(equation, tuple(operands))
    sides = _sides(labels, tuple(operands))
    # later[k]: the labels of the output and of the operands from the k-th on.
    later = [set(output)]
    for term, operand in zip(reversed(labels), reversed(operands), strict=True):
        later.append(later[-1] | {label for label, n in zip(term, operand.shape, strict=True) if n == sides[label]})
    later.reverse()
    first = _reduce(operands[0], labels[0], later[1], sides)
    so_far, found = first.array, first.labels
    steps: list[tuple[Array, Labels, _Reduced, Labels]] = []
    for k, operand in enumerate(operands[1:], 1):
        other = _reduce(operand, labels[k], later[k + 1] | set(found), sides)
        wanted = tuple(label for label in dict.fromkeys((*found, *other.labels)) if label in later[k + 1])
        steps.append((so_far, found, other, wanted))
        so_far, found = _contract(so_far, found, other.array, other.labels, wanted), wanted
    result = so_far.transpose([found.index(label) for label in output])
    # A single operand may come out as a view of itself.
    return result.copy() if len(operands) == 1 else result, (first, steps, found, output)


def _einsum_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    first, steps, found, output = saved
    gradient = gradient.transpose([output.index(label) for label in found])
    gradients: list[Array | None] = [None] * len(needs)
    for k in range(len(steps), 0, -1):
        so_far, labels, other, wanted = steps[k - 1]
        if needs[k]:
            gradients[k] = _unreduce(_contract(gradient, wanted, so_far, labels, other.labels), other)
        if not any(needs[:k]):
            return tuple(gradients)
        gradient = _contract(gradient, wanted, other.array, other.labels, labels)
    gradients[0] = _unreduce(gradient, first)
    return tuple(gradients)


def _einsum_flops(shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...], equation: str) -> Flops:  # noqa: ARG001
    """Of the pairwise contractions; each counts two for a product-and-add, one for a product that nothing sums.

    That which takes the gradient on to the operands before a pair counts with the last of these.
    """
    operands = tuple(np.broadcast_to(np.empty(()), shape) for shape in shapes)
    labels, kept = _parse(equation, operands)
    sides = _sides(labels, operands)

    def contraction(one: set[int], other: set[int], result: set[int]) -> int:
        together = one | other
        return math.prod(sides[label] for label in together) * (2 if together - result else 1)

    # What an operand alone has is summed before anything else.
    sums = []
    for term, shape in zip(labels, shapes, strict=True):
        others = set(kept).union(*(other for other in labels if other is not term))
        sums.append(math.prod(shape) if set(term) - others else 0)
    gradients = [0] * len(shapes) if len(shapes) > 1 else [sums[0]]
    forward, found = sum(sums), set(labels[0])
    for k in range(1, len(shapes)):
        later = set(kept).union(*labels[k + 1 :])
        found &= later | set(labels[k])
        other = set(labels[k]) & (later | found)
        wanted = (found | other) & later
        forward += contraction(found, other, wanted)
        gradients[k] += contraction(wanted, found, other)
        gradients[k - 1] += contraction(wanted, other, found)
        found = wanted
    return forward, tuple(gradients)


EINSUM = Operation(
    "einsum",
    _einsum,
    _einsum_vjp,
    "arrays of one dtype and an equation such as 'bik,bkj->bij', with a term of as many axes for each of them",
    reads_all=True,
    flops=_einsum_flops,
)

OPERATIONS = (EINSUM,)
