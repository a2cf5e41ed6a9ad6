from __future__ import annotations

from pathlib import Path

import pytest
from coordinator_fakes import make_config

from ddp_bp.coordinator.address import ADDRESS_FILE, CoordinatorAddress, read_address, remove_address, write_address
from ddp_bp.errors import AddressError, InputError

_HERE = CoordinatorAddress(7, "127.0.0.1", 1, 2, "r1", "tcp://127.0.0.1:1", "http://127.0.0.1:2/")


def test_an_address_is_read_as_written_and_removed_by_its_owner_only(tmp_path: Path) -> None:
    write_address(tmp_path, _HERE)
    assert read_address(tmp_path) == _HERE
    remove_address(tmp_path, pid=8)
    assert read_address(tmp_path) == _HERE
    remove_address(tmp_path, pid=7)
    remove_address(tmp_path, pid=7)
    with pytest.raises(AddressError, match=r"no job is running in .*coordinator\.json"):
        read_address(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"pid": "x"}'])
def test_a_broken_address_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ADDRESS_FILE).write_bytes(content)
    with pytest.raises(AddressError, match=r"coordinator\.json cannot be read"):
        read_address(tmp_path)


def test_every_bad_setting_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        make_config(
            tmp_path / "missing",
            run_id="",
            world_size=0,
            total_steps=-1,
            port=70000,
            http_port=-1,
            keep=0,
            checkpoint_every_steps=-1,
            checkpoint_every_seconds=0.0,
            worker_timeout_seconds=float("nan"),
        )
    assert len(str(caught.value).splitlines()) == 11
    assert "HTTP port: expected 0 (any free one) to 65535, got -1" in str(caught.value)
