"""Stages that all ranks leave together."""

from __future__ import annotations

import pytest
from worker_cases import outcome

import ddp_bp as ddp
from ddp_bp.errors import DataError, DdpError, RemoteError
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.failures import RankFailure, print_failure, together


@pytest.mark.parametrize("size", [1, 3])
def test_where_nobody_fails_each_rank_has_its_own_result(size: int) -> None:
    assert run_ranks(size, lambda c: together(c, lambda: c.rank * 10)) == [rank * 10 for rank in range(size)]


def test_the_lowest_rank_that_failed_shows_its_error_and_all_end_with_its_exit_code() -> None:
    errors = {1: DataError("unusable"), 2: ValueError("worse")}

    def run(communicator):
        def stage():
            if communicator.rank in errors:
                raise errors[communicator.rank]

        return outcome(lambda: together(communicator, stage))

    raised = run_ranks(4, run)
    assert [type(error) for error in raised] == [RemoteError, RankFailure, RemoteError, RemoteError]
    assert raised[1].error is errors[1]
    assert not raised[1].shown
    assert [error.exit_code for error in raised] == [2, 2, 2, 2]
    assert "because rank 1 failed" in str(raised[2])


def test_an_error_that_is_none_of_ours_ends_with_exit_code_1() -> None:
    def run(communicator):
        return outcome(lambda: together(communicator, lambda: 1 // communicator.rank))

    assert [getattr(error, "exit_code", 0) for error in run_ranks(2, run)] == [1, 1]


def test_an_error_of_ours_that_a_model_met_is_shown_with_the_models_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DdpError) as raised:
        ddp.tensor([1.0, 2.0]).reshape(3)
    print_failure(raised.value, rank=1, step=4)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("ddp-bp: rank 1 failed at step 4: ShapeError: ") and f" ({__file__}, line " in line
