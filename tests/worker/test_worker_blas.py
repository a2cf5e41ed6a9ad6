"""Which BLAS is loaded, and ranks that have different ones."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ddp_bp.errors import DisagreementError
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.recipes import load_recipe
from ddp_bp.recipes.schema import resolve
from ddp_bp.worker import assemble, blas
from ddp_bp.worker.blas import Blas, blas_in_use, check_same_blas, gather_blas, recorded_kernels

HASWELL, SKYLAKE = "OpenBLAS 0.3.31 Haswell", "OpenBLAS 0.3.31 SkylakeX"


def library(**fields: object) -> dict[str, object]:
    return {
        "user_api": "blas",
        "internal_api": "openblas",
        "filepath": "/lib/x.so",
        "version": "1",
        "num_threads": 1,
        "architecture": "Zen",
    } | fields


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        ([], Blas("unknown", "", "", 1)),
        ([{"user_api": "openmp", "internal_api": "openmp"}], Blas("unknown", "", "", 1)),
        ([library()], Blas("OpenBLAS", "1", "Zen", 1)),
        ([library(version=None, num_threads=3)], Blas("OpenBLAS", "", "Zen", 3)),
        (
            [library(filepath="/scipy.libs/a.so", version="2"), library(filepath="/numpy.libs/a.so")],
            Blas("OpenBLAS", "1", "Zen", 1),
        ),
        ([library(), library(internal_api="mkl")], Blas("OpenBLAS", "1", "Zen", 1)),
        ([{k: v for k, v in library(internal_api="mkl").items() if k != "architecture"}], Blas("MKL", "1", "", 1)),
    ],
)
def test_the_blas_of_numpy_is_found_among_what_is_loaded(
    monkeypatch: pytest.MonkeyPatch, loaded: list[dict], expected: Blas
) -> None:
    monkeypatch.setattr(blas.threadpoolctl, "threadpool_info", lambda: loaded)
    assert blas_in_use() == expected


def test_what_a_manifest_records_names_the_kernels() -> None:
    assert recorded_kernels(str(Blas("OpenBLAS", "0.3.31", "Zen", 1))) == "Zen"
    for other in (Blas("OpenBLAS", "0.3.31", "", 1), Blas("BLIS", "1", "zen", 1), Blas("unknown", "", "", 1)):
        assert recorded_kernels(str(other)) is None
    assert recorded_kernels("") is None


def test_a_process_knows_the_kernels_that_it_was_given(run_python) -> None:
    code = "from ddp_bp.worker.blas import blas_in_use as b; print(b().library, b().kernels, b().num_threads)"
    for kernels in ("Nehalem", "Sandybridge"):
        result = run_python(["-c", code], OPENBLAS_CORETYPE=kernels, OPENBLAS_NUM_THREADS="1")
        assert result.stdout == f"OpenBLAS {kernels} 1\n", result.stderr


def test_ranks_tell_each_other_host_and_kernels() -> None:
    expected = [(socket.gethostname(), str(blas_in_use()))] * 3
    assert run_ranks(3, gather_blas) == [expected] * 3


def test_ranks_with_one_kind_of_kernels_may_train() -> None:
    check_same_blas([("a", HASWELL)])
    check_same_blas([("a", HASWELL), ("b", HASWELL)])


def test_ranks_with_several_kinds_may_not_and_are_named() -> None:
    with pytest.raises(DisagreementError) as raised:
        check_same_blas([("new", SKYLAKE), ("old", HASWELL), ("new", SKYLAKE), ("older", HASWELL)])
    message = str(raised.value)
    assert f"{SKYLAKE} on ranks 0, 2 (new); {HASWELL} on ranks 1, 3 (old, older)" in message
    assert "blas.kernels" in message and "blas.allow_mixed = true" in message
    with pytest.raises(DisagreementError, match=r"Haswell on rank 0 \(a\); .*SkylakeX on rank 1 \(a\)"):
        check_same_blas([("a", HASWELL), ("a", SKYLAKE)])


def test_the_fingerprint_of_ranks_has_the_kernels_unless_they_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def layout(kernels: str, *overrides: str) -> int:
        monkeypatch.setattr(assemble, "blas_in_use", lambda: Blas("OpenBLAS", "1", kernels, 1))
        recipe = resolve(load_recipe("digits", overrides)[0], 1, None)
        return assemble.assemble(recipe, Path(), check_data=False).layout

    assert layout("Haswell") == layout("Haswell") != layout("Zen")
    assert layout("Haswell", "blas.allow_mixed=true") == layout("Zen", "blas.allow_mixed=true")
