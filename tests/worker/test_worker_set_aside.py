"""What recoveries leave with a process finds room that was set aside, and takes none from the arrays of later steps."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np
from ddp_bp.cli.heap import settle_memory
from ddp_bp.worker.set_aside import SetAside

def step():
    return [np.ones(512 * 1024, np.uint8) for _ in range(40)]

def resident_kilobytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

num_recoveries = 12
assert settle_memory()
aside = SetAside(int(sys.argv[1]))
# A room for arrays of a step between what stays, as there is once the first step has been taken.
room = np.ones(1024 * 1024 + 4096, np.uint8)
stays = np.ones(100, np.uint8)
del room
left = []
for number in range(num_recoveries + 1):
    step()
    if not number:
        before = resident_kilobytes()
    else:
        aside.give()
        left += [np.ones(1200, np.uint8) for _ in range(30)]
step()
print(resident_kilobytes() - before)
"""


def growth_kilobytes(num_recoveries: int) -> int:
    command = [sys.executable, "-c", PROGRAM, str(num_recoveries)]
    environment = {"PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    return int(result.stdout)


def test_what_stays_takes_no_room_from_large_arrays() -> None:
    # 12 times 36 KB.
    assert growth_kilobytes(0) > 350
    assert growth_kilobytes(12) < 50


def test_there_is_nothing_to_give_after_the_last() -> None:
    assert growth_kilobytes(1) > 300


def test_large_rooms_between_what_stays_are_taken_but_not_touched() -> None:
    program = """
import re
from pathlib import Path
import numpy as np
from ddp_bp.cli.heap import keep_freed_memory
from ddp_bp.worker.set_aside import LARGE_BYTES, SetAside

def resident_kilobytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

keep_freed_memory()
room = np.empty(3 * LARGE_BYTES + 65536, np.uint8)
start, end = room.ctypes.data, room.ctypes.data + room.size
stays = [np.ones(1, np.uint8) for _ in range(100_000)]
del room
before = resident_kilobytes()
aside = SetAside(0)
print(resident_kilobytes() - before)
print(any(start <= room.ctypes.data < end for room in [np.empty(LARGE_BYTES, np.uint8) for _ in range(8)]))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    kilobytes, is_free = result.stdout.split()
    assert int(kilobytes) < 200 and is_free == "False"
