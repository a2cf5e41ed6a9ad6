"""Options that several commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


class WordsType(click.ParamType[tuple[str, ...]]):
    """A command as one would type it into a shell, taken apart into its words."""

    name = "command"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            self.fail(f"expected the words of a command, got {value!r}: {error}", param, ctx)


recipe_argument = click.argument("recipe", metavar="RECIPE")

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key of the recipe, for example --set optimizer.lr=0.01; may be repeated.",
)

resume_option = click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|CHECKPOINT",
    help="What to go on from: the newest valid checkpoint in the run directory, nothing, or this checkpoint's folder.",
)

bind_option = click.option(
    "--bind/--no-bind",
    "binds",
    default=True,
    show_default=True,
    help="Keep each rank to cores of its own, where there is a core for each.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")

run_dir_argument = click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))


def run_dir_option(function: Function) -> Function:
    """`--run-dir`, with a default that `default_run_dir` fills in."""
    option = click.option(
        "--run-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where checkpoints, ledger, metrics and summary go. [default: runs/RECIPE-DATE-TIME]",
    )
    return option(function)


def workers_option(required: bool, default: int | None = 1) -> Callable[[Function], Function]:
    """`-n`: the number of workers, at least 1; `default` counts where it is not required."""
    return click.option(
        "-n",
        "--workers",
        "num_workers",
        type=click.IntRange(min=1),
        default=None if required else default,
        required=required,
        show_default=not required and default is not None,
        help="Number of workers: the world size.",
    )


def hosts_options(function: Function) -> Function:
    """`--hosts`, `--hostfile` and `--mpi-arg`: where ranks run, and what mpirun is told besides."""
    for option in (
        click.option(
            "--mpi-arg",
            "mpi_args",
            multiple=True,
            metavar="OPTION",
            help="A further option of mpirun, for example --mpi-arg '-x NAME'; may be repeated.",
        ),
        click.option(
            "--hostfile",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The same from a file with lines `host slots=N`.",
        ),
        click.option("--hosts", metavar="HOST[:N],...", help="Hosts, reached by ssh, and how many workers each takes."),
    ):
        function = option(function)
    return function


def default_run_dir(recipe: str) -> Path:
    """A run directory that does not exist yet, for a start that names none: `runs/digits-20260131-142355`."""
    first = Path("runs") / f"{Path(recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())
