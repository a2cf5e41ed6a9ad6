"""`ddp-bp data` as a user runs it, against a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from support import ddp_bp, run_to_end
from web import MisbehavingServer, misbehaving_server

from ddp_bp.cli import data as data_module
from ddp_bp.cli.environment import user_cache
from ddp_bp.cli.main import main
from ddp_bp.data import DataSpec, load, public_sets
from ddp_bp.data.public_sets import PUBLIC, PublicFile


def images_and_labels() -> list[bytes]:
    contents = []
    for shape in ((20, 28, 28), (20,), (5, 28, 28), (5,)):
        values = np.arange(np.prod(shape), dtype=np.int64) % 10
        contents.append(struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.astype("u1").tobytes())
    return contents


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingServer]:
    """Serves a small set by the name of fashion-mnist, which is all that the command knows of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with misbehaving_server() as running:
        files = []
        for known, content in zip(PUBLIC["fashion-mnist"].files, images_and_labels(), strict=True):
            running.content[f"/{known.name}.gz"] = gzip.compress(content)
            files.append(PublicFile(known.name, len(content), hashlib.sha256(content).hexdigest()))
        small = replace(PUBLIC["fashion-mnist"], files=tuple(files), addresses=(running.address,))
        table = MappingProxyType({**PUBLIC, "fashion-mnist": small})
        for module in (data_module, public_sets):
            monkeypatch.setattr(module, "PUBLIC", table)
        monkeypatch.setattr(public_sets, "SYSTEM_FOLDER", tmp_path / "system")
        yield running


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_fetch_downloads_recipes_find(
    server: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache" / "ddp_bp" / "datasets" / "fashion-mnist"
    assert call("ls", "--json") == 0
    before = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(before) == ["digits", "diabetes", "tinyshakespeare", "mnist", "fashion-mnist"]
    assert before["digits"]["where"] == "packaged" and before["fashion-mnist"]["where"] is None
    assert all(row["about"] and row["licence"] for row in before.values())

    assert call("fetch", "fashion-mnist") == 0
    out, err = capsys.readouterr()
    assert f"fashion-mnist (MIT, Zalando SE) is in {folder}\n" in out and 'data.name = "fashion-mnist"' in out
    assert len([line for line in err.splitlines() if line.endswith("digest as expected")]) == 4
    loaded = load(DataSpec(name="fashion-mnist"), cache=user_cache())
    assert loaded.train.num_samples == 20 and loaded.input_shape == (1, 28, 28)

    assert call("fetch", "fashion-mnist") == 0
    assert capsys.readouterr().err.count("there already") == 4 and len(server.asked) == 4
    assert call("ls") == 0
    words = capsys.readouterr().out.split()
    assert {"tinyshakespeare", "packaged", "mnist", "fetch"} <= set(words)
    assert call("ls", "--json") == 0
    assert json.loads(capsys.readouterr().out)[-1]["where"] == str(folder)


def test_another_folder_and_another_address(
    server: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = {f"/mirror{path}": content for path, content in server.content.items()}
    folder = tmp_path / "elsewhere"
    assert call("fetch", "fashion-mnist", "--to", str(folder), "--from", f"{server.address}/mirror") == 0
    assert f'data.folder = "{folder}"' in capsys.readouterr().out
    assert load(DataSpec(name="fashion-mnist", folder=str(folder))).train.num_samples == 20


def test_a_download_that_fails_says_why(
    server: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content["/train-labels-idx1-ubyte.gz"] = gzip.compress(b"wrong")
    assert call("fetch", "fashion-mnist") == 1
    err = capsys.readouterr().err
    assert "ddp-bp: train-labels-idx1-ubyte.gz could not be downloaded to" in err
    assert "expected 28 bytes of content, got 5" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fetch", "fashon-mnist"], "there is mnist, fashion-mnist; did you mean 'fashion-mnist'?"),
        (["fetch", "digits"], "digits comes with the package"),
        (["fetch", "mnist", "--from", "ftp://x/"], "--from ftp://x/: expected an address that starts with http://"),
    ],
)
def test_what_cannot_be_fetched_is_named(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], server: MisbehavingServer
) -> None:
    assert call(*arguments) == 2
    assert expected in capsys.readouterr().err


def test_a_recipe_whose_data_is_missing_ends_before_anything_starts(tmp_path: Path) -> None:
    recipe = tmp_path / "mnist.toml"
    recipe.write_text('[model]\nname = "mlp"\n[data]\nname = "mnist"\n')
    done = run_to_end(ddp_bp("train", recipe, "--run-dir", tmp_path / "run"), 60, XDG_CACHE_HOME=str(tmp_path / "c"))
    assert done.returncode == 2
    assert f"mnist is not on this machine; looked in {tmp_path}/c/ddp_bp/datasets/mnist (not there)" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_cache_folder_is_where_the_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_cache({"XDG_CACHE_HOME": "/x/y"}) == Path("/x/y/ddp_bp")
    assert user_cache({}) == Path.home() / ".cache" / "ddp_bp"
    assert user_cache({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "ddp_bp"

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache({}) is None
