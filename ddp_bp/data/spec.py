"""What a user says about their data, as plain values, and which combinations of them make sense.

This module opens no file and must not know how the values were written down (a recipe, a command line, a script).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class DataSpec:
    """Where samples come from, what they stand for, and how they are divided.

    Sources, exactly one of:
        name: a packaged data set ("digits").
        path: a file of the user's own: `.npz`, `.npy` (read where it lies, never whole into memory) or `.csv`.

    Targets:
        target_path: the `.npy` file of targets that belongs to a `.npy` file of inputs.
        inputs: name of the array of inputs in a `.npz` file.
        target: name of the array of targets in a `.npz` file (default "y"), or the name or number of the target column
            of a CSV file (numbers count from 0, negative ones from the end; default the last column).
        task: "classification", "regression" or "auto". Auto is classification when `num_classes` is given or the
            targets are one integer for each sample (in a CSV file: a column of whole numbers), else regression.
        num_classes: number of classes; default one more than the highest label. Only for classification.

    Evaluation:
        eval_path, eval_target_path: files of evaluation samples, of the same format; `eval_fraction` is then not used.
        eval_fraction: the part of the samples, in [0, 1), that is held out for evaluation; 0 means no evaluation.
        seed: decides which samples are held out.

    standardize: subtract the mean of each input value over the training samples and divide by its standard deviation.

    Relative paths are resolved against a folder given to `load`.
    """

    name: str | None = None
    path: str | None = None
    target_path: str | None = None
    inputs: str = "x"
    target: str | None = None
    task: Literal["auto", "classification", "regression"] = "auto"
    num_classes: int | None = None
    eval_fraction: float = 0.2
    eval_path: str | None = None
    eval_target_path: str | None = None
    standardize: bool = False
    seed: int = 0

    def problems(self) -> tuple[str, ...]:
        """Every reason, one line each, why these values cannot be used together; empty when they can."""
        return (*self._source_problems(), *self._target_problems(), *self._evaluation_problems())

    def _source_problems(self) -> list[str]:
        if self.name is None and self.path is None:
            return ["no data: set `name` to a packaged data set (digits) or `path` to a file"]
        if self.name is not None and self.path is not None:
            return [f"both `name` ({self.name!r}) and `path` ({self.path!r}) are set: keep one of them"]
        if self.name is None:
            return []
        unused = {
            "target_path": self.target_path,
            "eval_path": self.eval_path,
            "target": self.target,
            "inputs": None if self.inputs == "x" else self.inputs,
        }
        return [
            f"`{field}` ({value!r}) has no meaning for the packaged data set {self.name!r}: remove it"
            for field, value in unused.items()
            if value is not None
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
        if not 0 <= self.eval_fraction < 1:
            problems.append(f"`eval_fraction` must be at least 0 and below 1, got {self.eval_fraction}")
        if self.eval_target_path is not None and self.eval_path is None:
            problems.append(f"`eval_target_path` ({self.eval_target_path!r}) is set without `eval_path`")
        if not 0 <= self.seed < 2**64:
            problems.append(f"`seed` must be in [0, 2**64), got {self.seed}")
        return problems
