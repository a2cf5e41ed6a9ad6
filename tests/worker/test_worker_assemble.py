"""From a recipe to a job: the same in every process, and every way in which it cannot be built."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ddp_bp
from ddp_bp import nn, optim
from ddp_bp.data.batches import Batch
from ddp_bp.engine import tensor
from ddp_bp.engine.random import generator
from ddp_bp.errors import DataError, RecipeError
from ddp_bp.recipes import load_recipe
from ddp_bp.recipes.optimization import OptimizerSection
from ddp_bp.worker.assemble import OPTIMIZERS, Job, assemble
from ddp_bp.worker.datasource import data_problems
from ddp_bp.worker.factory import model_problems

OWN = """
[model]
factory = "own_models:build"
[data]
path = "data.npz"
eval_fraction = 0.25
[train]
shards = 2
batch_size = 8
epochs = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe with its data and its models beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 5)).astype(np.float32), y=np.arange(40) % 3)
    np.savez(tmp_path / "values.npz", x=rng.standard_normal((40, 5)), y=rng.standard_normal((40, 2)))
    np.savez(tmp_path / "shares.npz", x=rng.standard_normal((40, 5)), y=rng.random((40, 2)))
    (tmp_path / "own_models.py").write_text(Path(__file__).with_name("worker_models.py").read_text())
    (tmp_path / "own.toml").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_models", None)


def job(folder: Path, *overrides: str) -> Job:
    recipe, base = load_recipe(str(folder / "own.toml"), overrides)
    return assemble(recipe, base, check_data=True)


def factory(name: str) -> str:
    return f"model.factory=own_models:{name}"


def problems(folder: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as raised:
        job(folder, *overrides)
    return raised.value.problems


# ---- what is built


def test_a_job_has_the_plan_of_its_recipe(folder: Path) -> None:
    made = job(folder)
    assert (made.plan.num_samples, made.plan.batch_size, made.plan.num_shards) == (30, 8, 2)
    assert made.data.evaluation is not None and made.data.evaluation.num_samples == 10
    assert made.total_steps == 3 * 4
    assert job(folder, "train.max_steps=7").total_steps == 7
    assert job(folder, "train.max_steps=70").total_steps == 12
    assert made.is_classification
    assert [slot.name for slot in made.parameters.slots] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_each_module_draws_from_a_stream_of_its_own(folder: Path) -> None:
    keys = [module.stream_key for module in job(folder).objective.model.modules()]
    assert 0 not in keys and len(set(keys)) == len(keys)
    assert keys == [module.stream_key for module in job(folder).objective.model.modules()]


def test_regression_has_no_classes(folder: Path) -> None:
    made = job(folder, "data.path=values.npz")
    assert not made.is_classification
    assert made.data.num_outputs == 2


@pytest.mark.parametrize(
    ("name", "kind", "setting"),
    [
        ("sgd", optim.SGD, "momentum"),
        ("adam", optim.Adam, "eps"),
        ("adamw", optim.AdamW, "weight_decay"),
        ("rmsprop", optim.RMSprop, "alpha"),
        ("adagrad", optim.Adagrad, "lr_decay"),
        ("adadelta", optim.Adadelta, "rho"),
        ("nadam", optim.NAdam, "momentum_decay"),
        ("lion", optim.Lion, "weight_decay"),
        ("lars", optim.LARS, "trust_coefficient"),
        ("lamb", optim.LAMB, "eps"),
    ],
)
def test_the_optimizer_is_that_of_the_recipe(folder: Path, name: str, kind: type, setting: str) -> None:
    made = job(folder, f"optimizer.name={name}", "optimizer.lr=0.25", f"optimizer.{setting}=0.5").optimizer
    assert type(made) is kind
    assert (made.lr, made.param_groups[0][setting]) == (0.25, 0.5)
    assert set(OPTIMIZERS) == set(OptimizerSection.takes)


@pytest.mark.parametrize("name", ["adamw", "lars", "lamb", "sgd"])
def test_weight_decay_of_matrices_alone(folder: Path, name: str) -> None:
    overrides = (f"optimizer.name={name}", "optimizer.weight_decay=0.5", "optimizer.decay=matrices")
    made = job(folder, *overrides)
    optimizer = made.optimizer
    assert optimizer.flat is made.parameters
    assert [slot.name for slot in made.parameters.slots] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [[parameter.ndim for parameter in group["params"]] for group in optimizer.param_groups] == [[2, 2], [1, 1]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    if name in ("lars", "lamb"):
        assert [group["adapt"] for group in optimizer.param_groups] == [True, False]
    # With a gradient of zero, decay is all that moves a parameter.
    before = {slot: array.copy() for slot, array in made.parameters.arrays().items()}
    optimizer.zero_grad()
    optimizer.step()
    moved = [slot for slot, array in made.parameters.arrays().items() if not np.array_equal(array, before[slot])]
    assert moved == ["0.weight", "2.weight"]


# ---- what does not fit the data


def test_everything_that_does_not_fit_the_data_is_reported_at_once(folder: Path) -> None:
    overrides = ("loss.name=huber", "sample.characters=3", "schedule.name=plateau", "data.eval_fraction=0")
    assert problems(folder, *overrides) == (
        "loss.name: expected one of auto, cross_entropy, nll, since the targets are classes; got 'huber'",
        "sample: a sample can be written only after a text, and these data are none; remove the section",
        "schedule.name: 'plateau' needs samples that are held out, and of these data none are",
    )
    assert problems(folder, "data.path=values.npz", "loss.name=nll") == (
        "loss.name: expected one of auto, mse, l1, huber, bce_with_logits, kl_div, since the targets are those of a "
        "regression; got 'nll'",
    )


def test_what_the_recipe_has_wrong_is_one_message_and_what_the_data_contradict_another(folder: Path) -> None:
    own = {"check_model": model_problems, "check_data": data_problems}
    wrong = ("optimizer.lrr=1", "data.context=8", "data.split_seed=1", "data.augment.normalize={mean=[0.5],std=[]}")
    with pytest.raises(RecipeError) as raised:
        load_recipe(str(folder / "own.toml"), (*wrong, "model.options.widht=3"), **own)
    assert raised.value.problems == (
        "optimizer.lrr: unknown key (did you mean 'lr'?)",
        "model.options.widht: unknown option of own_models:build (did you mean 'width'?)",
        "data.context (8) has no meaning for the file 'data.npz': remove it",
        "data.augment.normalize needs one mean and one std for each channel, got 1 and 0; for one channel, for "
        "example, mean = [0.5], std = [0.25]",
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe("digits", ("data.name=fashion-mnist", "data.split_seed=1"), **own)
    assert raised.value.problems[1].startswith("data.split_seed (1) has no meaning for 'fashion-mnist'")
    overrides = ("data.augment.flip=true", "loss.weight=[1]", "schedule={name='cosine', epochs=1, warmup_epochs=0.9}")
    assert problems(folder, *overrides) == (
        "data.augment needs images of shape [channels, height, width], but the inputs have shape [5]: set "
        "data.input_shape if they are images (digits: [1, 8, 8])",
        "loss.weight: expected 3 numbers, one for each class, got 1",
        "schedule.warmup_epochs: expected a warm-up shorter than the schedule, 4 steps, got 4 steps",
    )


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["loss.weight=[1, 2]"], "loss.weight: expected 3 numbers, one for each class, got 2"),
        (
            ["data.path=values.npz", "loss={name='bce_with_logits', weight=[1], pos_weight=[1, 2, 3]}"],
            "loss.weight: expected 2 numbers, one for each output, got 1; "
            "loss.pos_weight: expected 2 numbers, one for each output, got 3",
        ),
        (
            ["data.path=values.npz", "loss.label_smoothing=0.1"],
            "loss.label_smoothing: does not apply to regression, whose loss is mse unless loss.name says otherwise",
        ),
        (["loss.ignore_index=3"], "loss.ignore_index: expected one of the 3 classes, 0 to 2, got 3"),
        (
            ["train.batch_size=99", "train.shards=31"],
            "train.shards: expected at most as many as the largest batch has samples, 30, got 31, which is the number "
            "of workers unless the recipe says otherwise",
        ),
        ([factory("too_many"), "loss.weight=[1, 2, 3]"], "cross_entropy got a weight"),
        (
            ["schedule={name='cosine', epochs=1, warmup_epochs=0.9}"],
            "schedule.warmup_epochs: expected a warm-up shorter than the schedule, 4 steps, got 4 steps",
        ),
    ],
)
def test_what_does_not_fit_the_data_says_why(folder: Path, overrides: list[str], problem: str) -> None:
    assert problem in "; ".join(problems(folder, *overrides))


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], nn.CrossEntropyLoss),
        (["loss.name=nll"], nn.NLLLoss),
        (["loss={name='cross_entropy', weight=[1, 2, 3], label_smoothing=0.1}"], nn.CrossEntropyLoss),
        (["data.path=values.npz"], nn.MSELoss),
        (["data.path=values.npz", "loss.name=l1"], nn.L1Loss),
        (["data.path=values.npz", "loss={name='huber', delta=0.5}"], nn.HuberLoss),
        (["data.path=shares.npz", "loss={name='bce_with_logits', pos_weight=[2, 3]}"], nn.BCEWithLogitsLoss),
        (["data.path=shares.npz", "loss={name='kl_div', reduction='batchmean'}"], nn.KLDivLoss),
    ],
)
def test_the_loss_is_that_of_the_recipe_and_has_its_mean(folder: Path, overrides: list[str], kind: type) -> None:
    made = job(folder, *overrides)
    section = made.recipe.loss
    weights = {
        key: np.array(value, np.float32) if isinstance(value, tuple) else value
        for key, value in section.arguments().items()
    }
    inputs, targets = made.data.train.batch(np.arange(7))
    total = made.objective.evaluate(Batch(np.arange(7), inputs, targets, 0))
    output = made.objective.model(tensor(inputs))
    assert total.loss.item() / total.weight == pytest.approx(kind(**weights)(output, tensor(targets)).item(), rel=1e-6)


def test_the_same_recipe_gives_the_same_bits_and_any_change_another_fingerprint(folder: Path) -> None:
    first, second = job(folder), job(folder)
    assert first.parameters.data.tobytes() == second.parameters.data.tobytes()
    assert first.layout == second.layout
    assert 0 <= first.layout < 2**64
    changes = ["train.seed=1", "optimizer.lr=0.5", "model.options.width=5", "train.shards=3", "data.split_seed=1"]
    layouts = [job(folder, change).layout for change in changes]
    assert len({first.layout, *layouts}) == 1 + len(changes)
    assert job(folder, "train.seed=1").parameters.data.tobytes() != first.parameters.data.tobytes()


def test_other_data_of_the_same_shape_has_another_fingerprint(folder: Path) -> None:
    before = job(folder).layout
    with np.load(folder / "data.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    x[3, 2] += 1
    np.savez(folder / "data.npz", x=x, y=y)
    assert job(folder).layout != before


# ---- factories and their options


def test_code_beside_the_recipe_comes_before_the_working_folder_and_both_before_what_is_installed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    working, installed = tmp_path_factory.mktemp("working"), tmp_path_factory.mktemp("installed")
    source = (folder / "own_models.py").read_text()
    (working / "own_models.py").write_text("raise ImportError('not this one')")
    (working / "second_models.py").write_text(source)
    (installed / "second_models.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(working)
    for path in ([str(installed)], [str(working), str(installed), str(folder)], ["", str(installed)]):
        monkeypatch.setattr(sys, "path", [*path, *sys.path])
        for name in ("own_models", "second_models"):
            job(folder, f"model.factory={name}:build")
            del sys.modules[name]
        assert sys.path[:2] == [str(folder), str(working)]


def test_other_code_has_another_fingerprint(folder: Path) -> None:
    (folder / "layers_elsewhere.py").write_text("from ddp_bp import nn\nclass Layer(nn.Linear):\n    pass\n")
    code = "import layers_elsewhere\ndef build(shape, n):\n    return layers_elsewhere.Layer(shape[0], n)\n"
    (folder / "changing_models.py").write_text(code)
    layouts = []
    for changed in (None, "changing_models.py", "layers_elsewhere.py"):
        if changed is not None:
            with (folder / changed).open("a") as file:
                file.write("# other code\n")
        layouts.append(job(folder, "model.factory=changing_models:build").layout)
        for name in ("changing_models", "layers_elsewhere"):
            del sys.modules[name]
    assert len(set(layouts)) == 3


def test_a_class_and_a_partial_function_are_factories_too(folder: Path) -> None:
    assert job(folder, factory("Network"), "model.options.width=7").parameters.slots[0].shape == (7, 5)
    assert job(folder, factory("partial")).parameters.slots[0].shape == (3, 5)
    assert job(folder, factory("partial"), "model.options.width=6").parameters.slots[0].shape == (6, 5)
    assert problems(folder, factory("Network"), "model.options.width=wide") == (
        "model.options.width: expected a whole number, got 'wide'",
    )


@pytest.mark.parametrize("name", ["unknown_annotation", "strange_annotation"])
def test_annotations_that_mean_nothing_here_leave_the_value_to_the_factory(folder: Path, name: str) -> None:
    assert job(folder, factory(name), "model.options.width=6").parameters.slots[0].shape == (6, 5)


def test_a_factory_may_declare_limits(folder: Path) -> None:
    assert job(folder, factory("limited"), "model.options.kind=wide").parameters.slots[0].shape == (8, 5)
    overrides = ("model.options.kind=wild", "model.options.share=1.5", "model.options.widths=[2, 0]")
    assert problems(folder, factory("limited"), *overrides) == (
        "model.options.kind: expected one of narrow, wide, got 'wild' (did you mean 'wide'?)",
        "model.options.share: expected a number < 1, got 1.5",
        "model.options.widths: expected a whole number >= 1 at [1], got [2, 0]",
    )


@pytest.mark.parametrize(
    "option",
    [
        "path='folder'",
        "array=[1, 2]",
        "number=0.5",
        "imaginary=2",
        "function='abs'",
        "module='ReLU'",
        "layer={width=2, inner=[{width=3}]}",
        "kind='wide'",
        "by_kind={wide=3}",
    ],
)
def test_options_of_types_that_toml_has_not_are_left_to_the_factory(folder: Path, option: str) -> None:
    job(folder, factory("typed"), f"model.options.{option}")


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("path=3", "path: expected a path, got 3"),
        ("layer={widht=2}", "layer: unknown key 'widht' (did you mean 'width'?)"),
        ("layer={inner=[{width=1}, {x=2}]}", "layer: unknown key 'x'; known: width, inner"),
        ("kind='wild'", "kind: expected one of narrow, wide, got 'wild' (did you mean 'wide'?)"),
        (
            "kinds=['wide', 'x']",
            "kinds: expected one of the values that are allowed, and not 'x' at [1], got ['wide', 'x']",
        ),
    ],
)
def test_options_of_structured_types_are_checked_to_the_last_key(folder: Path, option: str, problem: str) -> None:
    assert problems(folder, factory("typed"), f"model.options.{option}") == (f"model.options.{problem}",)


def test_a_factory_without_a_signature_is_left_to_judge(folder: Path) -> None:
    [problem] = problems(folder, "model.factory=builtins:dict", "model.options.one=1")
    assert problem.startswith("raised TypeError: ")


def test_a_factory_may_take_any_options(folder: Path) -> None:
    made = job(folder, factory("anything"), "model.options.one=1", "model.options.two=[2]")
    assert made.parameters.slots[0].shape == (3, 5)


def test_every_option_that_does_not_fit_is_reported_at_once(folder: Path) -> None:
    overrides = ("model.options.widht=3", "model.options.deep=3", "model.options.rest=1")
    assert problems(folder, *overrides) == (
        "model.options.widht: unknown option of own_models:build (did you mean 'width'?)",
        "model.options.deep: expected true or false, got 3",
        "model.options.rest: unknown option of own_models:build; known: deep, width",
    )
    assert problems(folder, factory("Network")) == ("model.options.width: own_models:Network needs it",)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model={name='mpl'}"], "model.name: unknown model 'mpl' (did you mean 'mlp'?)"),
        (
            ["model={name='mlp', options={hidden=[3, 0]}}"],
            "model.options.hidden: expected a whole number >= 1 at [1], got [3, 0]",
        ),
        (["model.factory=own_models"], "expected 'package.module:function', got 'own_models'"),
        (["model.factory=':build'"], "expected 'package.module:function', got ':build'"),
        (["model.factory=no_such_module_x:build"], "ModuleNotFoundError: No module named 'no_such_module_x'"),
        ([factory("missing")], "module 'own_models' has no function 'missing'"),
        ([factory("NUMBER")], "module 'own_models' has no function 'NUMBER'"),
        ([factory("empty")], "has no parameters, so there is nothing to train"),
        ([factory("text")], "expected a ddp_bp.nn.Module from it, got str"),
        ([factory("no_tensor")], "expected a ddp_bp.Tensor from its forward, got ndarray"),
        ([factory("integers")], "cannot be taken of what model own_models:integers gives: "),
        ([factory("crashing")], "cannot be trained on a shard of 3 samples, the smallest that train.batch_size = 8, "),
        ([factory("crashing")], "give: SystemExit: 3 ("),
        ([factory("frozen")], "depends on no parameter with requires_grad, so there is nothing to train"),
        ([factory("detached")], "depends on no parameter with requires_grad, so there is nothing to train"),
        ([factory("too_few")], "gives 2 outputs, but the data has 3 classes, one output each"),
        ([factory("flat")], "expected an output of shape (2, 3) for 2 samples, got (2,)"),
        ([factory("other_input")], "cannot take inputs of shape (2, 5) in evaluation: "),
        (
            [factory("too_many"), "data.path=values.npz"],
            "expected an output of shape (2, 2) for 2 samples, got (2, 3)",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_a_recipe_error_that_says_why(
    folder: Path, overrides: list[str], part: str
) -> None:
    [problem] = problems(folder, *overrides)
    assert part in problem


# 30 samples to train on, in batches of 29: the last batch has one.
LAST_OF_ONE = ("train.batch_size=29", "train.shards=2")
# 30 samples in batches of 8: the last batch has 6, in shards of 1 and 2.
SHARD_OF_ONE = ("train.batch_size=8", "train.shards=4")


@pytest.mark.parametrize(
    ("sizes", "synced", "num_samples"),
    [(LAST_OF_ONE, False, 29), (LAST_OF_ONE, True, 29), (SHARD_OF_ONE, False, 8)],
)
def test_batch_norm_on_a_shard_of_one_sample_is_found_before_the_step_that_has_it(
    folder: Path, sizes: tuple[str, ...], synced: bool, num_samples: int
) -> None:
    model = (factory("normalized"), f"model.options.synced={str(synced).lower()}")
    [problem] = problems(folder, *model, *sizes)
    assert f"on a shard of 1 sample, the smallest that train.batch_size = {num_samples}, train.shards" in problem
    assert "it takes 2 or more" in problem


@pytest.mark.parametrize(
    ("synced", "overrides"),
    [
        (True, SHARD_OF_ONE),  # statistics are those of the whole batch
        (False, (*LAST_OF_ONE, "train.max_steps=1")),  # training does not get there
        (False, ("train.shards=2", "train.batch_size=15")),
    ],
)
def test_batch_norm_that_never_sees_one_sample_alone_is_taken(
    folder: Path, synced: bool, overrides: tuple[str, ...]
) -> None:
    job(folder, factory("normalized"), f"model.options.synced={str(synced).lower()}", *overrides)


def test_batch_norm_without_running_statistics_needs_two_samples_in_evaluation_too(folder: Path) -> None:
    model = (factory("normalized"), "model.options.tracks=false")
    job(folder, *model)
    [problem] = problems(folder, *model, "train.eval_batch_size=3")
    assert "cannot take inputs of shape (1, 5) in evaluation: " in problem


def test_a_trial_leaves_nothing_behind(folder: Path) -> None:
    recipe, base = load_recipe(str(folder / "own.toml"), (factory("normalized"),))
    tried, other = assemble(recipe, base, check_data=True), assemble(recipe, base, check_data=False)
    for name, array in tried.objective.model.state_dict().items():
        assert array.tobytes() == other.objective.model.state_dict()[name].tobytes(), name
    assert tried.layout == other.layout
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in tried.objective.model.parameters())
    ddp_bp.manual_seed(3)
    expected = generator().random(4)
    ddp_bp.manual_seed(3)
    assemble(recipe, base, check_data=True)
    assert generator().random(4).tolist() == expected.tolist()


def test_a_model_may_be_frozen_in_part(folder: Path) -> None:
    job(folder, factory("partly_frozen"))


def test_more_outputs_than_classes_are_a_choice(folder: Path) -> None:
    assert job(folder, factory("too_many")).data.num_classes == 3


def test_an_error_of_the_users_own_code_is_shown_with_its_place(folder: Path) -> None:
    [problem] = problems(folder, factory("raising"))
    line = next(number for number, text in enumerate((folder / "own_models.py").open(), 1) if "no such layer" in text)
    assert problem == f"raised LookupError: no such layer ({folder / 'own_models.py'}, line {line})"
    line = next(number for number, text in enumerate((folder / "own_models.py").open(), 1) if "(-1, 7)" in text)
    [problem] = problems(folder, factory("misshapen"))
    assert problem.endswith(f" ({folder / 'own_models.py'}, line {line})"), "an error of ours that a line of theirs met"
    [problem] = problems(folder, factory("too_wide"))
    assert f"({folder / 'own_models.py'}, line " in problem
    (folder / "broken_models.py").write_text("import math\n\nmath.sqrt(-1)\n")
    [problem] = problems(folder, "model.factory=broken_models:build")
    assert "importing 'broken_models' raised ValueError: " in problem
    assert f"({folder / 'broken_models.py'}, line 3)" in problem


def test_data_that_cannot_be_used_is_a_data_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*dat\.npz; did you mean 'data\.npz'"):
        job(folder, "data.path=dat.npz")
    with pytest.raises(DataError, match="classes"):
        job(folder, "data.num_classes=2")
    with pytest.raises(DataError, match=r"data\.eval_fraction 0\.001 of 40 samples leaves none for evaluation"):
        job(folder, "data.eval_fraction=0.001", "data.augment.flip=true")
