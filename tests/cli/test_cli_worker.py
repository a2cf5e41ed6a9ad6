"""What a rank decides before it is one of a job, under a launcher of the user's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ddp_bp.cli.worker import Invocation, spares_of
from ddp_bp.errors import InputError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks

ASKED = Invocation(
    recipe="digits",
    overrides=("fault.spares=2",),
    run_dir=Path("run"),
    resume="auto",
    coordinator=None,
    supervised=False,
    binds=True,
    num_starts=0,
    num_recoveries=0,
    num_spares=0,
)


def test_the_recipe_says_how_many_wait() -> None:
    def count(communicator: Communicator) -> int:
        return spares_of(ASKED, communicator)

    assert run_ranks(4, count) == [2, 2, 2, 2]
    # One that trains alone leaves nobody who knows what it has done.
    with pytest.raises(InputError, match=r"fault.spares: 2 of the ranks .* expected at least two more, .* got 3 ranks"):
        run_ranks(3, count)


def test_all_train_where_none_could_step_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert spares_of(ASKED, SingleCommunicator()) == 0
    assert "fault.spares: all ranks train, since none can step in" in capsys.readouterr().err
    assert spares_of(dataclasses.replace(ASKED, overrides=()), SingleCommunicator()) == 0
    assert capsys.readouterr().err == ""


def test_what_else_is_wrong_with_a_recipe_is_for_others_to_say() -> None:
    assert spares_of(dataclasses.replace(ASKED, overrides=("fault.spares=-1",)), SingleCommunicator()) == 0
