"""What is made of the answers of other hosts: all problems at once, kernels that all have, what is only warned of."""

from __future__ import annotations

import json

import msgspec
import pytest
from support import ddp_bp, run_to_end

from ddp_bp.cli import host_preflight as subject
from ddp_bp.cli.host_check import HostReport, report_host
from ddp_bp.cli.host_preflight import Answers, ask_hosts, check_answers, clock_warnings
from ddp_bp.cli.hosts import Host
from ddp_bp.cli.kernels import Kernels
from ddp_bp.cli.network import Interface
from ddp_bp.cli.outcome import silent_host
from ddp_bp.cli.placement import Placement
from ddp_bp.errors import HostError
from ddp_bp.worker.blas import Blas

AVX2 = ["avx2", "fma"]
OWN = HostReport(
    hostname="here",
    boot_id="1",
    software={"Python": "3.11.2", "NumPy": "2.4.0"},
    library="OpenBLAS 0.3.31",
    kernels="SkylakeX",
    processor_model="new",
    processor_flags=[*AVX2, "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"],
    num_cores=2,
    unix_seconds=0.0,
)
OLDER = msgspec.structs.replace(OWN, hostname="b", kernels="Haswell", processor_model="old", processor_flags=AVX2)
BLAS = Blas("OpenBLAS", "0.3.31", "SkylakeX", 1)
FOUND = Kernels(BLAS, "SkylakeX", "measured", may_change=True)
NAMED = Kernels(BLAS, "SkylakeX", "blas.kernels")


def like_own(hostname: str, **changes: object) -> HostReport:
    return msgspec.structs.replace(OWN, hostname=hostname, **changes)


def problems_of(answers: Answers, kernels: Kernels = FOUND, *, allow_mixed: bool = False) -> list[str]:
    with pytest.raises(HostError) as caught:
        check_answers(answers, kernels, OWN, allow_mixed=allow_mixed)
    return list(caught.value.problems)


def test_hosts_that_are_alike_pass() -> None:
    check_answers(Answers({"b": like_own("b"), "c": like_own("c")}), FOUND, OWN, allow_mixed=False)


def test_all_problems_of_all_hosts_are_found_at_once() -> None:
    reports = {
        "b": like_own("b", software={"Python": "3.11.2", "NumPy": "2.3.0"}, unreachable={"here:1": "no answer"}),
        "c": like_own("here", library="OpenBLAS 0.3.30", boot_id="2"),
        "e": like_own("here"),
    }
    expected = (
        "d: expected an answer",
        "b: expected to reach the coordinator, which will be here at here:1, got 'no answer'; open the ports",
        "b: expected NumPy 2.4.0, as on this host, got 2.3.0; install the same there, at ",
        "c: expected the BLAS OpenBLAS 0.3.31, as on this host, got OpenBLAS 0.3.30; install the same NumPy there",
        "c: expected a host name of its own, got 'here', as this host has: MPI would take both for one host",
    )
    found = problems_of(Answers(reports, {"d": "expected an answer"}))
    assert len(found) == len(expected)
    assert all(line.startswith(begin) for line, begin in zip(found, expected, strict=True)), found


def test_where_nobody_named_kernels_those_that_all_hosts_have_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str]] = []
    monkeypatch.setattr(subject, "restart_with_kernels", lambda *choice: taken.append(choice))
    check_answers(Answers({"b": OLDER}), FOUND, OWN, allow_mixed=False)
    assert taken == [("Haswell", "what all hosts have")]
    check_answers(Answers({"b": OLDER}), FOUND, OWN, allow_mixed=True)
    assert len(taken) == 1


def test_kernels_that_were_named_and_cannot_be_had_are_a_problem() -> None:
    assert problems_of(Answers({"b": OLDER}), NAMED) == [
        "b: expected SkylakeX kernels of BLAS (blas.kernels), got Haswell; its processor lacks avx512bw, avx512cd, "
        'avx512dq, avx512f, avx512vl; choose kernels that all hosts have, for example blas.kernels = "Haswell"'
    ]


def test_kernels_that_no_choice_makes_equal_are_a_problem_and_no_endless_search() -> None:
    # It could execute them, but its OpenBLAS has none of that name.
    (problem,) = problems_of(Answers({"b": like_own("b", kernels="Zen")}))
    assert problem.startswith("b: expected SkylakeX kernels of BLAS (measured), got Zen; choose kernels")


def test_clocks_that_differ_are_warned_of() -> None:
    first, second = clock_warnings(Answers(clocks={"b": 61.0, "c": 0.5, "d": -7.0}))
    assert first.startswith("the clock of b is 61 s ahead of this host's")
    assert second.startswith("the clock of d is 7 s behind this host's")


def test_ranks_yield_where_a_host_has_more_of_them_than_cores() -> None:
    placement = Placement(3, (Host("b", 3),), (Host("b", 3),), "--hosts", ("b",))
    assert Answers({"b": OWN}).yields(placement)
    assert not Answers({"b": like_own("b", num_cores=3)}).yields(placement)


def test_a_host_says_what_is_on_it() -> None:
    here, nobody = Interface("lo", "127.0.0.1", "127.0.0.0/8"), "127.0.0.1:1"
    options = ["--towards", "127.0.0.1", "--connect", nobody, "--path", "/nowhere", "--path", "/"]
    result = run_to_end(ddp_bp("host-check", *options), 30)
    report = msgspec.json.decode(result.stdout, type=HostReport)
    assert report.software == report_host().software
    assert (report.interface, report.missing) == (here, ["/nowhere"])
    assert report.unreachable == {nobody: "Connection refused"}
    assert "host-check" not in run_to_end(ddp_bp("--help"), 30).stdout


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 255", "expected ssh to log in without a password, got 'nothing'; is it up"),
        ("echo sh: no such file >&2; exit 127", "expected Python at "),
        ("echo 'No such command' >&2; exit 2", "host-check` to work, got exit code 2 and 'No such command'"),
        ("echo hello", "host-check` to work, got exit code 0 and 'nothing'; install the same ddp_bp"),
    ],
)
def test_a_host_that_gives_no_answer_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path, script: str, said: str
) -> None:
    shell = tmp_path / "ssh"
    shell.write_text(f"#!/bin/sh\necho Welcome\n{script}\n")
    shell.chmod(0o755)
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", str(shell))
    placement = Placement(1, (Host("b"),), (Host("b"),), "--hosts", ("b",))
    answers = ask_hosts(placement, ("127.0.0.1", 0), None)
    assert answers.reports == {} and said in answers.silent["b"]


def test_an_answer_is_found_after_what_a_shell_prints(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    shell = tmp_path / "rsh"
    report = json.dumps(msgspec.to_builtins(like_own("b")))
    shell.write_text(f"#!/bin/sh\necho Welcome\ncat <<'END'\n{report}\nEND\n")
    shell.chmod(0o755)
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", str(shell))
    placement = Placement(1, (Host("b"),), (Host("b"),), "--hosts", ("b",))
    answers = ask_hosts(placement, ("127.0.0.1", 0), "SkylakeX")
    assert answers.reports["b"].hostname == "b" and answers.clocks["b"] < -5


def test_a_coordinator_that_will_be_elsewhere_is_not_tried_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    shell, words = tmp_path / "rsh", tmp_path / "words"
    report = json.dumps(msgspec.to_builtins(like_own("b")))
    shell.write_text(f"#!/bin/sh\necho \"$@\" >{words}\ncat <<'END'\n{report}\nEND\n")
    shell.chmod(0o755)
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", str(shell))
    placement = Placement(1, (Host("b"),), (Host("b"),), "--hosts", ("b",))
    answers = ask_hosts(placement, ("192.0.2.1", 9465), None, listens_here=False)
    assert answers.unfit == {} and answers.reports["b"].hostname == "b"
    assert "--connect" not in words.read_text() and "--towards 192.0.2.1" in words.read_text()


def status_row(rank: int, host: str, seconds: float | None = None, doing: str = "waiting") -> dict:
    suspected = None if seconds is None else "silent"
    return {"rank": rank, "hostname": host, "suspected": suspected, "suspected_seconds": seconds, "doing": doing}


def test_a_host_none_of_whose_ranks_is_heard_of_is_named_when_all_others_wait() -> None:
    gone = [status_row(0, "a"), status_row(2, "c", 15.5), status_row(3, "c", 16.0)]
    assert silent_host({"ranks": gone}, 30.0) == "nothing was heard of rank 2, 3 on c for 15 s"
    assert silent_host({"ranks": gone}, 31.5) is None, "not for long enough"
    assert silent_host({"ranks": gone}, 0.0) is None, "never"
    assert silent_host({"ranks": [*gone, status_row(1, "b", doing="forward")]}, 30.0) is None, "somebody has work"
    assert silent_host({"ranks": [*gone, status_row(4, "c")]}, 30.0) is None, "not the whole host"
    assert silent_host({"ranks": [*gone, status_row(4, "a", doing="spare")]}, 30.0) is not None, "a spare has no work"
    spare = status_row(4, "c", 17.0, doing="spare")
    assert silent_host({"ranks": [*gone, spare]}, 30.0) == "nothing was heard of rank 2, 3, 4 on c for 15 s"
    assert silent_host({"ranks": [gone[0], spare]}, 30.0) is None, "nobody waits for spares"
    assert silent_host({"ranks": gone[:1]}, 30.0) is None and silent_host(None, 30.0) is None
