"""Varies images while training: how much, as plain values, and the function that does it.

The function is pure: the same images, settings and random words give the same bits. It must not know steps, shards or
how the words were made.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddp_bp.errors import DataError

WORDS_PER_IMAGE: Final = 3
"""Random words that `vary` wants for each image, whatever is switched on, so that switching one thing on moves nothing
else: one for the shift, one for the crop, one for the flip."""


@dataclass(frozen=True)
class Normalize:
    """Subtract `mean` and divide by `std`, one of each for every channel, of images in [0, 1]."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def problems(self) -> list[str]:
        """Every reason, one line each, why these values cannot be used."""
        problems = []
        if not self.mean or len(self.mean) != len(self.std):
            problems.append(
                "`augment.normalize` needs one mean and one std for each channel, got "
                f"{len(self.mean)} and {len(self.std)}; for one channel, for example, mean = [0.5], std = [0.25]"
            )
        if not all(map(isfinite, self.mean)):
            problems.append(f"`augment.normalize.mean` must be finite, got {list(self.mean)}")
        if not all(isfinite(value) and value > 0 for value in self.std):
            problems.append(f"`augment.normalize.std` must be finite and above 0, got {list(self.std)}")
        return problems


@dataclass(frozen=True)
class Augment:
    """How images (channels, height, width) are varied while training.

    shift: moved by up to this many pixels along each axis; what comes in is 0.
    crop: padded with this many pixels of 0 on each side, then cut to their size at a random place, as torchvision's
        `RandomCrop(size, padding=crop)` does. That is a shift by another name; if both are given, the moves add up.
    flip: mirrored left to right with probability 0.5.
    normalize: channels scaled. It is not random, so evaluation samples are normalized as well.
    """

    shift: int = 0
    flip: bool = False
    crop: int = 0
    normalize: Normalize | None = None

    @property
    def max_move(self) -> int:
        """The largest move along one axis, in pixels."""
        return self.shift + self.crop

    @property
    def is_random(self) -> bool:
        """Whether a training sample differs from one visit to the next."""
        return self.flip or self.max_move > 0

    def problems(self) -> list[str]:
        """Every reason, one line each, why these values cannot be used."""
        problems = [
            f"`augment.{key}` must be a number of pixels of at least 0, got {pixels}"
            for key, pixels in (("shift", self.shift), ("crop", self.crop))
            if pixels < 0
        ]
        return problems if self.normalize is None else problems + self.normalize.problems()

    def shape_problems(self, input_shape: tuple[int, ...]) -> list[str]:
        """Every reason, one line each, why these settings cannot be used on inputs of `input_shape`."""
        if not self.is_random and self.normalize is None:
            return []
        if len(input_shape) != 3:
            return [
                f"`augment` needs images of shape [channels, height, width], but the inputs have shape "
                f"{list(input_shape)}: set `input_shape` if they are images (digits: [1, 8, 8])"
            ]
        channels, height, width = input_shape
        problems = []
        if self.max_move >= min(height, width):
            problems.append(
                f"`augment.shift` and `augment.crop` may move an image by {self.max_move} pixels, which leaves "
                f"nothing of images of {height} x {width} pixels: lower them"
            )
        if self.normalize is not None and len(self.normalize.mean) != channels:
            problems.append(
                f"`augment.normalize` has {len(self.normalize.mean)} means, but the images have {channels} channels"
            )
        return problems

    def check_shape(self, input_shape: tuple[int, ...]) -> None:
        """Raises DataError unless these settings can be used on inputs of `input_shape`."""
        if problems := self.shape_problems(input_shape):
            raise DataError("; ".join(problems))


def vary(images: NDArray[Any], settings: Augment, words: NDArray[np.uint64]) -> NDArray[Any]:
    """Images moved and mirrored, not normalized, as a new array of the same shape and dtype.

    Args:
        images: (n, channels, height, width) of any dtype.
        settings: moves smaller than the images.
        words: (n, WORDS_PER_IMAGE), independent and uniform in [0, 2**64). Row i alone decides what is done to image i.
    """
    varied = _moved(images, settings, words) if settings.max_move else images.copy()
    if settings.flip:
        flipped = (words[:, 2] >> np.uint64(63)).astype(bool)
        varied[flipped] = varied[flipped, :, :, ::-1]
    return varied


def _moved(images: NDArray[Any], settings: Augment, words: NDArray[np.uint64]) -> NDArray[Any]:
    num_images, channels, height, width = images.shape
    margin = settings.max_move
    padded = np.zeros((num_images, channels, height + 2 * margin, width + 2 * margin), images.dtype)
    padded[:, :, margin : margin + height, margin : margin + width] = images
    # A window of the padded image that starts at `margin` shows the image where it was.
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    tops, lefts = _starts(words[:, 0], settings.shift) + _starts(words[:, 1], settings.crop)
    chosen: NDArray[Any] = windows[np.arange(num_images), :, tops, lefts]
    return chosen


def _starts(words: NDArray[np.uint64], limit: int) -> NDArray[np.int64]:
    """Two integers in [0, 2 * limit] from each word, int64 (2, n), uniform but for a bias below limit / 2**31.

    The upper and the lower half of a word are scaled to the range [Lemire, "Fast random integer generation in an
    interval", 2019, without its rejection step].
    """
    half = np.uint64(32)
    halves = np.stack([words >> half, words & np.uint64(2**32 - 1)])
    return ((halves * np.uint64(2 * limit + 1)) >> half).astype(np.int64)
