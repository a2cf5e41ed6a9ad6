"""`ddp-bp data`: which data sets there are and where, and downloading those that are not packaged."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from ddp_bp.cli import options
from ddp_bp.cli.environment import user_cache
from ddp_bp.cli.output import print_json, print_table, size_text
from ddp_bp.data.fetch import fetch
from ddp_bp.data.packaged_sets import PACKAGED, PACKAGED_TEXTS
from ddp_bp.data.public_sets import PUBLIC, cache_folder, find_public
from ddp_bp.data.source import suggestion
from ddp_bp.errors import InputError


@click.group()
def data() -> None:
    """List the data sets, or download one."""


@data.command("ls")
@options.json_option
def list_data(as_json: bool) -> None:
    """List the data sets that a recipe can name, and where they are on this machine."""
    cache = user_cache()
    rows: list[dict[str, str | None]] = [
        {"name": name, "about": packaged.about, "licence": packaged.licence, "where": "packaged"}
        for name, packaged in (*PACKAGED.items(), *PACKAGED_TEXTS.items())
    ]
    for name, public in PUBLIC.items():
        folder = find_public(name, cache)
        where = None if folder is None else str(folder)
        rows.append({"name": name, "about": public.about, "licence": public.licence, "where": where})
    if as_json:
        print_json(rows)
        return
    print_table(
        ("name", "about", "licence", "where"),
        [
            (row["name"], row["about"], row["licence"], row["where"] or f"not here: ddp-bp data fetch {row['name']}")
            for row in rows
        ],
    )


@data.command("fetch")
@click.argument("name", metavar="NAME")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the files. [default: in the user's cache folder, where recipes look by themselves]",
)
@click.option(
    "--from",
    "mirror",
    metavar="ADDRESS",
    help="A web folder of your own that has the files, instead of the public ones; the digests are the same.",
)
def fetch_data(name: str, folder: Path | None, mirror: str | None) -> None:
    """Download the data set NAME: mnist or fashion-mnist.

    Files that are there already stay, an interrupted download goes on where it stopped, and every file is checked
    against a SHA-256 digest that comes with the package.
    """
    public = PUBLIC.get(name)
    if public is None:
        if name in PACKAGED or name in PACKAGED_TEXTS:
            raise InputError(f"{name} comes with the package: there is nothing to download")
        raise InputError(
            f"there is no data set {name!r} to download; there is {', '.join(PUBLIC)}{suggestion(name, PUBLIC)}"
        )
    if mirror is not None and not mirror.lower().startswith(("http://", "https://")):
        raise InputError(f"--from {mirror}: expected an address that starts with http:// or https://")
    chosen = folder
    if chosen is None:
        cache = user_cache()
        if cache is None:
            raise InputError("this user has no home folder for downloads: name a folder with --to")
        chosen = cache_folder(name, cache)
    with _View() as view:
        fetch(public.files, public.addresses if mirror is None else (mirror,), chosen, view)
    print(f"{name} ({public.licence}) is in {chosen}")
    print(f'a recipe reads it with data.name = "{name}"' + (f' and data.folder = "{folder}"' if folder else ""))


class _View(AbstractContextManager["_View"]):
    """Shows bars on a terminal, and a line for each file elsewhere. All on stderr."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _View:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def present(self, file: str) -> None:
        self._say(f"{file}: there already")

    def progress(self, file: str, num_bytes: int, total_bytes: int | None) -> None:
        if file not in self._tasks:
            self._tasks[file] = self._bars.add_task(file)
        self._bars.update(self._tasks[file], completed=num_bytes, total=total_bytes)

    def retrying(self, file: str, problem: str, wait_seconds: float) -> None:
        self._say(f"{file}: {problem}; again in {wait_seconds:g} s")

    def done(self, file: str, num_bytes: int) -> None:
        self._say(f"{file}: {size_text(num_bytes)}, digest as expected")

    def _say(self, text: str) -> None:
        if self._bars.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(text, markup=False, highlight=False)
