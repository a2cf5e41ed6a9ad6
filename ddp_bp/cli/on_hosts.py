"""Before each start of a job on several hosts: are they fit, and which of them are left. Starts no rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddp_bp.cli.attempt import JobStart
from ddp_bp.cli.host_check import report_host
from ddp_bp.cli.host_preflight import Answers, ask_hosts, check_answers, clock_warnings, probe_file
from ddp_bp.cli.hosts import described
from ddp_bp.cli.kernels import Kernels
from ddp_bp.cli.network import is_this_host
from ddp_bp.cli.prepare import Prepared, warn
from ddp_bp.errors import HostError

RECONNECT_SECONDS = 5


def checked_start(start: JobStart, prepared: Prepared, kernels: Kernels) -> JobStart:
    """`start`, with what was found out about its hosts. It may not return: see `check_answers`.

    Raises HostError with all that is wrong with them.
    """
    placement, needed = start.placement, _needed_paths(prepared)
    first, section = placement.hosts[0].name, prepared.recipe.coordinator
    with contextlib.ExitStack() as stack:
        probe = None
        if not is_this_host(first) and _reads_checkpoints(prepared):
            probe = str(stack.enter_context(probe_file(prepared.run.path)))
        answers = ask_hosts(
            placement,
            (section.host, section.port),
            start.kernels,
            [*needed, *([probe] if probe else [])],
            listens_here=not start.coordinator_shell,
        )
    problems = []
    for host, report in answers.reports.items():
        problems += [
            f"{host}: expected {path}, as on this host, got no such file; copy it there, or use a folder that all share"
            for path in report.missing
            if path != probe
        ]
        if host == first and probe in report.missing:
            problems.append(
                f"{host}: expected to see the run directory {prepared.run.path}, since rank 0 reads checkpoints there, "
                "got another folder; give a --run-dir that both share, or name this host among those that take ranks"
            )
    try:
        check_answers(answers, kernels, report_host(), allow_mixed=prepared.recipe.blas.allow_mixed)
    except HostError as error:
        raise HostError([*error.problems, *problems]) from None
    if problems:
        raise HostError(problems)
    for warning in clock_warnings(answers):
        warn(warning)
    return _with(start, answers)


def start_on_hosts_left(first: JobStart, prepared: Prepared, say: Callable[[str], None]) -> JobStart:
    """The start after a death: on those of the hosts of the `first` one that still answer, with as many ranks as these
    take. `say` is told which are left out.

    Raises HostError if none is left.
    """
    host = prepared.recipe.coordinator.host
    # It has answered before, so a short time is enough.
    answers = ask_hosts(
        first.placement,
        (host, 0),
        first.kernels,
        connect_seconds=RECONNECT_SECONDS,
        listens_here=not first.coordinator_shell,
    )
    for host, why in answers.unfit.items():
        say(f"ddp-bp: host {host} is left out: {why}")
    placement = first.placement.without(list(answers.unfit))
    if placement.num_ranks == 0:
        raise HostError([f"{host}: {why}" for host, why in answers.unfit.items()])
    if answers.unfit:
        where = described(placement.hosts) or f"this one ({placement.num_ranks} of its slots)"
        say(f"ddp-bp: hosts: {where}")
    return _with(replace(first, placement=placement, num_workers=placement.num_ranks), answers)


def _with(start: JobStart, answers: Answers) -> JobStart:
    placement = start.placement
    return replace(start, interfaces=answers.interfaces(placement), yields=answers.yields(placement))


def _reads_checkpoints(prepared: Prepared) -> bool:
    """Whether rank 0 may have to read one, now or after a death."""
    due, fault = prepared.recipe.checkpoint, prepared.recipe.fault
    restarts = fault.recovery != "none" and fault.max_restarts > 0
    return prepared.checkpoint is not None or (restarts and bool(due.every_steps or due.every_seconds))


def _needed_paths(prepared: Prepared) -> list[str]:
    """What of the recipe every host must have at the same place: data files, and the user's own code."""
    data, base = prepared.recipe.data, prepared.base.resolve()
    named = [data.path, data.target_path, data.eval_path, data.eval_target_path, data.folder]
    paths = [str(base / Path(path)) for path in named if path is not None]
    module = (prepared.recipe.model.factory or ":").partition(":")[0].partition(".")[0]
    # Where it is looked for; one that is installed is not among them.
    sources = [folder / name for folder in (base, Path.cwd()) for name in (f"{module}.py", module) if module]
    return [*paths, *(str(path) for path in [path for path in sources if path.exists()][:1])]
