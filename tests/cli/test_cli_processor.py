"""Processors as Linux describes them, and what they can execute."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from ddp_bp.cli.processor import Processor, this_processor
from ddp_bp.recipes.blas import Kernels

ZEN5 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9B45
flags\t\t: fpu sse sse2 ssse3 sse4_1 sse4_2 avx avx2 fma avx512f avx512cd avx512bw avx512dq avx512vl avx512_bf16

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
BROADWELL = "model name : Intel(R) Xeon(R) CPU E5-2680 v4\nflags : sse sse2 ssse3 sse4_1 sse4_2 avx avx2 fma\n"
GRAVITON = "processor : 0\nFeatures : fp asimd sve\nCPU implementer : 0x41\nCPU part : 0xd40\n"


def processor(folder: Path, text: str) -> Processor:
    (folder / "cpuinfo").write_text(text)
    return this_processor(folder / "cpuinfo")


@pytest.mark.parametrize(
    ("text", "model", "can", "cannot"),
    [
        (ZEN5, "AMD EPYC 9B45", ["SkylakeX", "Cooperlake", "Haswell", "Zen", "Prescott"], ["SapphireRapids", "Athlon"]),
        (BROADWELL, "Intel(R) Xeon(R) CPU E5-2680 v4", ["Haswell", "haswell", "Nehalem"], ["SkylakeX", "Bulldozer"]),
        (GRAVITON, "0x41 0xd40", ["NEOVERSEV1", "ARMV8"], ["Haswell"]),
    ],
)
def test_a_processor_executes_kernels_whose_flags_it_has(
    tmp_path: Path, text: str, model: str, can: list[str], cannot: list[str]
) -> None:
    found = processor(tmp_path, text)
    assert found.model == model
    assert [name for name in [*can, *cannot] if not found.lacks(name)] == can


def test_what_is_lacking_is_named(tmp_path: Path) -> None:
    assert processor(tmp_path, "flags : avx2\n").lacks("Haswell") == ["fma"]


@pytest.mark.parametrize("text", ["", "no colon\n", "processor : 0\n"])
def test_of_an_unknown_processor_nothing_is_said_to_be_lacking(tmp_path: Path, text: str) -> None:
    assert processor(tmp_path, text).lacks("SkylakeX") == []
    assert this_processor(tmp_path / "nowhere") == Processor("", frozenset())


def test_every_kernel_family_beyond_sse3_says_what_it_needs() -> None:
    bare = Processor("bare", frozenset({"fpu"}))
    harmless = {name for name in typing.get_args(Kernels) if not bare.lacks(name)}
    arm = {name for name in harmless if name.isupper()}
    assert harmless - arm == {"auto", "Katmai", "Coppermine", "Northwood", "Prescott", "Banias"}
