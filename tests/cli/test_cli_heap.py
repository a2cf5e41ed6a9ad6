"""Memory that a rank frees stays with it: large arrays come and go without page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ddp_bp.cli.environment import names_allocation

PROGRAM = """
import resource, sys
import numpy as np
from ddp_bp.cli.heap import keep_freed_memory

def fill():
    for size in (3_000_000, 9_000_000, 1_000_000):
        np.ones(size)

if sys.argv[1] == "keep":
    assert keep_freed_memory()
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_faults(argument: str) -> int:
    command = [sys.executable, "-c", PROGRAM, argument]
    environment = {"PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    return int(result.stdout)


def test_large_arrays_come_and_go_without_page_faults() -> None:
    assert num_faults("keep") < 100


def test_until_then_what_is_freed_leaves_no_room() -> None:
    program = """
import re
from pathlib import Path
import numpy as np
from ddp_bp.cli.heap import give_back_large_arrays

def heap_kilobytes():
    return int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

assert give_back_large_arrays()
before = heap_kilobytes()
np.ones(9_000_000, np.uint8)
for size in (6_000_000, 3_000_000, 1_000_000):
    arrays = [np.ones(size, np.uint8) for _ in range(4)]
    stays = np.ones(100, np.uint8)
    del arrays
print(heap_kilobytes() - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert int(result.stdout) < 500


def test_what_stays_is_not_looked_at_again() -> None:
    program = """
import gc
from ddp_bp.cli.heap import settle_memory
import numpy
assert len(gc.get_objects()) > 1000
settle_memory()
print(len(gc.get_objects()))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert int(result.stdout) < 100


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, False),
        ({"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.cpu.x86_shstk=off"}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "0"}, True),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_shstk=off:glibc.malloc.top_pad=0"}, True),
    ],
)
def test_what_somebody_has_set_is_left_alone(environment: dict[str, str], names: bool) -> None:
    assert names_allocation(environment) is names
