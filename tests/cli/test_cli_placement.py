"""Where ranks run, by whom that is said, and what mpirun is told of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ddp_bp.cli import placement as subject
from ddp_bp.cli.hosts import Host
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.network import Interface, interface_of, is_this_host, source_address
from ddp_bp.cli.placement import Placement, find_placement, launcher_options
from ddp_bp.errors import InputError
from ddp_bp.recipes.schema import Recipe

OPEN_MPI, OPEN_MPI_4, MPICH = (Launcher("mpirun", library) for library in ("Open MPI 5.0.7", "Open MPI 4.1", "HYDRA 4"))
ETH = Interface("eth0", "10.1.0.5", "10.1.0.0/16")


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host is `here`, and reaches all others but `nowhere`. Nothing in the environment names hosts."""
    monkeypatch.setattr(subject, "is_this_host", lambda name: name == "here")
    monkeypatch.setattr(subject, "source_address", lambda name: None if name == "nowhere" else ETH.address)
    for name in (
        "SLURM_JOB_NODELIST",
        "SLURM_NODELIST",
        "PRTE_MCA_prte_default_hostfile",
        "OMPI_MCA_orte_default_hostfile",
    ):
        monkeypatch.delenv(name, raising=False)


def test_without_hosts_everything_runs_here() -> None:
    assert find_placement(None, None, None, MPICH) == Placement(1)
    assert find_placement(None, None, 3, MPICH) == Placement(3)
    assert launcher_options(OPEN_MPI, Placement(3), Path("hostfile")) == []


def test_this_host_comes_first_and_ranks_fill_the_slots() -> None:
    placed = find_placement("a:2,here:1,b:2", None, None, OPEN_MPI)
    assert (placed.num_ranks, placed.hosts) == (5, (Host("here", 1), Host("a", 2), Host("b", 2)))
    assert placed.spans_hosts and placed.remote == ("a", "b")
    fewer = find_placement("a:2,here:1,b:2", None, 2, OPEN_MPI)
    assert fewer.hosts == (Host("here", 1), Host("a", 1)) and fewer.offered == placed.hosts
    assert not find_placement("a:2,here:1", None, 1, OPEN_MPI).spans_hosts


def test_ranks_move_to_the_hosts_that_are_left() -> None:
    placed = find_placement("here:1,a:2,b:2", None, 3, OPEN_MPI)
    assert placed.without(["a"]).hosts == (Host("here", 1), Host("b", 2))
    left = placed.without(["a", "b"])
    assert (left.num_ranks, left.spans_hosts) == (1, False)


def test_the_coordinator_listens_where_the_other_hosts_reach_it() -> None:
    placed = find_placement("here,a", None, None, OPEN_MPI)
    assert placed.with_coordinator_host(Recipe(), ("x=1",)) == ("x=1", f"coordinator.host={ETH.address}")
    assert find_placement("here:2", None, None, OPEN_MPI).with_coordinator_host(Recipe(), ()) == ()


@pytest.mark.parametrize(
    ("hosts", "hostfile", "num_workers", "launcher", "said"),
    [
        ("a", Path("hosts"), None, OPEN_MPI, "give one of them"),
        ("a:2,b:1", None, 4, OPEN_MPI, "-n 4: expected at most 3 ranks, the sum of the slots that --hosts gives"),
        ("a,nowhere", None, None, OPEN_MPI, "--hosts: nowhere: expected names or addresses that this host knows"),
        (
            "a,b",
            None,
            None,
            MPICH,
            "expected Open MPI's mpirun, which `train` starts on several hosts; got mpirun of HYDRA",
        ),
    ],
)
def test_what_cannot_be_placed_is_refused(
    hosts: str, hostfile: Path | None, num_workers: int | None, launcher: Launcher, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        find_placement(hosts, hostfile, num_workers, launcher)
    assert said in str(caught.value)


@pytest.mark.parametrize("variable", ["PRTE_MCA_prte_default_hostfile", "OMPI_MCA_orte_default_hostfile"])
def test_the_hostfile_of_the_environment_counts_where_nobody_names_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "hosts").write_text("job-worker-0.job slots=2\njob-worker-1.job slots=1\n")
    monkeypatch.setenv(variable, str(tmp_path / "hosts"))
    placed = find_placement(None, None, None, OPEN_MPI)
    assert (placed.num_ranks, placed.source) == (3, variable)
    assert "--hostfile" in launcher_options(OPEN_MPI, placed, Path("hostfile"))
    assert find_placement("a:1", None, None, OPEN_MPI).num_ranks == 1


def test_an_allocation_of_slurm_is_left_to_mpirun_until_a_node_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2],here")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "2(x2),1")
    placed = find_placement(None, None, None, MPICH)
    assert placed.hosts == (Host("n1", 2), Host("n2", 2), Host("here", 1))
    assert "--hostfile" not in launcher_options(OPEN_MPI, placed, Path("hostfile"))
    assert "--hostfile" in launcher_options(OPEN_MPI, placed.without(["n1"]), Path("hostfile"))


def test_nodes_of_slurm_need_not_be_names_of_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "nowhere")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "2")
    placed = find_placement(None, None, None, OPEN_MPI)
    assert (placed.num_ranks, placed.spans_hosts) == (2, True)
    assert placed.with_coordinator_host(Recipe(), ()) == (f"coordinator.host={ETH.address}",), "that of its own name"


def test_mpirun_is_told_hosts_network_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "OPENBLAS_L2_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", "/code")
    placed = find_placement("here,a", None, None, OPEN_MPI)
    start, end = ["--map-by", "slot", "--hostfile", "hostfile"], ["-x", "PYTHONPATH"]
    other_name, other_network = Interface("ib0", "10.1.0.6", ETH.network), Interface("eth0", "10.2.0.6", "10.2.0.0/16")
    for interfaces, network in (
        ([ETH, other_name], ["--mca", "btl_tcp_if_include", ETH.network, "--prtemca", "prte_if_include", ETH.network]),
        ([ETH, other_network], ["--mca", "btl_tcp_if_include", "eth0", "--prtemca", "prte_if_include", "eth0"]),
        ([other_name, other_network], []),
        ([Interface("lo", "127.0.0.1", "127.0.0.0/8")], []),
        ([], []),
    ):
        assert launcher_options(OPEN_MPI, placed, Path("hostfile"), interfaces) == [*start, *network, *end]
    old = launcher_options(OPEN_MPI_4, placed, Path("hostfile"), [ETH])
    assert old[4:-2] == ["--mca", "btl_tcp_if_include", ETH.network, "--mca", "oob_tcp_if_include", ETH.network]
    assert launcher_options(OPEN_MPI, placed, Path("hostfile"), yields=True)[4:7] == [
        "--mca",
        "mpi_yield_when_idle",
        "true",
    ]
    monkeypatch.setenv("OMPI_MCA_btl_tcp_if_include", "ib0")
    assert launcher_options(OPEN_MPI, placed, Path("hostfile"), [ETH]) == [*start, *end]


def test_addresses_of_this_machine() -> None:
    assert is_this_host(socket.gethostname()) and is_this_host("127.0.0.1") and not is_this_host("192.0.2.77")
    assert source_address("127.0.0.1") == "127.0.0.1" and source_address("no.such.host.invalid") is None
    assert interface_of("127.0.0.1") == Interface("lo", "127.0.0.1", "127.0.0.0/8")
    assert interface_of("192.0.2.77") is None


def test_when_only_this_host_is_left_mpirun_does_not_go_back_to_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("here slots=2\na slots=2\n")
    monkeypatch.setenv("PRTE_MCA_prte_default_hostfile", str(tmp_path / "hosts"))
    placed = find_placement(None, None, None, OPEN_MPI).without(["a"])
    assert launcher_options(OPEN_MPI, placed, Path("hostfile")) == ["--host", "here:2"]
    named = find_placement("here:2,a:2", None, None, OPEN_MPI).without(["a"])
    assert launcher_options(OPEN_MPI, named, Path("hostfile")) == [], "mpirun knows of no other"
