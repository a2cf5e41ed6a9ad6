"""Hosts and slots, read from wherever they are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_bp.cli.hosts import (
    Host,
    expand_counts,
    expand_node_list,
    open_mpi_hostfile,
    parse_hosts,
    read_hostfile,
    used_by,
)
from ddp_bp.errors import InputError

HOSTFILE = """
# two racks
a slots=4      # the first
b slots = 2 max_slots=8

c:3
a
[fe80::1]:2
"""


def test_hosts_of_a_command_line_are_summed_by_name() -> None:
    assert parse_hosts("a:4, b,a:1,[fe80::1]:2") == (Host("a", 5), Host("b", 1), Host("fe80::1", 2))


@pytest.mark.parametrize("text", ["", "a:0", "a:x", "a,,b", "-oProxyCommand=x", "a b"])
def test_what_names_no_host_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--hosts: expected a host's name or address, then ':N'"):
        parse_hosts(text)


def test_hostfiles_of_both_kinds_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(HOSTFILE)
    hosts = read_hostfile(tmp_path / "hosts", "--hostfile")
    assert hosts == (Host("a", 5), Host("b", 2), Host("c", 3), Host("fe80::1", 2))
    (tmp_path / "again").write_text(open_mpi_hostfile(hosts[:3]))
    assert read_hostfile(tmp_path / "again", "--hostfile") == hosts[:3]


def test_every_line_of_a_hostfile_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=0\nb slots=2\nc slots=many\n;\n")
    with pytest.raises(InputError) as caught:
        read_hostfile(tmp_path / "hosts", "--hostfile")
    assert [line.split(", ")[1].split(":")[0] for line in str(caught.value).splitlines()] == [
        "line 1",
        "line 3",
        "line 4",
    ]
    (tmp_path / "hosts").write_text("# nobody\n")
    with pytest.raises(InputError, match="names no host"):
        read_hostfile(tmp_path / "hosts", "--hostfile")
    with pytest.raises(InputError, match="cannot be read"):
        read_hostfile(tmp_path / "none", "--hostfile")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("d1", ["d1"]),
        ("n[01-03,7],login", ["n01", "n02", "n03", "n7", "login"]),
        ("r[1-2]n[9-10]-ib", ["r1n9-ib", "r1n10-ib", "r2n9-ib", "r2n10-ib"]),
    ],
)
def test_node_lists_of_slurm(text: str, names: list[str]) -> None:
    assert expand_node_list(text) == names


def test_counts_of_slurm() -> None:
    assert expand_counts("2(x3),1,4") == [2, 2, 2, 1, 4]


def test_a_host_is_filled_before_the_next_one() -> None:
    hosts = (Host("a", 2), Host("b", 3), Host("c", 1))
    assert used_by(hosts, 4) == (Host("a", 2), Host("b", 2))
    assert used_by(hosts, 6) == hosts
