from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web import MisbehavingServer, misbehaving_server

from ddp_bp.data import download as download_module
from ddp_bp.data.download import NUM_TRIES, download
from ddp_bp.data.fetch import content_problem, fetch
from ddp_bp.data.public_sets import PUBLIC, PublicFile
from ddp_bp.errors import DataError, DownloadError

CONTENT = np.random.default_rng(0).bytes(60_000)
PACKED = gzip.compress(CONTENT, mtime=0)
FILE = PublicFile("images", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
OTHER = PublicFile("labels", 3, hashlib.sha256(b"abc").hexdigest())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download_module, "_CHUNK_BYTES", 10_000)
    with misbehaving_server() as running:
        running.content = {"/images.gz": PACKED, "/labels.gz": gzip.compress(b"abc")}
        yield running


class Watcher:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.sizes: list[tuple[int, int | None]] = []

    def present(self, file: str) -> None:
        self.said.append(f"{file} present")

    def progress(self, file: str, num_bytes: int, total_bytes: int | None) -> None:
        self.sizes.append((num_bytes, total_bytes))

    def retrying(self, file: str, problem: str, wait_seconds: float) -> None:
        self.said.append(f"{file} {problem} {wait_seconds:g}")

    def done(self, file: str, num_bytes: int) -> None:
        self.said.append(f"{file} done")


class Run:
    """One call of `fetch` that never sleeps."""

    def __init__(self, server: MisbehavingServer, folder: Path, *addresses: str, files: Any = (FILE,)) -> None:
        self.watcher = Watcher()
        self.slept: list[float] = []
        self.error: Exception | None = None
        try:
            fetch(files, addresses or (server.address,), folder, self.watcher, sleep=self.slept.append)
        except (DownloadError, DataError) as error:
            self.error = error


def test_files_are_downloaded_checked_and_then_present(server: MisbehavingServer, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    run = Run(server, folder, files=(FILE, OTHER))
    assert run.error is None and run.watcher.said == ["images.gz done", "labels.gz done"]
    assert sorted(path.name for path in folder.iterdir()) == ["images.gz", "labels.gz"]
    assert (folder / "images.gz").read_bytes() == PACKED
    sizes = [size for size, total in run.watcher.sizes if total == len(PACKED)]
    assert sizes == sorted(sizes) and len(sizes) > 5 and sizes[-1] == len(PACKED)
    again = Run(server, folder, files=(FILE, OTHER))
    assert again.watcher.said == ["images.gz present", "labels.gz present"] and len(server.asked) == 2


@pytest.mark.parametrize("kind", ["cut", "cut chunked"])
def test_a_flaky_connection_is_resumed_where_it_broke(server: MisbehavingServer, tmp_path: Path, kind: str) -> None:
    # More cuts than tries are allowed, but each brings the file on.
    server.script = [(kind, 10_000)] * 5
    run = Run(server, tmp_path)
    assert run.error is None and (tmp_path / "images.gz").read_bytes() == PACKED
    wishes = [None, *(f"bytes={at}-" for at in range(10_000, 60_000, 10_000))]
    assert [wish for _, wish in server.asked] == wishes
    assert run.slept == [1.0] * 5
    assert run.watcher.said[0] == "images.gz the connection was cut 1"


def test_waits_grow_and_end_when_nothing_comes(server: MisbehavingServer, tmp_path: Path) -> None:
    server.script = [("cut", 500), "reset", ("status", 503), "reset", "reset"]
    run = Run(server, tmp_path)
    assert isinstance(run.error, DownloadError) and run.error.exit_code == 1
    assert run.slept == [1.0, 2.0, 4.0] and len(server.asked) == NUM_TRIES
    assert f"{server.address}/images.gz: the connection was cut, 4 times in a row" in str(run.error).replace(
        "Remote end closed connection without response", "the connection was cut"
    )
    assert (tmp_path / "images.gz.part").read_bytes() == PACKED[:500] and not (tmp_path / "images.gz").exists()
    # Another call, another day.
    server.script = []
    assert Run(server, tmp_path).error is None
    assert server.asked[-1] == ("/images.gz", "bytes=500-")
    assert [path.name for path in tmp_path.iterdir()] == ["images.gz"]


def test_a_server_that_ignores_ranges_sends_everything_again(server: MisbehavingServer, tmp_path: Path) -> None:
    server.script = [("cut", 30_000), "ignore range"]
    run = Run(server, tmp_path)
    assert run.error is None and (tmp_path / "images.gz").read_bytes() == PACKED
    assert (0, len(PACKED)) in run.watcher.sizes[2:]


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(server: MisbehavingServer, tmp_path: Path) -> None:
    server.script = [("ignore range", 30_000)] * 9
    run = Run(server, tmp_path)
    assert "the connection was cut, 4 times in a row" in str(run.error) and len(server.asked) == 4


@pytest.mark.parametrize("behaviour", ["chunked", ("wrong start", 7), ("status", 500), ("status", 429), "reset"])
@pytest.mark.parametrize("begun", [0, 20_000])
def test_what_passes_does_no_harm(server: MisbehavingServer, tmp_path: Path, behaviour: Any, begun: int) -> None:
    (tmp_path / "images.gz.part").write_bytes(PACKED[:begun])
    server.script = [behaviour]
    assert Run(server, tmp_path).error is None
    assert (tmp_path / "images.gz").read_bytes() == PACKED


def test_a_part_that_is_whole_already_is_taken(server: MisbehavingServer, tmp_path: Path) -> None:
    (tmp_path / "images.gz.part").write_bytes(PACKED)
    assert Run(server, tmp_path).error is None
    assert server.asked == [("/images.gz", f"bytes={len(PACKED)}-")]


@pytest.mark.parametrize("part", [b"x" * 100, b"x" * (len(PACKED) + 1), b"x" * len(PACKED)])
def test_a_part_of_something_else_is_thrown_away(server: MisbehavingServer, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "images.gz.part").write_bytes(part)
    assert Run(server, tmp_path).error is None
    assert (tmp_path / "images.gz").read_bytes() == PACKED


def test_another_compression_of_the_same_content_is_right(server: MisbehavingServer, tmp_path: Path) -> None:
    server.content["/images.gz"] = gzip.compress(CONTENT, 1)
    assert Run(server, tmp_path).error is None
    (tmp_path / "images.gz").write_bytes(CONTENT)
    assert content_problem(tmp_path / "images.gz", FILE) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(CONTENT[:-1] + b"!"), f"expected content with SHA-256 {FILE.sha256}, got "),
        (gzip.compress(CONTENT[:-1]), "expected 60000 bytes of content, got 59999"),
        (gzip.compress(bytes(10**9)), "expected 60000 bytes of content, got more"),
        (PACKED[:-9], "it is a damaged or cut gzip file"),
        (b"<html>Please log in to the network</html>", "expected 60000 bytes of content, got 41"),
    ],
)
def test_a_wrong_file_is_never_given_its_name(
    server: MisbehavingServer, tmp_path: Path, content: bytes, expected: str
) -> None:
    server.content["/images.gz"] = content
    run = Run(server, tmp_path)
    assert isinstance(run.error, DownloadError)
    assert f"images.gz could not be downloaded to {tmp_path}:\n  {server.address}/images.gz: {expected}" in str(
        run.error
    )
    assert list(tmp_path.iterdir()) == [] and len(server.asked) == 1


def test_a_damaged_file_that_is_there_is_replaced(server: MisbehavingServer, tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(PACKED[:-20])
    assert Run(server, tmp_path).error is None
    assert (tmp_path / "images.gz").read_bytes() == PACKED


def test_the_next_address_is_tried_and_every_reason_told(server: MisbehavingServer, tmp_path: Path) -> None:
    server.content["/wrong/images.gz"] = gzip.compress(b"something else")
    addresses = [f"{server.address}/absent/", f"{server.address}/wrong", server.address]
    assert Run(server, tmp_path, *addresses).error is None
    (tmp_path / "images.gz").unlink()
    run = Run(server, tmp_path, *addresses[:2])
    assert f"  {server.address}/absent/images.gz: the server answered 404 Not Found\n" in str(run.error)
    assert f"  {server.address}/wrong/images.gz: expected 60000 bytes of content, got 14" in str(run.error)
    assert run.slept == []


def test_a_silent_server_is_given_up(server: MisbehavingServer, tmp_path: Path) -> None:
    server.script = ["silent"] * NUM_TRIES
    with pytest.raises(DownloadError, match="the server was silent for too long, 4 times in a row"):
        download(
            f"{server.address}/images.gz",
            tmp_path / "part",
            lambda *_: None,
            lambda *_: None,
            sleep=lambda _: None,
            timeout_seconds=0.05,
        )


def test_nobody_listens(server: MisbehavingServer, tmp_path: Path) -> None:
    closed = MisbehavingServer()
    closed.server_close()
    run = Run(server, tmp_path, closed.address)
    assert "Connection refused, 4 times in a row" in str(run.error)


def test_a_full_disk_is_an_error_of_the_disk(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "ab":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    run = Run(server, tmp_path)
    assert isinstance(run.error, DataError) and run.error.exit_code == 2
    assert f"{tmp_path}/images.gz.part cannot be written: No space left on device" in str(run.error)
    assert len(server.asked) == 1


def test_a_folder_that_cannot_be_is_an_error_of_the_disk(server: MisbehavingServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Run(server, tmp_path / "file" / "folder")
    assert f"{tmp_path}/file/folder cannot be used: Not a directory" in str(run.error)


def test_two_downloads_do_not_mix(server: MisbehavingServer, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        run = Run(server, tmp_path)
    finally:
        os.close(descriptor)
    assert f"{tmp_path}: another process is downloading to it" in str(run.error) and server.asked == []


def test_every_public_file_has_the_size_of_its_images_and_a_digest() -> None:
    for public in PUBLIC.values():
        assert [file.num_bytes for file in public.files] == [16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 10_008]
        assert all(len(file.sha256) == 64 and int(file.sha256, 16) for file in public.files)
        assert all(address.startswith("http") and address.endswith("/") for address in public.addresses)
    assert len({file.sha256 for public in PUBLIC.values() for file in public.files}) == 8
