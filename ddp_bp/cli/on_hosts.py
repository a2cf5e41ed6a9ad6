"""Before each start of a job on several hosts: are they fit, and which of them are left. Starts no rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ddp_bp.cli.host_check import report_host
from ddp_bp.cli.host_preflight import Answers, ask_hosts, check_answers, clock_warnings, probe_file
from ddp_bp.cli.hosts import described
from ddp_bp.cli.job_start import JobStart
from ddp_bp.cli.kernels import Kernels
from ddp_bp.cli.network import is_this_host
from ddp_bp.cli.prepare import Prepared, warn
from ddp_bp.cli.remote import CONNECT_SECONDS
from ddp_bp.errors import HostError

RECONNECT_SECONDS = 5


class HostCheck:
    """Looks at the hosts of a job on several before each start of it, and knows which have been found fit."""

    def __init__(self, prepared: Prepared, kernels: Kernels, say: Callable[[str], None], *, is_wanted: bool) -> None:
        """`say` is told which hosts are left out. `is_wanted`: whether hosts are looked at before ranks first start
        there."""
        self._prepared, self._kernels, self._say, self._is_wanted = prepared, kernels, say, is_wanted
        self._fit: set[str] = set()

    def first_start(self, start: JobStart) -> JobStart:
        """`start`, with what was found out about its hosts. It may not return: see `check_answers`.

        Raises HostError with all that is wrong with them.
        """
        if not start.placement.spans_hosts or not self._is_wanted:
            return start
        section = self._prepared.recipe.coordinator
        with self._probe(start) as probe:
            paths = _needed_paths(self._prepared)
            answers = self._ask(start, (section.host, section.port), [*paths, *probe], CONNECT_SECONDS)
        self._check(answers, self._kernels, probe, rank_0=start.placement.hosts[0].name)
        for warning in clock_warnings(answers):
            warn(warning)
        return _with(start, answers)

    def next_start(self, first: JobStart) -> JobStart:
        """A later start: on those of the hosts of the `first` one that still answer, with as many ranks as these take.

        Raises HostError if none is left, or if ranks are to run where none has run before and that host is not fit.
        """
        if not first.placement.spans_hosts:
            return first
        added = [host for host in first.placement.remote if host not in self._fit] if self._is_wanted else []
        with self._probe(first) as probe:
            paths = _needed_paths(self._prepared) if added else []
            # Those of before have answered before, so a short time is enough.
            seconds = CONNECT_SECONDS if added else RECONNECT_SECONDS
            answers = self._ask(first, (self._prepared.recipe.coordinator.host, 0), [*paths, *probe], seconds)
        lost = {host: why for host, why in answers.unfit.items() if host not in added}
        if added:
            self._check(answers.without(lost), replace(self._kernels, may_change=False), probe)
        placement = first.placement.without(list(lost))
        while placement.spans_hosts and _lacks(answers, placement.hosts[0].name, probe):
            lost[placement.hosts[0].name] = _no_run_directory(self._prepared)
            placement = first.placement.without(list(lost))
        for host, why in lost.items():
            self._say(f"ddp-bp: host {host} is left out: {why}")
        if placement.num_ranks == 0:
            raise HostError([f"{host}: {why}" for host, why in lost.items()])
        if lost:
            where = described(placement.hosts) or f"this one ({placement.num_ranks} of its slots)"
            self._say(f"ddp-bp: hosts: {where}")
        return _with(replace(first, placement=placement, num_workers=placement.num_ranks), answers)

    @contextlib.contextmanager
    def _probe(self, start: JobStart) -> Iterator[list[str]]:
        """A file in the run directory, if rank 0, which reads checkpoints there, is on another host than this one."""
        if is_this_host(start.placement.hosts[0].name):
            yield []
            return
        with probe_file(self._prepared.run.path) as file:
            yield [str(file)]

    def _ask(self, start: JobStart, coordinator: tuple[str, int], paths: list[str], connect_seconds: int) -> Answers:
        return ask_hosts(
            start.placement,
            coordinator,
            start.kernels,
            paths,
            connect_seconds,
            listens_here=not start.coordinator_shell,
        )

    def _check(self, answers: Answers, kernels: Kernels, probe: list[str], rank_0: str | None = None) -> None:
        """Raise HostError with all that is wrong with the hosts. It may not return: see `check_answers`."""
        problems = []
        for host, report in answers.reports.items():
            problems += [
                f"{host}: expected {path}, as on this host, got no such file; copy it there, or use a folder that all "
                "share"
                for path in report.missing
                if path not in probe
            ]
            if host == rank_0 and _lacks(answers, host, probe):
                problems.append(f"{host}: {_no_run_directory(self._prepared)}")
        try:
            check_answers(answers, kernels, report_host(), allow_mixed=self._prepared.recipe.blas.allow_mixed)
        except HostError as error:
            raise HostError([*error.problems, *problems]) from None
        if problems:
            raise HostError(problems)
        self._fit |= set(answers.reports)


def _with(start: JobStart, answers: Answers) -> JobStart:
    placement = start.placement
    return replace(start, interfaces=answers.interfaces(placement), yields=answers.yields(placement))


def _lacks(answers: Answers, host: str, paths: list[str]) -> bool:
    """Whether a host has said that one of the paths is not there."""
    report = answers.reports.get(host)
    return report is not None and any(path in report.missing for path in paths)


def _no_run_directory(prepared: Prepared) -> str:
    return (
        f"expected to see the run directory {prepared.run.path}, since rank 0 reads checkpoints there, got another "
        "folder; give a --run-dir that both share, or name this host among those that take ranks"
    )


def _needed_paths(prepared: Prepared) -> list[str]:
    """What of the recipe every host must have at the same place: data files, and the user's own code."""
    data, base = prepared.recipe.data, prepared.base.resolve()
    named = [data.path, data.target_path, data.eval_path, data.eval_target_path, data.folder]
    paths = [str(base / Path(path)) for path in named if path is not None]
    module = (prepared.recipe.model.factory or ":").partition(":")[0].partition(".")[0]
    # Where it is looked for; one that is installed is not among them.
    sources = [folder / name for folder in (base, Path.cwd()) for name in (f"{module}.py", module) if module]
    return [*paths, *(str(path) for path in [path for path in sources if path.exists()][:1])]
