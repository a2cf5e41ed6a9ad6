"""`python -m ddp_bp.worker.kernel_speed`: how fast NumPy multiplies float32 matrices in this process, as JSON.

A process of its own, because a BLAS chooses its kernels when it is loaded. It takes about 0.2 s.
"""

from __future__ import annotations

import math
import statistics
import time

import msgspec
import numpy as np

from ddp_bp.worker.blas import blas_in_use

# (rows, inner, columns): the forward product of a layer, a square, and the gradient of the first one's weight.
SHAPES = ((128, 784, 512), (512, 512, 512), (784, 128, 512))
SECONDS_PER_SHAPE = 0.06
_LEAST_REPEATS = 5


class KernelSpeed(msgspec.Struct, frozen=True):
    """Kernel family in OpenBLAS' words, and its speed: the geometric mean over shapes of the median, in GFLOP/s."""

    kernels: str
    gflops_per_second: float


def measure() -> KernelSpeed:
    """Multiply for a while. One thread, if the environment of the process says so."""
    rates = [_rate(*shape) for shape in SHAPES]
    return KernelSpeed(blas_in_use().kernels, math.exp(statistics.fmean(map(math.log, rates))))


def _rate(rows: int, inner: int, columns: int) -> float:
    """GFLOP/s of one shape: of the median product, after one that does not count."""
    left, right = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    product = np.empty((rows, columns), np.float32)
    np.matmul(left, right, out=product)
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < _LEAST_REPEATS or time.perf_counter() - began < SECONDS_PER_SHAPE:
        start = time.perf_counter()
        np.matmul(left, right, out=product)
        seconds.append(time.perf_counter() - start)
    return 2e-9 * rows * inner * columns / statistics.median(seconds)


if __name__ == "__main__":
    print(msgspec.json.encode(measure()).decode())
