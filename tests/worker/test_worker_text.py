"""Texts: an answer for each position, and what a trained model writes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.data import DataSpec, Loaded, load
from ddp_bp.data.batches import Batch
from ddp_bp.engine import Tensor
from ddp_bp.engine.random import random_stream
from ddp_bp.errors import RecipeError
from ddp_bp.nn.losses import Loss
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.recipes import load_recipe
from ddp_bp.recipes.schema import SampleSection
from ddp_bp.worker.assemble import Job, assemble
from ddp_bp.worker.evaluation import Evaluation
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.sampling import write_sample

TEXT = "abcab\ncabca\n" * 40
CONTEXT = 6


@pytest.fixture
def data(tmp_path: Path) -> Loaded:
    (tmp_path / "own.txt").write_text(TEXT)
    return load(DataSpec(path="own.txt", context=CONTEXT), tmp_path)


def reader(num_classes: int = 4) -> nn.Module:
    with random_stream(3, 0, 0):
        return nn.Sequential(nn.Embedding(num_classes, 5), nn.Linear(5, num_classes))


def rows(model: nn.Module, data: Loaded) -> tuple[np.ndarray, np.ndarray]:
    """Logits (M, V) and targets (M,) of all positions of the evaluation samples."""
    assert data.evaluation is not None
    inputs, targets = data.evaluation.batch(np.arange(data.evaluation.num_samples))
    embedded = model[0].weight.numpy()[inputs].astype(np.float64)
    logits = embedded @ model[1].weight.numpy().T + model[1].bias.numpy()
    return logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)


@pytest.mark.parametrize(
    ("loss", "weights", "ignored"),
    [
        (nn.CrossEntropyLoss(), [1, 1, 1, 1], None),
        (nn.CrossEntropyLoss(ignore_index=2), [1, 1, 0, 1], 2),
        (nn.CrossEntropyLoss(np.array([1, 2, 0.5, 4], np.float32)), [1, 2, 0.5, 4], None),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_loss_and_accuracy_are_means_over_positions(
    data: Loaded, loss: Loss, weights: list[float], ignored: int | None, size: int
) -> None:
    def run(communicator):
        objective = Objective(reader(), loss, counts_correct=True, answers_per_sample=CONTEXT)
        return Evaluation(objective, data.evaluation, 3, communicator, 1, pytest.fail).run(0, has_accuracy=True)

    result = run_ranks(size, run)[0]
    logits, targets = rows(reader(), data)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
    of_targets = np.array(weights)[targets]
    assert result.loss == pytest.approx((losses * of_targets).sum() / of_targets.sum(), rel=1e-5)
    counted = targets != ignored
    assert result.accuracy == pytest.approx((logits.argmax(axis=1) == targets)[counted].mean(), rel=1e-12)


def test_the_gradient_is_that_of_the_classes_on_the_second_axis(data: Loaded) -> None:
    model = reader()
    inputs, targets = data.train.batch(np.arange(5))
    objective = Objective(model, nn.CrossEntropyLoss(), counts_correct=True, answers_per_sample=CONTEXT)
    total = objective.train(Batch(np.arange(5), inputs, targets, 0))
    assert total.weight == 5 * CONTEXT
    total.loss.backward()
    ours = [parameter.grad.copy() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    output = model(ddp.tensor(inputs)).permute(0, 2, 1)
    nn.functional.cross_entropy(output, ddp.tensor(targets), reduction="sum").backward()
    for parameter, gradient in zip(model.parameters(), ours, strict=True):
        np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


# ---- from a recipe


MODELS = """
from ddp_bp import nn

def build(input_shape, num_outputs):
    return nn.Sequential(nn.Embedding(num_outputs, 5), nn.Linear(5, num_outputs))

def of_the_text(input_shape, num_outputs):
    return nn.Sequential(nn.Embedding(num_outputs, 5), nn.Flatten(), nn.Linear(5 * input_shape[0], num_outputs))

class Fixed(nn.Module):
    def __init__(self, input_shape, num_outputs):
        self.layers, self.length = build(input_shape, num_outputs), input_shape[0]

    def forward(self, x):
        return self.layers(x).reshape(x.shape[0], self.length, -1)
"""


def job(folder: Path, *overrides: str) -> Job:
    (folder / "own.txt").write_text(TEXT)
    (folder / "text_models.py").write_text(MODELS)
    (folder / "own.toml").write_text(
        f"""
        model = {{ factory = "text_models:build" }}
        data = {{ path = "own.txt", context = {CONTEXT} }}
        train = {{ shards = 2, batch_size = 8 }}
        """
    )
    recipe, base = load_recipe(str(folder / "own.toml"), overrides)
    return assemble(recipe, base, check_data=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "text_models", raising=False)
    return tmp_path


def test_a_text_job_has_an_answer_for_each_position(folder: Path) -> None:
    made = job(folder)
    assert made.is_classification
    assert made.data.num_outputs == 4
    assert made.objective.num_answers(10, 60.0) == 60.0
    assert job(folder, "loss.weight=[1, 2, 3, 4]").objective.num_answers(10, 17.5) == 60.0


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["model.factory=text_models:of_the_text"], "expected an output of shape (2, 6, 4) for 2 samples, got (2, 4)"),
        (["model={name='mlp'}"], "cannot take inputs of shape (2, 6) in evaluation: "),
        (["sample={characters=3, prompt='ax'}"], "sample.prompt: the character 'x' is not in the training text"),
        (
            ["model.factory=text_models:Fixed", "sample.characters=3"],
            "sample: the model cannot take a text of 1 characters, and while it writes it is given from 1 up to "
            "data.context = 6: ",
        ),
    ],
)
def test_what_does_not_fit_a_text_is_a_recipe_error(folder: Path, overrides: list[str], problem: str) -> None:
    with pytest.raises(RecipeError) as raised:
        job(folder, *overrides)
    [found] = raised.value.problems
    assert found.startswith(problem)


def test_a_model_that_takes_whole_windows_alone_writes_after_a_whole_window(folder: Path) -> None:
    prompt = "sample={characters=3, prompt='abcabc'}"
    made = job(folder, "model.factory=text_models:Fixed", prompt)
    sample = write_sample(made.objective.model, made.recipe.sample, made.data, 1, 9)
    assert sample is not None and len(sample) == 9 and sample.startswith("abcabc")


# ---- what a model writes


class Table(nn.Module):
    """Gives logits by the last character alone, and notes what it was given."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = nn.Parameter(logits.astype(np.float32))
        self.given: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.given.append(x.numpy()[0].tolist())
        return self.logits[x]


def cycle() -> Table:
    """After each of the characters "\\nabc", the next one."""
    return Table(np.roll(np.eye(4), 1, axis=1))


def test_the_likeliest_characters_are_written_after_the_last_of_the_context(data: Loaded) -> None:
    model = cycle()
    section = SampleSection(characters=9, prompt="cab", temperature=0.0)
    assert write_sample(model, section, data, 0, 0) == "cab" + "c\nabc\nabc"
    assert model.given[0] == [3, 1, 2]
    assert model.given[-1] == [1, 2, 3, 0, 1, 2]
    assert [len(given) for given in model.given] == [3, 4, 5, 6, 6, 6, 6, 6, 6]
    model = cycle()
    assert write_sample(model, SampleSection(characters=2, prompt="abcabcabc", temperature=0.0), data, 0, 0) is not None
    assert model.given[0] == [1, 2, 3, 1, 2, 3]


def test_without_a_prompt_a_text_begins_with_a_line(data: Loaded) -> None:
    model = cycle()
    assert write_sample(model, SampleSection(characters=4, temperature=0.0), data, 0, 0) == "abc\n"
    assert model.given[0] == [0]
    assert write_sample(model, SampleSection(), data, 0, 0) is None


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_characters_come_as_often_as_the_softmax_says(data: Loaded, temperature: float) -> None:
    logits = np.array([0.0, 1.0, -1.0, 2.0])
    model = Table(np.tile(logits, (4, 1)))
    written = write_sample(model, SampleSection(characters=4000, temperature=temperature), data, 0, 0)
    assert written is not None and data.vocabulary is not None
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    found = np.array([written.count(character) / 4000 for character in data.vocabulary])
    # Four standard deviations of a count.
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_the_text_follows_from_seed_and_step(data: Loaded) -> None:
    model = Table(np.zeros((4, 4)))
    section = SampleSection(characters=50)
    texts = [write_sample(model, section, data, seed, step) for seed, step in ((1, 5), (1, 5), (2, 5), (1, 6))]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    longer = write_sample(model, SampleSection(characters=60), data, 1, 5)
    assert longer is not None and texts[0] is not None and longer.startswith(texts[0])


def test_outputs_that_are_no_character_are_never_written(data: Loaded) -> None:
    logits = np.full((6, 6), 0.0)
    logits[:, 4:] = 50.0
    written = write_sample(Table(logits), SampleSection(characters=100), data, 1, 5)
    assert written is not None and data.vocabulary is not None
    assert set(written) == set(data.vocabulary)
