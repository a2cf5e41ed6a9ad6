"""Arrays outside of the heap: as any others while they are used, and then gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddp_bp.parallel.apart import allocate_apart


def mapping_of(address: int) -> str | None:
    """The line of this process's memory map in which an address lies."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line
    return None


@pytest.mark.parametrize(("shape", "dtype"), [(5, "float32"), ((3, 2), "bool"), ((2, 0), "float64"), (0, "uint16")])
def test_they_are_zero_and_can_be_written(shape: int | tuple[int, ...], dtype: str) -> None:
    array = allocate_apart(shape, dtype)
    np.testing.assert_array_equal(array, np.zeros(shape, dtype), strict=True)
    array[...] = 1
    assert array.all()


def test_their_memory_is_not_of_the_heap_and_goes_with_the_last_view_of_it() -> None:
    array = allocate_apart(10_000_000, "uint8")
    address, view = array.ctypes.data, array[5:6]
    line = mapping_of(address)
    assert line is not None and not line.endswith("[heap]")
    del array
    assert mapping_of(address) is not None and view[0] == 0
    del view
    assert mapping_of(address) is None
