"""What a user says about their data, as plain values, and which combinations of them make sense.

This module opens no file and must not know how the values were written down (a recipe, a command line, a script).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final, Literal

from ddp_bp.data.augment import Augment
from ddp_bp.data.packaged_sets import PACKAGED, PACKAGED_TEXTS
from ddp_bp.data.public_sets import PUBLIC

Task = Literal["classification", "regression"]
Kind = Literal["packaged arrays", "packaged text", "images", "text file", "file"]

TEXT_SUFFIX: Final = ".txt"

_DEFAULT_EVAL_FRACTION: Final = 0.2
_DEFAULT_TEXT_EVAL_FRACTION: Final = 0.1
_DEFAULT_CONTEXT: Final = 64

# For which kinds of data a setting means something. A setting that is not here means something for all of them.
_SAMPLES: Final[tuple[Kind, ...]] = ("packaged arrays", "images", "file")
_MEANINGFUL: Final[dict[str, tuple[Kind, ...]]] = {
    "target_path": ("file",),
    "inputs": ("file",),
    "target": ("file",),
    "task": _SAMPLES,
    "num_classes": _SAMPLES,
    "eval_fraction": ("packaged arrays", "packaged text", "text file", "file"),
    "eval_path": ("text file", "file"),
    "eval_target_path": ("file",),
    "seed": ("packaged arrays", "file"),
    "folder": ("images",),
    "context": ("packaged text", "text file"),
    "input_shape": _SAMPLES,
    "standardize": _SAMPLES,
    "standardize_targets": ("packaged arrays", "file"),
    "augment": _SAMPLES,
}


@dataclass(frozen=True)
class DataSpec:
    """Where samples come from, what they stand for, and how they are divided.

    Sources, exactly one of:
        name: a packaged data set ("digits", "diabetes", "tinyshakespeare"), or one that is looked for on this machine
            ("mnist", "fashion-mnist").
        path: a file of the user's own: `.npz`, `.npy` (read where it lies, never whole into memory), `.csv`, or a text
            in UTF-8 that ends in `.txt`.
        folder: for "mnist" and "fashion-mnist", the folder of their IDX files; nothing else is then looked at.

    Targets:
        target_path: the `.npy` file of targets that belongs to a `.npy` file of inputs.
        inputs: name of the array of inputs in a `.npz` file.
        target: name of the array of targets in a `.npz` file (default "y"), or the name or number of the target column
            of a CSV file (numbers count from 0, negative ones from the end; default the last column).
        task: "classification", "regression" or "auto". Auto is classification when `num_classes` is given or the
            targets are one integer for each sample (in a CSV file: a column of whole numbers), else regression.
        num_classes: number of classes; default one more than the highest label. Only for classification.

    Text:
        context: a sample is a window of this many characters, by default 64, and its targets are the characters one
            further on. Windows do not overlap. The classes are the different characters, in the order of Unicode.

    Evaluation ("mnist" and "fashion-mnist" have a test set of their own):
        eval_path, eval_target_path: files of evaluation samples, of the same format; `eval_fraction` is then not used.
        eval_fraction: the part of the samples, in [0, 1), that is held out for evaluation; 0 means no evaluation.
            Default 0.2; of a text its end is held out, by default 0.1.
        seed: decides which samples are held out.

    Inputs:
        input_shape: the shape of one input, where the file has the same values in another shape: [1, 8, 8] for digits.
        standardize: subtract the mean of each input value over the training samples and divide by its deviation.
        standardize_targets: the same for the targets of a regression, so that a mean squared error of 1 is that of
            always giving the mean.
        augment: how images are varied.

    Relative paths are resolved against a folder given to `load`.
    """

    name: str | None = None
    path: str | None = None
    target_path: str | None = None
    inputs: str = "x"
    target: str | None = None
    task: Literal["auto", "classification", "regression"] = "auto"
    num_classes: int | None = None
    eval_fraction: float | None = None
    eval_path: str | None = None
    eval_target_path: str | None = None
    standardize: bool = False
    seed: int = 0
    folder: str | None = None
    context: int | None = None
    input_shape: tuple[int, ...] | None = None
    standardize_targets: bool = False
    augment: Augment = field(default_factory=Augment)

    @property
    def kind(self) -> Kind:
        """What kind of data this is, as far as name or path tell. An unknown name counts as packaged arrays."""
        if self.name is None:
            return "text file" if (self.path or "").lower().endswith(TEXT_SUFFIX) else "file"
        if self.name in PUBLIC:
            return "images"
        return "packaged text" if self.name in PACKAGED_TEXTS else "packaged arrays"

    @property
    def held_out_fraction(self) -> float:
        """`eval_fraction`, or its default for this kind of data."""
        if self.eval_fraction is not None:
            return self.eval_fraction
        return _DEFAULT_TEXT_EVAL_FRACTION if self.kind in _MEANINGFUL["context"] else _DEFAULT_EVAL_FRACTION

    @property
    def window(self) -> int:
        """`context`, or its default: characters in a sample of text."""
        return _DEFAULT_CONTEXT if self.context is None else self.context

    def problems(self) -> tuple[str, ...]:
        """Every reason, one line each, why these values cannot be used together; empty when they can."""
        return (
            *self._source_problems(),
            *self._target_problems(),
            *self._evaluation_problems(),
            *self._input_problems(),
        )

    def _source_problems(self) -> list[str]:
        if self.name is None and self.path is None:
            names = ", ".join((*PACKAGED, *PACKAGED_TEXTS, *PUBLIC))
            return [f"no data: set `name` to a packaged data set ({names}) or `path` to a file"]
        if self.name is not None and self.path is not None:
            return [f"both `name` ({self.name!r}) and `path` ({self.path!r}) are set: keep one of them"]
        kind = self.kind
        called = {
            "packaged arrays": f"the packaged data set {self.name!r}",
            "packaged text": f"the packaged text {self.name!r}",
            "images": f"{self.name!r}, whose images are divided into training and test already",
            "text file": f"the text {self.path!r}",
            "file": f"the file {self.path!r}",
        }[kind]
        unset = DataSpec()
        return [
            f"`{key}`{_in_brackets(getattr(self, key))} has no meaning for {called}: remove it"
            for key in (one.name for one in fields(self))
            if kind not in _MEANINGFUL.get(key, (kind,)) and getattr(self, key) != getattr(unset, key)
        ]

    def _target_problems(self) -> list[str]:
        problems = []
        if self.task not in ("auto", "classification", "regression"):
            problems.append(f"`task` must be auto, classification or regression, got {self.task!r}")
        if self.num_classes is not None:
            if self.task == "regression":
                problems.append(f"`num_classes` ({self.num_classes}) has no meaning for regression: remove it")
            elif self.num_classes < 2:
                problems.append(f"`num_classes` must be at least 2, got {self.num_classes}")
        return problems

    def _evaluation_problems(self) -> list[str]:
        problems = []
        if self.eval_fraction is not None and not 0 <= self.eval_fraction < 1:
            problems.append(f"`eval_fraction` must be at least 0 and below 1, got {self.eval_fraction}")
        if self.eval_target_path is not None and self.eval_path is None:
            problems.append(f"`eval_target_path` ({self.eval_target_path!r}) is set without `eval_path`")
        if not 0 <= self.seed < 2**64:
            problems.append(f"`seed` must be in [0, 2**64), got {self.seed}")
        return problems

    def _input_problems(self) -> list[str]:
        problems = []
        if self.context is not None and self.context < 1:
            problems.append(f"`context` must be at least 1, got {self.context}")
        if self.input_shape is not None and not (self.input_shape and min(self.input_shape) >= 1):
            problems.append(f"`input_shape` must be one or more lengths of at least 1, got {list(self.input_shape)}")
        if self.augment.normalize is not None and self.standardize:
            problems.append("`standardize` and `augment.normalize` both scale the inputs: keep one of them")
        return [*problems, *self.augment.problems()]


def _in_brackets(value: object) -> str:
    return "" if isinstance(value, Augment) else f" ({value!r})"
