"""Which kernels of OpenBLAS are the fastest on this machine: measured once, and remembered in the user's cache folder.

OpenBLAS chooses by a list of processors, and takes slower kernels on those that are newer than itself. This module
starts processes that measure; it must not know recipes, ranks or checkpoints.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ddp_bp.cli.environment import child_environment
from ddp_bp.cli.processor import Processor
from ddp_bp.worker.kernel_speed import KernelSpeed

OWN_CHOICE = "OpenBLAS' own choice"
# The families for processors of the last ten years; older ones are recognised by every OpenBLAS that NumPy comes with.
CANDIDATES = ("SkylakeX", "Haswell", "Zen")
# What another family must gain over OpenBLAS' own choice, so that noise changes nothing.
LEAST_GAIN = 1.05
MEASUREMENT_SECONDS = 30.0

Measure = Callable[[str | None], KernelSpeed | None]


class Choice(msgspec.Struct, frozen=True):
    """A value for OPENBLAS_CORETYPE, and the reason in a few words."""

    kernels: str
    why: str


def measure_kernels(kernels: str | None) -> KernelSpeed | None:
    """The speed of these kernels (None: of OpenBLAS' own choice) in a process of its own; None if that failed."""
    more = {} if kernels is None else {"OPENBLAS_CORETYPE": kernels}
    command = [sys.executable, "-m", "ddp_bp.worker.kernel_speed"]
    try:
        ended = subprocess.run(
            command,
            env=child_environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MEASUREMENT_SECONDS,
            check=True,
        )
        return msgspec.json.decode(ended.stdout, type=KernelSpeed)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError):
        return None


def fastest_kernels(own: str, processor: Processor, measure: Measure = measure_kernels) -> Choice:
    """The fastest kernels for this processor; `own`, OpenBLAS' choice, unless others are clearly faster, twice."""
    others = [name for name in CANDIDATES if name.casefold() != own.casefold() and not processor.lacks(name)]
    base = measure(None) if others and processor.flags else None
    if base is None:
        return Choice(own, OWN_CHOICE)
    speeds: dict[str, float] = {}
    families = {base.kernels}
    for name in others:
        speed = measure(name)
        # Where this build has no kernels of that name OpenBLAS takes others, which are measured under their own name.
        if speed is not None and speed.kernels not in families:
            families.add(speed.kernels)
            speeds[name] = speed.gflops_per_second
    if not speeds:
        return Choice(own, OWN_CHOICE)
    best = max(speeds, key=lambda name: speeds[name])
    gain = speeds[best] / base.gflops_per_second
    if gain >= LEAST_GAIN:
        again = measure(None), measure(best)
        if again[0] and again[1] and again[1].gflops_per_second >= LEAST_GAIN * again[0].gflops_per_second:
            return Choice(best, f"measured: {gain:.1f} times {own}'s")
    return Choice(own, f"{OWN_CHOICE}; measured: {1 / gain:.1f} times {best}'s")


def remembered(cache: Path | None, key: object, decide: Callable[[], Choice], *, alone: bool) -> Choice | None:
    """The choice in `cache` for this `key`, or that of `decide`, which is then kept there for other processes.

    Args:
        cache: a folder that need not exist. Only one process at a time decides; the others wait for its choice.
        key: what the choice depends on; its `repr` counts.
        alone: whether to decide even if nothing can be kept. Ranks that each measured for themselves might differ:
            these get None.
    """
    try:
        if cache is None:
            raise FileNotFoundError("no cache folder")
        with _locked(cache):
            file = cache / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                return msgspec.json.decode(file.read_bytes(), type=Choice)
            # Opened before it is decided, so that a folder that cannot be written to is noticed first.
            with file.open("wb") as writing:
                choice = decide()
                writing.write(msgspec.json.encode(choice))
            return choice
    except OSError:
        return decide() if alone else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While inside, no other process is, on this machine at least. Raises OSError where that cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
