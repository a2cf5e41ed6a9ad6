"""The options of `ddp-bp bench`: sizes, networks and numbers as they are written, and how often something is timed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from ddp_bp.bench.models import MODELS
from ddp_bp.cli.options import Function
from ddp_bp.data.source import suggestion

DEFAULT_WORKERS = 2
_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def byte_size(text: str) -> int:
    """`4096`, `64KiB`, `1MiB` or `1GiB` as a number of bytes, at least one. Raises click.BadParameter."""
    matched = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", text)
    num_bytes = int(matched[1]) * _UNITS.get(matched[2].lower(), 0) if matched else 0
    if not num_bytes:
        raise click.BadParameter(f"expected a size such as 4096, 64KiB or 1MiB, got {text!r}")
    return num_bytes


def vector_sizes(text: str) -> tuple[int, ...]:
    """Sizes of vectors of float32, divided by commas, in bytes. Raises click.BadParameter."""
    sizes = tuple(map(byte_size, text.split(",")))
    for size in sizes:
        if size % 4:
            raise click.BadParameter(f"a vector of float32 takes a multiple of 4 bytes, got {size}")
    return sizes


def model_names(text: str) -> tuple[str, ...]:
    """Names of models, divided by commas. Raises click.BadParameter."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in MODELS:
            raise click.BadParameter(
                f"there is no model {name!r}; there is {', '.join(MODELS)}{suggestion(name, MODELS)}"
            )
    return names


def shard_numbers(text: str) -> tuple[int, ...]:
    """Numbers of shards, divided by commas, each at least one. Raises click.BadParameter."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise click.BadParameter(f"expected numbers of shards such as 2,4, got {part!r}")
    return tuple(map(int, parts))


def parsed_by(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that gives a command what `parse` makes of the option's text."""
    return lambda _context, _parameter, text: None if text is None else parse(text)


workers_option = click.option(
    "-n",
    "--workers",
    "num_workers",
    type=click.IntRange(min=1),
    help=f"Number of workers.  [default: {DEFAULT_WORKERS}, or those of your own launcher]",
)
models_option = click.option(
    "--models",
    callback=parsed_by(model_names),
    default=",".join(MODELS),
    show_default=True,
    metavar="NAME,...",
    help="Which networks to train: " + "; ".join(f"{name} is {model.description}" for name, model in MODELS.items()),
)


def repeats_option(default: int, what: str) -> Callable[[Function], Function]:
    return click.option(
        "--repeats", type=click.IntRange(min=1), default=default, show_default=True, help=f"How often {what}."
    )
