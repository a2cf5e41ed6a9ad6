"""When a job stops to go on with another number of ranks."""

from __future__ import annotations

from typing import Any

import pytest

from ddp_bp.cli.hosts import Host
from ddp_bp.cli.placement import Placement
from ddp_bp.cli.resize import Resizing, Wish
from ddp_bp.errors import RecipeError
from ddp_bp.recipes import load_recipe
from ddp_bp.recipes.fault import FaultSection


def status(size: int = 4, **changes: Any) -> dict[str, Any]:
    fields = {"state": "training", "ready": True, "world_size": size, "lost_ranks": [], "wanted_world_size": None}
    fields["full_world_size"] = 4
    return {**fields, **changes}


def test_what_somebody_asked_for_is_followed_while_the_job_trains() -> None:
    resizing = Resizing(FaultSection())
    assert resizing.wish(status(), 0) is None
    assert resizing.wish(status(wanted_world_size=4), 0) is None
    assert resizing.wish(status(wanted_world_size=2), 0) == Wish("resize", "2 ranks asked for", 2)
    assert resizing.wish(status(wanted_world_size=2, state="stopping"), 0) is None


def test_dead_ranks_are_replaced_so_often_in_so_long() -> None:
    resizing = Resizing(FaultSection(respawn_limit=2, respawn_seconds=100))
    lost = status(3, lost_ranks=[1])
    assert resizing.wish({**lost, "ready": False}, 0) is None, "one that is left does not go on yet"
    assert resizing.wish(lost, 0) == Wish("respawn", "rank 1 has died; starting others in the place of the dead")
    again = resizing.wish(status(2, lost_ranks=[0, 3]), 50)
    assert again == Wish("respawn", "rank 0, 3 has died; starting others in the place of the dead")
    assert resizing.wish(lost, 99) is None
    assert resizing.wish(lost, 100) is not None
    assert resizing.wish(lost, 149) is None
    assert Resizing(FaultSection(respawn=False)).wish(lost, 0) is None
    # What somebody asks for is no matter of a budget.
    assert resizing.wish({**lost, "wanted_world_size": 2}, 149) is not None


def test_who_has_asked_for_as_many_as_are_left_gets_no_others() -> None:
    resizing = Resizing(FaultSection())
    assert resizing.wish(status(3, lost_ranks=[1], wanted_world_size=3), 0) is None
    assert resizing.wish(status(2, lost_ranks=[1, 2], wanted_world_size=3), 0) == Wish("resize", "3 ranks asked for", 3)


def test_dead_ranks_in_whose_place_spares_are_need_no_replacement() -> None:
    resizing = Resizing(FaultSection())
    assert resizing.wish(status(4, lost_ranks=[1]), 0) is None
    assert resizing.wish(status(3, lost_ranks=[1, 2]), 0) is not None


def test_what_could_not_be_saved_is_tried_again_after_a_while() -> None:
    resizing, wanted = Resizing(FaultSection()), status(wanted_world_size=2)
    assert resizing.wish(wanted, 0) is not None
    resizing.take_back(10)
    assert resizing.wish(wanted, 39) is None
    assert resizing.wish(wanted, 40) is not None
    resizing.take_back(None)
    assert resizing.wish(wanted, 41) is not None


def test_a_wish_that_is_taken_back_does_not_count() -> None:
    resizing, lost = Resizing(FaultSection(respawn_limit=1)), status(3, lost_ranks=[1])
    for _ in range(3):
        assert resizing.wish(lost, 0) is not None
        resizing.take_back(None)
    assert resizing.wish(lost, 0) is not None
    assert resizing.wish({**lost, "wanted_world_size": 2}, 0) is not None
    resizing.take_back(None)
    assert resizing.wish(lost, 0) is None, "that of before was followed"


def test_too_few_ranks_stop() -> None:
    few = Resizing(FaultSection(respawn=False, min_workers=3))
    assert few.wish(status(3, lost_ranks=[1]), 0) is None
    why = "rank 1, 2 has died; 2 ranks left, fewer than fault.min_workers = 3"
    assert few.wish(status(2, lost_ranks=[1, 2]), 0) == Wish("too_few", why)
    again = Resizing(FaultSection(min_workers=3, respawn_limit=1))
    assert [again.wish(status(2, lost_ranks=[1, 2]), now).cause for now in (0, 1)] == ["respawn", "too_few"]


@pytest.mark.parametrize("setting", ["fault.min_workers=0", "fault.respawn_seconds=0", "fault.respawn_limit=-1"])
def test_values_that_cannot_be_used_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match=setting.partition("=")[0]):
        load_recipe("digits", (setting,))


def test_ranks_are_placed_anew_on_the_hosts_that_were_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddp_bp.cli.placement.is_this_host", lambda name: name == "here")
    hosts = (Host("here", 2), Host("there", 3))
    spread = Placement(4, (Host("here", 2), Host("there", 2)), hosts, "--hosts", ("there",))
    assert spread.most_ranks == 5
    assert spread.resized(5) == Placement(5, hosts, hosts, "--hosts", ("there",))
    small = spread.resized(1)
    assert (small.spans_hosts, small.most_ranks) == (False, 2)
    assert small.resized(4) == spread
    assert (Placement(2).most_ranks, Placement(2).resized(7)) == (None, Placement(7))
