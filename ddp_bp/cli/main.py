"""The command `ddp-bp`: finds the subcommand, and turns every error into one message and an exit code.

Subcommands are imported when they are called, so that `ddp-bp status` does not wait for NumPy and BLAS is told its
number of threads before it is loaded.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from ddp_bp._version import __version__
from ddp_bp.cli.environment import drop_impossible_kernels, kernels_asked_for, prepare_blas
from ddp_bp.cli.processor import this_processor
from ddp_bp.errors import DdpError

# name: (module, function, one line of help)
COMMANDS = {
    "train": ("ddp_bp.cli.train", "train", "Train a recipe on N workers, under mpirun, with a coordinator."),
    "worker": ("ddp_bp.cli.worker", "worker", "Be one rank of a job; for a launcher of your own."),
    "coordinator": (
        "ddp_bp.cli.coordinator",
        "coordinator",
        "Be the coordinator of one job, without starting workers.",
    ),
    "profile": ("ddp_bp.cli.profile", "profile", "Show where the time of training steps goes."),
    "bench": ("ddp_bp.cli.bench", "bench", "Measure exchange, steps, recovery and more, beside MPI and PyTorch."),
    "chaos": ("ddp_bp.cli.chaos", "chaos", "Train while processes are killed, and compare with a run in peace."),
    "status": ("ddp_bp.cli.status", "status", "Show how a running job is doing."),
    "stacks": ("ddp_bp.cli.stacks", "stacks", "Show where every rank of a running job is, in Python."),
    "stop": ("ddp_bp.cli.stop", "stop", "Save a checkpoint of a running job, and end it."),
    "scale": ("ddp_bp.cli.scale", "scale", "Let a running job go on with more or fewer ranks."),
    "checkpoint": ("ddp_bp.cli.checkpoint", "checkpoint", "List, verify or take checkpoints."),
    "ledger": ("ddp_bp.cli.ledger", "ledger", "Verify which samples a run has used, or show one of its steps."),
    "replay": ("ddp_bp.cli.replay", "replay", "Compute a step of a run once more, and compare."),
    "data": ("ddp_bp.cli.data", "data", "List the data sets, or download one."),
    "recipes": ("ddp_bp.cli.recipes", "recipes", "List the packaged recipes."),
}
# What commands of ours call, on other hosts or under another launcher.
HIDDEN = {
    "host-check": ("ddp_bp.cli.host_check", "host_check"),
    "torchrun-worker": ("ddp_bp.cli.torchrun_worker", "torchrun_worker"),
}


class LazyCommands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS and cmd_name not in HIDDEN:
            return None
        module, function = HIDDEN[cmd_name] if cmd_name in HIDDEN else COMMANDS[cmd_name][:2]
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ddp-bp")
def cli() -> None:
    """Data-parallel training on CPU clusters: the same bits for any number of workers."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 done, 1 failed, 2 unusable input, 130/143 stopped by a signal."""
    prepare_blas()
    if kernels_asked_for() and (dropped := drop_impossible_kernels(this_processor())):
        name, lacking = dropped
        print(
            f"ddp-bp: warning: OPENBLAS_CORETYPE = {name} is not followed on this host, "
            f"whose processor lacks {', '.join(lacking)}",
            file=sys.stderr,
        )
    try:
        code: Any = cli.main(args=arguments, prog_name="ddp-bp", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except DdpError as error:
        print(f"ddp-bp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output left, for instance `head`. Python flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # Whoever opens a file says more; this path was only looked at. Without one it is a fault of ours.
        if error.filename is None:
            raise
        print(f"ddp-bp: {error.filename}: {error.strerror}; name another, or let this user have it", file=sys.stderr)
        sys.exit(DdpError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
