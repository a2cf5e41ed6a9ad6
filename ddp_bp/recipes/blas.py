"""The `[blas]` section of a recipe: which kernels multiply matrices. Must not know what this machine has."""

from __future__ import annotations

from typing import Literal

from ddp_bp.recipes.section import Section

# The names that OpenBLAS gives to the processors it has kernels for, and that OPENBLAS_CORETYPE takes: x86, then ARM.
Kernels = Literal[
    "auto",
    "Katmai",
    "Coppermine",
    "Northwood",
    "Prescott",
    "Banias",
    "Atom",
    "Core2",
    "Penryn",
    "Dunnington",
    "Nehalem",
    "Sandybridge",
    "Haswell",
    "SkylakeX",
    "Cooperlake",
    "SapphireRapids",
    "Athlon",
    "Opteron",
    "Opteron_SSE3",
    "Barcelona",
    "Bobcat",
    "Bulldozer",
    "Piledriver",
    "Steamroller",
    "Excavator",
    "Zen",
    "Nano",
    "ARMV8",
    "ARMV8SVE",
    "A64FX",
    "CORTEXA53",
    "CORTEXA55",
    "CORTEXA57",
    "CORTEXA72",
    "CORTEXA73",
    "CORTEXA76",
    "EMAG8180",
    "FALKOR",
    "NEOVERSEN1",
    "NEOVERSEN2",
    "NEOVERSEV1",
    "THUNDERX",
    "THUNDERX2T99",
    "THUNDERX3T110",
    "TSV110",
]


class BlasSection(Section, frozen=True, kw_only=True):
    """`[blas]`: the kernels of OpenBLAS, on which the last bits of every product depend.

    kernels: `auto` takes those of the checkpoint that a run goes on from, else the fastest where it is started.
    allow_mixed: let ranks train together whose kernels differ. The weights then depend on which rank computes what.
    """

    kernels: Kernels = "auto"
    allow_mixed: bool = False
