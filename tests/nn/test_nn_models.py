"""The models that a recipe can name: what they compute is what the same layers in PyTorch compute."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.errors import DdpError, InputError, ShapeError
from ddp_bp.nn.models import MODELS, cnn, gpt, resnet


def images(num_images: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num_images, *shape)).astype(np.float32)


def texts(num_texts: int, length: int, num_tokens: int = 11) -> np.ndarray:
    return np.random.default_rng(0).integers(0, num_tokens, (num_texts, length))


def kinds(model: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in model.children()]


# ---- against PyTorch


def torch_cnn(torch: Any) -> Any:
    n = torch.nn
    return n.Sequential(
        *(n.Conv2d(2, 5, 3, padding=1, bias=False), n.BatchNorm2d(5), n.ReLU()),
        *(n.Conv2d(5, 6, 3, padding=1, bias=False), n.BatchNorm2d(6), n.ReLU(), n.MaxPool2d(2)),
        *(n.Conv2d(6, 7, 3, padding=1, bias=False), n.BatchNorm2d(7), n.ReLU()),
        *(n.Conv2d(7, 8, 3, padding=1, bias=False), n.BatchNorm2d(8), n.ReLU(), n.MaxPool2d(2)),
        *(n.Flatten(), n.Dropout(0.2), n.Linear(8 * 2 * 3, 9), n.ReLU(), n.Dropout(0.2), n.Linear(9, 4)),
    )


def torch_plain_cnn(torch: Any) -> Any:
    n = torch.nn
    return n.Sequential(
        *(n.Conv2d(2, 3, 5, padding=2), n.ReLU(), n.AvgPool2d(2), n.Conv2d(3, 4, 5, padding=2), n.ReLU()),
        *(n.AvgPool2d(2), n.Flatten(), n.Linear(4 * 2 * 3, 4)),
    )


def torch_resnet(torch: Any, is_preactivation: bool) -> Any:
    """Widths (4, 6), blocks (1, 2), a pooled stem; written with torchvision's names."""
    n, relu = torch.nn, torch.relu

    class Classic(n.Module):  # type: ignore[misc, name-defined]
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = n.Conv2d(before, width, 3, stride, 1, bias=False), n.BatchNorm2d(width)
            self.conv2, self.bn2 = n.Conv2d(width, width, 3, 1, 1, bias=False), n.BatchNorm2d(width)
            self.downsample = n.Identity()
            if before != width:
                self.downsample = n.Sequential(n.Conv2d(before, width, 1, stride, bias=False), n.BatchNorm2d(width))

        def forward(self, x: Any) -> Any:
            return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + self.downsample(x))

    class Preactivation(n.Module):  # type: ignore[misc, name-defined]
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = n.BatchNorm2d(before), n.Conv2d(before, width, 3, stride, 1, bias=False)
            self.bn2, self.conv2 = n.BatchNorm2d(width), n.Conv2d(width, width, 3, 1, 1, bias=False)
            self.downsample = n.Conv2d(before, width, 1, stride, bias=False) if before != width else None

        def forward(self, x: Any) -> Any:
            normed = relu(self.bn1(x))
            beside = x if self.downsample is None else self.downsample(normed)
            return self.conv2(relu(self.bn2(self.conv1(normed)))) + beside

    class Network(n.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            block = Preactivation if is_preactivation else Classic
            self.conv1 = n.Conv2d(2, 4, 3, padding=1, bias=False)
            self.bn1 = n.BatchNorm2d(6 if is_preactivation else 4)
            self.layer1 = n.Sequential(block(4, 4, 1))
            self.layer2 = n.Sequential(block(4, 6, 2), block(6, 6, 1))
            self.fc = n.Linear(6, 4)

        def forward(self, x: Any) -> Any:
            x = self.conv1(x)
            x = n.functional.max_pool2d(x if is_preactivation else relu(self.bn1(x)), 2)
            x = self.layer2(self.layer1(x))
            x = relu(self.bn1(x)) if is_preactivation else x
            return self.fc(x.mean((2, 3)))

    return Network()


def torch_gpt(torch: Any, tied: bool) -> Any:
    """Width 12, 2 layers of 3 heads, 20 hidden units, context 7, 11 tokens; around PyTorch's own TransformerEncoder."""
    n = torch.nn

    class Network(n.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = n.Embedding(11, 12), n.Embedding(7, 12)
            layer = n.TransformerEncoderLayer(
                12, 3, 20, dropout=0.0, activation=n.GELU("tanh"), batch_first=True, norm_first=True
            )
            self.body = n.TransformerEncoder(layer, 2, n.LayerNorm(12), enable_nested_tensor=False)
            self.head = n.Linear(12, 11, bias=False)
            if tied:
                self.head.weight = self.tokens.weight

        def forward(self, tokens: Any) -> Any:
            length = tokens.shape[1]
            x = self.tokens(tokens) + self.positions(torch.arange(length))
            mask = n.Transformer.generate_square_subsequent_mask(length)
            return self.head(self.body(x, mask=mask))

    return Network()


GPT_OPTIONS = {"width": 12, "num_layers": 2, "num_heads": 3, "hidden": 20}
RESNET_OPTIONS = {"widths": [4, 6], "blocks": [1, 2], "stem_pool": True}
# Ours, PyTorch's, and inputs.
PAIRS: dict[str, tuple[Any, Any, np.ndarray]] = {
    "cnn": (
        lambda: cnn((2, 9, 13), 4, channels=[5, 6, 7, 8], norm="batch", pool_every=2, hidden=[9], dropout=0.2),
        torch_cnn,
        images(6, 2, 9, 13),
    ),
    "cnn-plain": (
        lambda: cnn((2, 9, 13), 4, channels=[3, 4], kernel_size=5, pool="average", hidden=[]),
        torch_plain_cnn,
        images(6, 2, 9, 13),
    ),
    "resnet": (
        lambda: resnet((2, 9, 8), 4, **RESNET_OPTIONS),
        lambda torch: torch_resnet(torch, False),
        images(6, 2, 9, 8),
    ),
    "resnet-preactivation": (
        lambda: resnet((2, 9, 8), 4, block="preactivation", **RESNET_OPTIONS),
        lambda torch: torch_resnet(torch, True),
        images(6, 2, 9, 8),
    ),
    "gpt": (lambda: gpt((7,), 11, **GPT_OPTIONS), lambda torch: torch_gpt(torch, True), texts(3, 7)),
    "gpt-untied-short": (
        lambda: gpt((7,), 11, tied=False, **GPT_OPTIONS),
        lambda torch: torch_gpt(torch, False),
        texts(3, 4),
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_logits_and_gradients_are_those_of_pytorch(name: str, training: bool) -> None:
    torch = pytest.importorskip("torch")
    build, build_theirs, data = PAIRS[name]
    torch.manual_seed(0)
    ours, theirs = build(), build_theirs(torch)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        # Away from ones and zeros, at which a forgotten weight, bias or statistic would not show.
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.tensor(rng.standard_normal(parameter.shape), dtype=torch.float32)
        for _, buffer in theirs.named_buffers():
            if buffer.dtype.is_floating_point:
                buffer += torch.tensor(rng.random(buffer.shape), dtype=torch.float32)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.train(training)
    theirs.train(training)
    for network in (ours, theirs):
        for module in network.modules():
            if type(module).__name__ == "Dropout":
                module.eval()
    logits, expected = ours(ddp.tensor(data)), theirs(torch.tensor(data))
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    gradient = rng.standard_normal(logits.shape).astype(np.float32)
    logits.backward(gradient)
    expected.backward(torch.tensor(gradient))
    wanted = {key: value.grad.numpy() for key, value in theirs.named_parameters()}
    found = {key: value.grad for key, value in ours.named_parameters()}
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        np.testing.assert_allclose(value, wanted[key], rtol=1e-3, atol=1e-4, err_msg=key)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in ours.state_dict().items()}, strict=True)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value.numpy(), rtol=1e-5, atol=1e-5, err_msg=key)


# ---- layers and starting values


def test_cnn_has_the_layers_that_its_options_say() -> None:
    assert kinds(cnn((1, 8, 8), 10)) == [
        *("Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear", "ReLU", "Linear")
    ]
    model = cnn((3, 8, 8), 10, channels=[4, 5, 6], norm="batch", pool_every=2, hidden=[], dropout=0.5)
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds(model) == [*block, *block, "MaxPool2d", *block, "Flatten", "Dropout", "Linear"]
    assert model.state_dict()["12.weight"].shape == (10, 6 * 4 * 4)
    assert [p.shape for _, p in cnn((1, 4, 4), 2, channels=[], hidden=[]).named_parameters()] == [(2, 16), (2,)]
    assert kinds(cnn((1, 4, 4), 2, channels=[3], pool="none", hidden=[])) == ["Conv2d", "ReLU", "Flatten", "Linear"]
    # A convolution before batch norm needs no bias; one without it does.
    assert "0.bias" not in model.state_dict()
    assert "0.bias" in cnn((1, 8, 8), 10).state_dict()


@pytest.mark.parametrize("block", ["classic", "preactivation"])
def test_resnet_halves_images_from_stage_to_stage(block: str) -> None:
    model = resnet((1, 28, 28), 10, widths=[4, 5, 6], blocks=[1, 2, 1], block=block, dropout=0.1)
    names = {name.rpartition(".")[0] for name in model.state_dict()}
    assert {"conv1", "bn1", "layer1.0.conv1", "layer2.1.bn2", "layer3.0.conv2", "fc"} <= names
    # Only where the number of channels changes does anything stand beside the convolutions.
    assert sorted({name.partition(".down")[0] for name in names if "downsample" in name}) == ["layer2.0", "layer3.0"]
    model.eval()
    x = ddp.tensor(images(2, 1, 28, 28))
    assert model(x).shape == (2, 10)
    seen = model.layer2(model.layer1(model.conv1(x)))
    assert seen.shape == (2, 5, 14, 14)
    assert model.layer3(seen).shape == (2, 6, 7, 7)


def test_resnet_starts_with_a_spread_that_keeps_gradients_alive() -> None:
    ddp.manual_seed(0)
    state = resnet((1, 8, 8), 3, widths=[32, 64], blocks=[1, 1]).state_dict()
    # He et al. with fan_out: sqrt(2 / (64 channels * 9 pixels)).
    assert state["layer2.0.conv2.weight"].std() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert state["layer2.0.downsample.0.weight"].std() == pytest.approx((2 / 64) ** 0.5, rel=0.1)


def test_gpt_takes_any_length_up_to_its_context_and_does_not_look_ahead() -> None:
    model = gpt((7,), 11, **GPT_OPTIONS).eval()
    tokens = texts(3, 7)
    whole = model(ddp.tensor(tokens)).numpy()
    assert whole.shape == (3, 7, 11)
    assert whole.dtype == np.float32
    for length in (1, 4, 6):
        np.testing.assert_allclose(model(ddp.tensor(tokens[:, :length])).numpy(), whole[:, :length], atol=1e-6)
    with pytest.raises(ShapeError, match="up to 7"):
        model(ddp.tensor(texts(1, 8)))
    with pytest.raises(ShapeError, match="up to 7"):
        model(ddp.tensor(tokens[0]))


def test_gpt_ties_its_output_to_its_tokens() -> None:
    tied, untied = (gpt((7,), 11, tied=choice, **GPT_OPTIONS) for choice in (True, False))
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 11 * 12
    assert tied.head.weight is tied.tokens.weight
    assert tied.state_dict().keys() == untied.state_dict().keys()


def test_gpt_starts_with_nearly_equal_probabilities() -> None:
    ddp.manual_seed(0)
    model = gpt((32,), 65, dropout=0.1)
    state = model.state_dict()
    assert state["body.layers.0.self_attn.in_proj_weight"].std() == pytest.approx(0.02, rel=0.02)
    assert state["body.layers.3.linear2.weight"].std() == pytest.approx(0.02 / 8**0.5, rel=0.02)
    # Not the inputs themselves as targets: tied weights know those from the start.
    tokens, targets = np.split(texts(8, 32, 65), 2)
    loss = nn.functional.cross_entropy(model.eval()(ddp.tensor(tokens)).reshape(-1, 65), targets.reshape(-1))
    assert loss.item() == pytest.approx(np.log(65), abs=0.1)


@pytest.mark.parametrize("name", ["cnn", "gpt"])
def test_dropout_acts_in_training_only(name: str) -> None:
    ddp.manual_seed(0)
    model = cnn((1, 8, 8), 10, dropout=0.5) if name == "cnn" else gpt((7,), 11, dropout=0.5, **GPT_OPTIONS)
    x = ddp.tensor(images(2, 1, 8, 8) if name == "cnn" else texts(2, 7))
    model.train()
    assert not np.array_equal(model(x).numpy(), model(x).numpy())
    model.eval()
    assert np.array_equal(model(x).numpy(), model(x).numpy())


@pytest.mark.parametrize(
    "build", [lambda norm: cnn((1, 8, 8), 3, norm=norm), lambda norm: resnet((1, 8, 8), 3, norm=norm)]
)
def test_batch_norm_can_be_that_of_all_shards(build: Any) -> None:
    """In one process it gives the same, and its state is that of the other kind."""
    ours, other = build("sync"), build("batch")
    norms = {type(module).__name__ for module in ours.modules() if "Norm" in type(module).__name__}
    assert norms == {"SyncBatchNorm"}
    ours.load_state_dict(other.state_dict())
    x = ddp.tensor(images(5, 1, 8, 8))
    np.testing.assert_allclose(ours(x).numpy(), other(x).numpy(), rtol=1e-4, atol=1e-5)


# ---- what is refused


@pytest.mark.parametrize(
    ("build", "arguments", "options", "message"),
    [
        (cnn, ((64,), 10), {}, r"data.input_shape"),
        (cnn, ((1, 8, 8), 0), {}, "num_outputs = 0"),
        (cnn, ((1, 8, 0), 10), {}, "input_shape"),
        (cnn, ((1, 8, 8), 10), {"channels": [4, 0]}, "channels"),
        (cnn, ((1, 8, 8), 10), {"kernel_size": 4}, "kernel_size: expected an odd number"),
        (cnn, ((1, 8, 8), 10), {"norm": "bath"}, "did you mean 'batch'"),
        (cnn, ((1, 8, 8), 10), {"dropout": 1.0}, "dropout = 1.0"),
        (cnn, ((1, 8, 8), 10), {"channels": [4, 4, 4, 4]}, "after convolution 4, where 1 x 1"),
        (resnet, ((64,), 10), {}, r"data.input_shape"),
        (
            resnet,
            ((1, 8, 8), 10),
            {"widths": [4, 4]},
            r"blocks: expected one number .* got \[1, 1, 1\]",
        ),
        (resnet, ((1, 8, 8), 10), {"widths": [], "blocks": []}, "widths"),
        (resnet, ((1, 8, 8), 10), {"block": "clasic"}, "did you mean 'classic'"),
        (resnet, ((1, 8, 8), 10), {"blocks": [1, 0, 1]}, "blocks"),
        (gpt, ((1, 8, 8), 10), {}, "texts"),
        (gpt, ((8,), 10), {"width": 10, "num_heads": 4}, "num_heads: expected a divisor of width = 10, got 4"),
        (gpt, ((8,), 10), {"hidden": 0}, "hidden = 0"),
        (gpt, ((8,), 10), {"num_layers": -1}, "num_layers = -1"),
        (gpt, ((8,), 10), {"dropout": "much", "width": 0}, "width = 0.*dropout|dropout.*width = 0"),
    ],
)
def test_what_cannot_be_built_is_refused(build: Any, arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(*arguments, **options)


def test_a_misspelt_option_is_an_error_of_the_call() -> None:
    with pytest.raises(TypeError, match="widht"):
        gpt((8,), 10, widht=4)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_options_can_be_read_from_the_signature(name: str) -> None:
    """The recipe's check relies on it: keyword arguments with a default and an annotation each."""
    parameters = list(inspect.signature(MODELS[name]).parameters.values())
    hints = typing.get_type_hints(MODELS[name], include_extras=True)
    assert [p.name for p in parameters[:2]] == ["input_shape", "num_outputs"]
    for parameter in parameters[2:]:
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
        assert parameter.name in hints


def test_all_models_are_built_by_defaults() -> None:
    shapes = {"mlp": (4,), "cnn": (1, 8, 8), "resnet": (1, 8, 8), "gpt": (8,)}
    for name, build in MODELS.items():
        assert isinstance(build(shapes[name], 3), nn.Module), name
    assert issubclass(InputError, DdpError)
