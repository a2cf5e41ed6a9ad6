"""Where the coordinator of a run can be reached: the file `coordinator.json` in the run directory.

It is there while a coordinator runs and readable by its owner only. Knows nothing of what is said at that address.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from ddp_bp.coordinator.files import write_atomically
from ddp_bp.errors import AddressError

ADDRESS_FILE: Final = "coordinator.json"


class CoordinatorAddress(msgspec.Struct, frozen=True):
    """A running coordinator. `address` is where workers and tools connect, `url` where a browser does."""

    pid: int
    host: str
    port: int
    http_port: int
    run_id: str
    address: str
    url: str


def write_address(run_dir: Path, address: CoordinatorAddress) -> None:
    """Says in the run directory where the coordinator is. Raises OSError."""
    content = msgspec.json.format(msgspec.json.encode(address), indent=2) + b"\n"
    write_atomically(run_dir / ADDRESS_FILE, content, mode=0o600)


def read_address(run_dir: Path) -> CoordinatorAddress:
    """Where the coordinator of a run is. Raises AddressError where none is running, or its file cannot be read."""
    path = run_dir / ADDRESS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=CoordinatorAddress)
    except FileNotFoundError:
        raise AddressError(
            f"no job is running in {run_dir}: expected its coordinator's address in {path}, found no such file"
        ) from None
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise AddressError(f"{path} cannot be read: {error}; is {run_dir} a run directory of yours?") from error


def remove_address(run_dir: Path, pid: int) -> None:
    """Takes the address away, if it is that of process `pid`."""
    try:
        if read_address(run_dir).pid == pid:
            (run_dir / ADDRESS_FILE).unlink()
    except (AddressError, OSError):
        # Gone already, or somebody else's by now.
        return
