"""Before ranks start on several hosts: whether each can be reached, and has what this one has. Starts no rank.

All that is wrong is found at once. Knows neither recipes nor how ranks are started.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ddp_bp.cli.environment import restart_with_kernels
from ddp_bp.cli.host_check import HostReport
from ddp_bp.cli.kernel_choice import CANDIDATES
from ddp_bp.cli.kernels import Kernels
from ddp_bp.cli.network import Interface
from ddp_bp.cli.placement import SLURM, Placement, own_interfaces
from ddp_bp.cli.processor import Processor
from ddp_bp.cli.remote import CONNECT_SECONDS, Said, run_on_hosts
from ddp_bp.coordinator.sockets import bind_http, reachable_host
from ddp_bp.errors import HostError

DEADLINE_SECONDS = 30.0
CLOCK_SECONDS = 5.0
"""By how much clocks may differ before it is said: durations in reports are each host's own, ages are not."""


@dataclass(frozen=True)
class Answers:
    """What the other hosts said: reports by host, and of those that gave none why. `clocks`: seconds ahead of here."""

    reports: dict[str, HostReport] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    clocks: dict[str, float] = field(default_factory=dict)

    def without(self, hosts: Collection[str]) -> Answers:
        """What the others said."""
        return Answers(
            {host: report for host, report in self.reports.items() if host not in hosts},
            {host: why for host, why in self.silent.items() if host not in hosts},
            {host: ahead for host, ahead in self.clocks.items() if host not in hosts},
        )

    def interfaces(self, placement: Placement) -> tuple[Interface, ...]:
        """Those by which the hosts reach each other, as far as they are known."""
        theirs = [report.interface for report in self.reports.values() if report.interface is not None]
        return tuple(dict.fromkeys([*own_interfaces(placement), *theirs]))

    def yields(self, placement: Placement) -> bool:
        """Whether a host has more ranks than cores."""
        here = len(os.sched_getaffinity(0))
        cores = {name: report.num_cores for name, report in self.reports.items()}
        return any(host.slots > cores.get(host.name, here) for host in placement.hosts)

    @property
    def unfit(self) -> dict[str, str]:
        """Why ranks cannot be started on a host, or could not reach the coordinator from there, by host."""
        no_way = {
            host: f"expected to reach the coordinator, which will be here at {address}, got {why!r}; open the ports of "
            "this host to that one (coordinator.port and coordinator.http_port fix them), or set coordinator.host to "
            "an address of this host that it reaches"
            for host, report in self.reports.items()
            for address, why in report.unreachable.items()
        }
        return {**self.silent, **no_way}


def ask_hosts(
    placement: Placement,
    coordinator: tuple[str, int],
    kernels: str | None,
    paths: Sequence[str] = (),
    connect_seconds: int = CONNECT_SECONDS,
    *,
    listens_here: bool = True,
) -> Answers:
    """Ask every other host of `placement` what it has, all at once.

    Args:
        coordinator: the (host, port) at which the coordinator will listen; port 0 is any free one.
        kernels: what OpenBLAS is to be told there. paths: what to look for.
        connect_seconds: how long a host may take to accept a connection.
        listens_here: whether that is on this host, so that the way there can be tried.

    Raises:
        AddressError: nobody can listen there.
    """
    host, port = coordinator
    command = [sys.executable, "-m", "ddp_bp", "host-check", "--towards", reachable_host(host)]
    with contextlib.ExitStack() as stack:
        if listens_here:
            listener = stack.enter_context(contextlib.closing(bind_http(host, port, "port")))
            bound = listener.getsockname()
            command += ["--connect", f"{reachable_host(str(bound[0]))}:{bound[1]}"]
        command += [word for path in paths for word in ("--path", path)]
        variables = {"OPENBLAS_CORETYPE": kernels} if kernels else {}
        began = time.time()
        in_slurm = placement.source == SLURM
        said = run_on_hosts(
            placement.remote, command, DEADLINE_SECONDS, connect_seconds, in_slurm=in_slurm, **variables
        )
        ended = time.time()
    answers = Answers()
    for name, words in said.items():
        report = _report(words)
        if report is None:
            answers.silent[name] = _why_silent(words)
            continue
        answers.reports[name] = report
        answers.clocks[name] = min(0.0, report.unix_seconds - began) + max(0.0, report.unix_seconds - ended)
    return answers


def check_answers(answers: Answers, kernels: Kernels, own: HostReport, *, allow_mixed: bool) -> None:
    """See to it that all hosts are alike. It may not return: then the command starts again with other kernels.

    Raises HostError with all that is wrong.
    """
    problems = [f"{host}: {why}" for host, why in answers.unfit.items()]
    seen = {own.hostname: ("this host", own.boot_id)}
    for name, report in answers.reports.items():
        problems += [f"{name}: {problem}" for problem in _differences(own, report, allow_mixed=allow_mixed)]
        # Two nodes of a batch system may be one machine, and its ranks do share memory.
        namesake, boot_id = seen.setdefault(report.hostname, (name, report.boot_id))
        if boot_id != report.boot_id:
            problems.append(
                f"{name}: expected a host name of its own, got {report.hostname!r}, as {namesake} has: "
                "MPI would take both for one host; give one of them another name"
            )
    choice = None
    if not allow_mixed:
        choice, lacking = _common_kernels(answers, kernels, own)
        problems += lacking
    if problems:
        raise HostError(problems)
    if choice is not None:
        restart_with_kernels(choice, "what all hosts have")


def clock_warnings(answers: Answers) -> list[str]:
    """What to tell the user about clocks that differ."""
    return [
        f"the clock of {host} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this host's; "
        "times and ages in metrics and on the live page are off by as much; synchronise them, for example with chrony"
        for host, ahead in answers.clocks.items()
        if abs(ahead) > CLOCK_SECONDS
    ]


@contextlib.contextmanager
def probe_file(run_dir: Path) -> Iterator[Path]:
    """A file in the run directory, or the nearest folder above it that exists, to be looked for from elsewhere."""
    folder = next(path for path in (run_dir.resolve(), *run_dir.resolve().parents) if path.is_dir())
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".ddp-bp-probe-") as file:
        yield Path(file.name)


def _differences(own: HostReport, report: HostReport, *, allow_mixed: bool) -> list[str]:
    problems = []
    for what, expected in own.software.items():
        got = report.software.get(what, "none")
        if got != expected:
            problems.append(
                f"expected {what} {expected}, as on this host, got {got}; install the same there, at {sys.prefix}"
            )
    if report.library != own.library and not allow_mixed:
        problems.append(
            f"expected the BLAS {own.library}, as on this host, got {report.library}; install the same NumPy there"
        )
    return problems


def _common_kernels(answers: Answers, kernels: Kernels, own: HostReport) -> tuple[str | None, list[str]]:
    """(kernels that all hosts have, if those asked for are not; why there are none)."""
    reports = answers.reports
    if all(report.kernels == own.kernels for report in reports.values()):
        return None, []
    processors = {"this host": _processor(own), **{name: _processor(report) for name, report in reports.items()}}
    able = [name for name in CANDIDATES if not any(item.lacks(name) for item in processors.values())]
    wanted = kernels.asked_for
    if wanted is not None and kernels.may_change and able and able[0].casefold() != wanted.casefold():
        return able[0], []
    advice = f'for example blas.kernels = "{able[0]}"' if able else "or allow it with blas.allow_mixed = true"
    problems = []
    for name, report in reports.items():
        if report.kernels != own.kernels:
            lacking = ", ".join(_processor(report).lacks(wanted or ""))
            problems.append(
                f"{name}: expected {own.kernels} kernels of BLAS ({kernels.why or 'as on this host'}), got "
                f"{report.kernels or 'others'}{f'; its processor lacks {lacking}' if lacking else ''}; "
                f"choose kernels that all hosts have, {advice}"
            )
    return None, problems


def _processor(report: HostReport) -> Processor:
    return Processor(report.processor_model, frozenset(report.processor_flags))


def _report(words: Said) -> HostReport | None:
    """The report in what a host said, after whatever its shell may print first."""
    for line in reversed(words.stdout.splitlines()):
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(line, type=HostReport)
    return None


def _why_silent(words: Said) -> str:
    python = sys.executable
    if words.exit_code is None:
        return f"expected an answer within {DEADLINE_SECONDS:g} s, got none; is it up?"
    if words.exit_code == 255:
        return (
            f"expected ssh to log in without a password, got {words.last_error!r}; is it up, and does "
            "`ssh -o BatchMode=yes` to it work?"
        )
    if words.exit_code in (126, 127):
        return f"expected Python at {python}, as on this host, got {words.last_error!r}; install ddp_bp there as here"
    return (
        f"expected `{python} -m ddp_bp host-check` to work, got exit code {words.exit_code} and "
        f"{words.last_error!r}; install the same ddp_bp there as here"
    )
