"""Turns a text into samples for predicting each next character.

A sample is a window of characters; its targets are the characters one further on. Windows do not overlap, so that an
epoch sees each character once. This module must not know what is done with the numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.source import Parts, Source
from ddp_bp.errors import DataError


def decode_utf8(content: bytes, called: str) -> str:
    """The text in UTF-8, without a byte order mark; line ends stay as they are. Raises DataError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{called} is not UTF-8 text ({error.reason} in byte {error.start}): save it as UTF-8"
        ) from error


def divide_text(text: str, called: str, window: int, eval_fraction: float) -> Parts:
    """Samples of `text`; of its characters the last `eval_fraction`, rounded, are held out. Raises DataError.

    Inputs and targets are integers (N, window), places in the vocabulary: all different characters of the text, in the
    order of Unicode. What is left of either part after its last whole window is not used.
    """
    vocabulary = _vocabulary(text, called)
    codes = _encode(text, vocabulary, called)
    num_train = len(codes) - int(len(codes) * eval_fraction + 0.5)
    part = f"the training part of {called}" if eval_fraction else called
    return Parts(
        train=_windows(codes[:num_train], vocabulary, part, window),
        evaluation=_windows(codes[num_train:], vocabulary, f"the evaluation part of {called}", window)
        if eval_fraction
        else None,
        is_divided=True,
        num_classes=len(vocabulary),
    )


def pair_texts(text: str, called: str, eval_text: str, eval_called: str, window: int) -> Parts:
    """Samples of `text` to train on and of `eval_text` to evaluate on, both in the vocabulary of `text`.

    Raises DataError naming the first character of `eval_text` that `text` does not have.
    """
    vocabulary = _vocabulary(text, called)
    return Parts(
        train=_windows(_encode(text, vocabulary, called), vocabulary, called, window),
        evaluation=_windows(_encode(eval_text, vocabulary, eval_called), vocabulary, eval_called, window),
        is_divided=True,
        num_classes=len(vocabulary),
    )


def _vocabulary(text: str, called: str) -> str:
    vocabulary = "".join(sorted(set(text)))
    if len(vocabulary) < 2:
        what = "is empty" if not text else f"has no other character than {vocabulary!r}"
        raise DataError(f"{called} {what}: there is nothing to learn from it")
    return vocabulary


def _encode(text: str, vocabulary: str, called: str) -> NDArray[Any]:
    """The place in `vocabulary` of each character, in the smallest unsigned dtype that holds them all."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    known = np.frombuffer(vocabulary.encode("utf-32-le"), dtype="<u4")
    unknown = np.flatnonzero(~np.isin(points, known))
    if len(unknown):
        place = int(unknown[0])
        line = text.count("\n", 0, place) + 1
        raise DataError(
            f"{called}, line {line}: the character {text[place]!r} is not in the training text, so it has no class"
        )
    codes = np.zeros(int(known[-1]) + 1, np.min_scalar_type(len(vocabulary)))
    codes[known] = np.arange(len(known))
    encoded: NDArray[Any] = codes[points]
    return encoded


def _windows(codes: NDArray[Any], vocabulary: str, called: str, window: int) -> Source:
    num_windows = (len(codes) - 1) // window
    if num_windows < 1:
        raise DataError(
            f"{called} has {len(codes)} characters, but one sample takes {window + 1} (`context` and one more): "
            f"lower `context`, or change `eval_fraction`, or give more text"
        )
    used = num_windows * window
    return Source(
        inputs=codes[:used].reshape(num_windows, window),
        targets=codes[1 : used + 1].reshape(num_windows, window),
        input_file=called,
        target_file=called,
        converts_late=True,
        vocabulary=vocabulary,
    )
