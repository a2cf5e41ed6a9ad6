"""What kind of processor this is, and which kernels of OpenBLAS it can execute. Imports no NumPy."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

_AVX512 = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})
_AVX2 = frozenset({"avx2", "fma"})

# Flags in Linux' words. OpenBLAS does not look at them when it is told which kernels to take: without these the
# process dies of an illegal instruction. Kernels that are not listed run on whatever OpenBLAS itself was built for.
_NEEDED_FLAGS = {
    "core2": frozenset({"ssse3"}),
    "atom": frozenset({"ssse3"}),
    "nano": frozenset({"ssse3"}),
    "penryn": frozenset({"sse4_1"}),
    "dunnington": frozenset({"sse4_1"}),
    "nehalem": frozenset({"sse4_2"}),
    "sandybridge": frozenset({"avx"}),
    "haswell": _AVX2,
    "zen": _AVX2,
    "skylakex": _AVX512,
    "cooperlake": _AVX512 | {"avx512_bf16"},
    "sapphirerapids": _AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16"},
    "athlon": frozenset({"3dnow"}),
    "opteron": frozenset({"3dnow"}),
    "opteron_sse3": frozenset({"3dnow"}),
    "barcelona": frozenset({"sse4a"}),
    "bobcat": frozenset({"ssse3", "sse4a"}),
    "bulldozer": frozenset({"avx", "fma4"}),
    "piledriver": frozenset({"avx", "fma4", "fma"}),
    "steamroller": frozenset({"avx", "fma4", "fma"}),
    "excavator": frozenset({"avx2", "fma4", "fma"}),
    "armv8sve": frozenset({"sve"}),
    "a64fx": frozenset({"sve"}),
    "neoversen2": frozenset({"sve"}),
    "neoversev1": frozenset({"sve"}),
}


@dataclass(frozen=True)
class Processor:
    """Model name and feature flags as Linux gives them; without any where it gives none."""

    model: str
    flags: frozenset[str]

    def lacks(self, kernels: str) -> list[str]:
        """The flags that OpenBLAS' kernels of this name need and this processor has not; none if it names no flags."""
        needed = _NEEDED_FLAGS.get(kernels.casefold(), frozenset())
        return sorted(needed - self.flags) if self.flags else []


def this_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """The first processor that Linux lists."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError), cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, colon, value = line.partition(":")
            if fields and not colon:
                # An empty line: the next processor, of which there may be hundreds.
                break
            fields[name.strip()] = value.strip()
    model = fields.get("model name") or " ".join(
        fields[name] for name in ("CPU implementer", "CPU part") if name in fields
    )
    return Processor(model, frozenset((fields.get("flags") or fields.get("Features") or "").split()))
