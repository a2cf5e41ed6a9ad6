"""What launchers say, and what processes of ours are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_bp.cli.environment import (
    child_environment,
    drop_impossible_kernels,
    kernels_asked_for,
    launched_ranks,
    prepare_blas,
    prepare_for_deaths,
    prepare_mpi,
)
from ddp_bp.cli.processor import Processor

OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
HYDRA = {"PMI_SIZE": "5", "PMI_RANK": "2"}
SLURM = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "1"}
BLAS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (OPEN_MPI, (4, 3)),
        (HYDRA, (5, 2)),
        (SLURM, (6, 1)),
        ({**SLURM, **OPEN_MPI}, (4, 3)),  # mpirun inside a job step
        ({**SLURM, **HYDRA}, (5, 2)),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "9"}, None),  # a batch script, which is no job step
        ({"OMPI_COMM_WORLD_RANK": "3"}, None),
        ({"PMI_SIZE": "5"}, (5, 0)),
        ({"PMI_SIZE": "many", "PMI_RANK": "2"}, None),
        ({"PMI_SIZE": "-1", "PMI_RANK": "0"}, None),
        ({"PMI_SIZE": "", **SLURM}, (6, 1)),
    ],
)
def test_the_number_of_ranks_is_what_the_launcher_says(environment: dict, expected: tuple | None) -> None:
    assert launched_ranks(environment) == expected


def test_blas_has_one_thread_in_us_and_in_what_we_start(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"OMP_NUM_THREADS": "8", "HOME": "/root"}
    prepare_blas(ours)
    assert ours == {**dict.fromkeys(BLAS, "1"), "HOME": "/root"}
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("SOMETHING", "kept")
    child = child_environment(MORE="of it")
    assert [child[name] for name in BLAS] == ["1", "1", "1"]
    assert (child["SOMETHING"], child["MORE"], child["PYTHONUNBUFFERED"]) == ("kept", "of it", "1")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OPENBLAS_CORETYPE": ""}, None),
        ({"OPENBLAS_CORETYPE": "Zen"}, ("Zen", "OPENBLAS_CORETYPE in the environment")),
        ({"OPENBLAS_CORETYPE": "Zen", "DDP_BP_KERNELS_REASON": "measured"}, ("Zen", "measured")),
        ({"DDP_BP_KERNELS_REASON": "measured"}, None),
    ],
)
def test_kernels_are_asked_for_by_the_variable_of_openblas(environment: dict, expected: tuple | None) -> None:
    assert kernels_asked_for(environment) == expected


def test_kernels_that_the_processor_cannot_execute_are_forgotten() -> None:
    old, new = Processor("old", frozenset({"avx", "avx2", "fma"})), Processor("new", frozenset({"avx2", "fma", "sve"}))
    environment = {"OPENBLAS_CORETYPE": "haswell", "HOME": "/root"}
    assert drop_impossible_kernels(old, environment) is None
    assert environment == {"OPENBLAS_CORETYPE": "haswell", "HOME": "/root"}
    dropped = drop_impossible_kernels(new, environment := {"OPENBLAS_CORETYPE": "SkylakeX", "HOME": "/root"})
    assert dropped == ("SkylakeX", ["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"])
    assert environment == {"HOME": "/root"}
    assert drop_impossible_kernels(old, {"HOME": "/root"}) is None


@pytest.mark.parametrize(("told", "expected"), [("1", True), ("true", True), ("0", False), (None, False)])
def test_mpi_waits_for_nobody_at_its_end_where_ranks_may_die(told: str | None, expected: bool) -> None:
    environment = {} if told is None else {"OMPI_MCA_mpi_ft_enable": told}
    assert prepare_for_deaths(environment) is expected
    assert environment.get("OMPI_MCA_async_mpi_finalize") == ("1" if expected else None)
    environment["OMPI_MCA_async_mpi_finalize"] = "0"
    prepare_for_deaths(environment)
    assert environment["OMPI_MCA_async_mpi_finalize"] == "0", "who says otherwise is followed"


@pytest.mark.parametrize(
    ("told", "written", "expected"),
    [
        (None, None, "^ofi"),
        (None, "# btl = tcp\nbtl_tcp_if_include = eth0\n", "^ofi"),
        (None, "mpi_yield_when_idle = 1\n btl = self,sm,tcp\n", None),
        ("self,tcp", None, "self,tcp"),
    ],
)
def test_mpi_starts_without_its_sleep_unless_somebody_names_transports(
    told: str | None, written: str | None, expected: str | None, tmp_path: Path
) -> None:
    environment = {} if told is None else {"OMPI_MCA_btl": told}
    if written is not None:
        (tmp_path / "mca-params.conf").write_text(written)
    prepare_mpi(environment, [tmp_path / "none", tmp_path, tmp_path / "mca-params.conf"])
    assert environment.get("OMPI_MCA_btl") == expected
