"""A text continued by a model that was trained on it. Knows neither ranks nor how the model was trained."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddp_bp.data import Loaded
from ddp_bp.engine import no_grad, tensor
from ddp_bp.engine.random import generator, random_stream
from ddp_bp.errors import RecipeError
from ddp_bp.nn import Module
from ddp_bp.recipes.schema import SampleSection

# Random numbers are drawn as if by a shard that no batch can have; the one before it is that of initial values.
_STREAM = 2**62 + 1


def sample_problems(section: SampleSection, data: Loaded) -> list[str]:
    """Every reason, one line each with its key, why there can be no such sample of `data`."""
    if section.characters is None:
        return []
    if data.vocabulary is None:
        return ["sample: a sample can be written only after a text, and these data are none; remove the section"]
    missing = [character for character in section.prompt or "" if character not in data.vocabulary]
    return [f"sample.prompt: the character {missing[0]!r} is not in the training text"] if missing else []


def check_sampling(model: Module, section: SampleSection, data: Loaded) -> None:
    """Let the model write one character. Raises RecipeError if it cannot take what has been written so far."""
    if section.characters is None or data.vocabulary is None:
        return
    codes = _first(section, data.vocabulary)[-data.input_shape[0] :]
    try:
        _logits(model, codes, len(data.vocabulary))
    except Exception as error:
        raise RecipeError(
            "recipe",
            [
                f"sample: the model cannot take a text of {len(codes)} characters, and while it writes it is given "
                f"from 1 up to data.context = {data.input_shape[0]}: {error}"
            ],
        ) from error


def write_sample(model: Module, section: SampleSection, data: Loaded, seed: int, step: int) -> str | None:
    """The prompt and what `model` writes after it; None if the recipe asks for no sample.

    The model is given the last `data.context` characters each time, in evaluation mode. The text follows from the
    weights, `seed` and `step` alone.
    """
    if section.characters is None or data.vocabulary is None:
        return None
    codes = _first(section, data.vocabulary)
    num_given = len(codes)
    with random_stream(seed, step, _STREAM):
        # One draw for the whole text, so that no character can shift the numbers of the next.
        draws = generator().random(section.characters)
    for draw in draws:
        logits = _logits(model, codes[-data.input_shape[0] :], len(data.vocabulary))
        codes.append(_pick(logits, section.temperature, float(draw)))
    written = "".join(data.vocabulary[code] for code in codes[num_given:])
    return (section.prompt or "") + written


def _first(section: SampleSection, vocabulary: str) -> list[int]:
    """The codes to go on from: at least one."""
    start = "\n" if "\n" in vocabulary else vocabulary[0]
    return [vocabulary.index(character) for character in section.prompt or start]


def _logits(model: Module, codes: list[int], num_classes: int) -> npt.NDArray[np.float64]:
    """The model's logits (num_classes,) of what comes after `codes`."""
    if model.training:
        model.eval()
    with no_grad():
        output = model(tensor(np.array([codes], np.int64)))
    logits: npt.NDArray[np.float64] = output.numpy()[0, -1, :num_classes].astype(np.float64)
    return logits


def _pick(logits: npt.NDArray[np.float64], temperature: float, draw: float) -> int:
    """The character at which the cumulated probabilities reach `draw`, in [0, 1)."""
    if temperature == 0.0:
        return int(logits.argmax())
    weights = np.cumsum(np.exp((logits - logits.max()) / temperature))
    return min(int(np.searchsorted(weights, draw * weights[-1], side="right")), len(logits) - 1)
