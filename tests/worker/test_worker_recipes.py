"""Every packaged recipe, for two small steps: it loads, fits its data, and gives the same bits on any ranks."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.recipes import Recipe, load_recipe, packaged_recipes
from ddp_bp.recipes.schema import resolve
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker.assemble import assemble
from ddp_bp.worker.compose import compose
from ddp_bp.worker.factory import model_problems
from ddp_bp.worker.phases import PhaseClock

NUM_STEPS = 2


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the format of MNIST, with 24 and 8 images: a bright square, whose place is its class."""
    folder = tmp_path_factory.mktemp("images")
    for part, num_images in (("train", 24), ("t10k", 8)):
        labels = np.arange(num_images, dtype=np.uint8) % 10
        pixels = np.zeros((num_images, 28, 28), np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[5 * (label // 5) + 6 :, 5 * (label % 5) + 2 :][:4, :4] = 255
        for kind, array in (("images", pixels), ("labels", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-idx{array.ndim}-ubyte").write_bytes(header + array.tobytes())
    return folder


def small(name: str, images: Path, *more: str) -> Recipe:
    """The recipe with little data, in batches of 13 at most, which no number of shards divides."""
    recipe, _ = load_recipe(name)
    overrides = ["train.batch_size=13", f"train.max_steps={NUM_STEPS}", "train.epochs=4", "optimizer.lr=0.01", *more]
    if recipe.data.name == "fashion-mnist":
        overrides.append(f"data.folder={str(images)!r}")
    if recipe.data.context is not None:
        overrides.append("data.context=8")
    if recipe.schedule.warmup_epochs:
        overrides.append("schedule.warmup_epochs=0")
    recipe, base = load_recipe(name, overrides, model_problems)
    assert base == Path()
    return resolve(recipe, 1, None)


def train(recipe: Recipe, communicator: Communicator) -> tuple[list[float], np.ndarray]:
    """The mean loss of each step, and all parameters and buffers after them."""
    job = assemble(recipe, Path(), check_data=True)
    clock = PhaseClock(PHASE_BUCKETS_SECONDS)
    step = compose(communicator, job, clock, lambda error, number: None).team.step
    losses = []
    for number in range(NUM_STEPS):
        job.schedule.apply(number)
        result = step.run(number)
        losses.append(result.loss / result.weight)
    state = job.objective.model.state_dict()
    return losses, np.concatenate([state[name].astype(np.float64).ravel() for name in sorted(state)])


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_trains_the_same_bits_on_any_number_of_ranks(name: str, images: Path) -> None:
    recipe = small(name, images)
    assert recipe.train.shards is not None
    losses, state = train(recipe, SingleCommunicator())
    assert all(map(math.isfinite, losses))
    for other_losses, other_state in run_ranks(3, lambda communicator: train(recipe, communicator)):
        assert other_losses == losses
        assert np.array_equal(other_state, state)


def test_a_residual_network_can_pool_its_batch_norm_over_all_ranks(images: Path) -> None:
    recipe = small("fashion-resnet", images, 'model.options.norm="sync"')
    losses, state = train(recipe, SingleCommunicator())
    for other_losses, other_state in run_ranks(3, lambda communicator: train(recipe, communicator)):
        assert other_losses == losses
        assert np.array_equal(other_state, state)
    # Pooled over the batch, the first loss is another than that of batch norm shard by shard.
    assert train(small("fashion-resnet", images), SingleCommunicator())[0][0] != losses[0]


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_fixes_what_its_figures_rest_on(name: str) -> None:
    """Shards are part of the bits, and a seed of the result; neither is left to how a job happens to be started."""
    recipe, _ = load_recipe(name, (), model_problems)
    assert recipe.train.shards
    assert recipe.train.seed
    assert recipe.model.name is not None
    # Four ranks can share the work.
    assert recipe.train.batch_size % recipe.train.shards == 0
