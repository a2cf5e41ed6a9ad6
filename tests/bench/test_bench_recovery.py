"""What `bench recovery` makes of kills, and how it sees steps: no process is killed here."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ddp_bp.bench.journal_watch import JournalWatch
from ddp_bp.bench.models import BenchModel, made_up_samples, write_recipe
from ddp_bp.bench.recovery import (
    CoordinatorKill,
    RankKill,
    check_kinds,
    coordinator_summed_up,
    peer_summed_up,
    recomputed_seconds,
    spread,
    summed_up,
    victims,
)
from ddp_bp.bench.step_notes import StepNote, StepReader, StepWriter
from ddp_bp.bench.torch_peer import torch_peer
from ddp_bp.bench.watched_process import WatchedProcess
from ddp_bp.errors import DeadlineError, DistributedError, InputError
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.journal import NOTE_BYTES, Journal, Stage, num_committed_steps
from ddp_bp.parallel.nodes import find_nodes
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.recipes import load_recipe
from ddp_bp.recipes.schema import resolve
from ddp_bp.worker.assemble import assemble

SMALL = BenchModel((6, 5, 3), batch_per_rank=4, steps_per_block=2)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_victims_are_those_that_the_kind_says(world_size: int) -> None:
    generator = random.Random(0)
    drawn = [victims("rank", world_size, generator) for _ in range(100)]
    assert {rank for [rank] in drawn} == set(range(1, world_size))
    assert victims("rank-0", world_size, generator) == [0]
    pairs = [tuple(victims("two", world_size, generator)) for _ in range(100)]
    assert set(pairs) == {(a, b) for b in range(world_size) for a in range(b)}


def test_the_same_seed_draws_the_same_victims() -> None:
    first, second = random.Random(7), random.Random(7)
    assert [victims("two", 9, first) for _ in range(9)] == [victims("two", 9, second) for _ in range(9)]


def test_a_rank_must_be_left() -> None:
    check_kinds(["coordinator"], 1)
    check_kinds(["rank", "rank-0", "coordinator"], 2)
    check_kinds(["two"], 3)
    with pytest.raises(
        InputError, match=r"at least 3 workers, .* killed a rank, but not 0, two ranks at once; got -n 2"
    ):
        check_kinds(["rank", "two"], 2)
    with pytest.raises(InputError, match="at least 2 workers"):
        check_kinds(["rank-0", "coordinator"], 1)


def test_of_twenty_times_one_may_be_longer_than_p95_and_of_ten_none() -> None:
    twenty = [float(number) for number in range(1, 21)]
    found = spread(twenty)
    assert (found.median_seconds, found.p95_seconds, found.largest_seconds) == (10.5, 19.0, 20.0)
    assert spread(twenty[:10]).p95_seconds == 10.0
    assert spread([0.25]) == spread([0.25, 0.25])


def test_ranks_that_are_left_share_shards() -> None:
    assert [recomputed_seconds(number, 3, 0.5) for number in (0, 1, 3, 4, 7)] == [0, 0.5, 0.5, 1.0, 1.5]


def rank_kill(seconds: float, recomputed: float, *, in_place: bool) -> RankKill:
    return RankKill([1], in_place, seconds, seconds if in_place else 2 * seconds, 0.01, 1, recomputed)


def test_shards_computed_in_place_are_taken_off_kill_by_kill() -> None:
    kills = [
        rank_kill(0.5, 0.3, in_place=True),
        rank_kill(0.4, 0.0, in_place=True),
        rank_kill(3.0, 0.0, in_place=False),
    ]
    found = summed_up("a rank", kills)
    assert (found.killed, found.num_in_place, found.kills) == ("a rank", 2, kills)
    assert (found.seconds.median_seconds, found.seconds.largest_seconds) == (0.5, 3.0)
    assert (found.beyond_shards.median_seconds, found.beyond_shards.largest_seconds) == (0.4, 3.0)
    assert found.caught_up.largest_seconds == 6.0


def test_the_coordinator_and_the_peer_summed_up() -> None:
    kills = [CoordinatorKill(1.0, 0.01, 0.02), CoordinatorKill(2.0, 0.01, 0.01), CoordinatorKill(3.0, 0.01, 0.011)]
    found = coordinator_summed_up(kills)
    assert found.slowdown == pytest.approx(1.1)
    assert (found.seconds.median_seconds, found.seconds.p95_seconds) == (2.0, 3.0)
    peer = peer_summed_up("2.0", [rank_kill(4.0, 0.0, in_place=False), rank_kill(6.0, 0.0, in_place=False)])
    assert (peer.torch, peer.step_seconds) == ("2.0", 0.01)
    assert (peer.seconds.median_seconds, peer.caught_up.median_seconds) == (5.0, 10.0)


def journal() -> Journal:
    communicator = SingleCommunicator()
    return Journal(Arena(communicator, find_nodes(communicator)), 8, 1, 4, np.float32)


def test_committed_steps_are_those_of_the_rank_that_is_farthest() -> None:
    def notes(*positions: tuple[int, Stage]) -> bytes:
        rows = np.zeros((4, NOTE_BYTES // 8), np.int64)
        for row, (step, stage) in zip(rows, positions, strict=False):
            row[0] = 8 * step + stage
        return rows.tobytes()

    assert num_committed_steps(notes()) == 0
    assert num_committed_steps(notes((-1, Stage.COMMITTED))) == 0, "before the first step"
    assert num_committed_steps(notes((7, Stage.UPDATED), (7, Stage.COMMITTED))) == 8
    assert num_committed_steps(notes((8, Stage.COMPUTING), (7, Stage.COMMITTED))) == 8


def test_steps_are_read_out_of_a_process() -> None:
    watch = JournalWatch(os.getpid())
    with closing(watch):
        assert (watch.num_committed(), watch.journals, watch.is_gone) == (0, frozenset(), False)

        def look() -> frozenset[int]:
            watch.search()
            watch.look()
            return watch.journals

        # What other tests have left.
        others = look()
        first = journal()
        first.note(4, Stage.UPDATING)
        old = look() - others
        assert (len(old), watch.num_committed(old)) == (1, 4)
        first.note(4, Stage.COMMITTED)
        watch.look()
        assert watch.num_committed(old) == 5

        second = journal()
        second.note(5, Stage.COMMITTED)
        watch.look()
        assert watch.journals == old | others, "a journal that is new is not known yet"
        new = look() - old - others
        assert (len(new), watch.num_committed(new), watch.num_committed(old)) == (1, 6, 5)
        assert watch.num_committed() >= 6

        del first, second
        look()
        assert (watch.num_committed(old), watch.num_committed(new)) == (5, 6), "what was seen stays"


def test_a_process_that_has_ended_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch = JournalWatch(process.pid)
    try:
        watch.search()
        assert not watch.is_gone
    finally:
        process.communicate(b"\n", timeout=30)
    watch.search()
    watch.look()
    assert watch.is_gone and watch.num_committed() == 0
    watch.close()


def test_steps_are_noted_by_several_and_read_by_one(tmp_path: Path) -> None:
    reader = StepReader(tmp_path / "steps")
    reader.read()
    assert reader.notes == []
    writers = [StepWriter(tmp_path / "steps", rank) for rank in (0, 1)]
    writers[0].note(1)
    reader.read()
    writers[1].note(1)
    with (tmp_path / "steps").open("ab") as file:
        file.write(b"half an entry")
    reader.read()
    assert [(note.rank, note.pid, note.step) for note in reader.notes] == [(0, os.getpid(), 1), (1, os.getpid(), 1)]
    assert reader.notes == sorted(reader.notes, key=lambda note: note.at_seconds)
    assert isinstance(reader.notes[0], StepNote)


def watched(code: str, folder: Path, check=lambda: None) -> WatchedProcess:
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file, start_new_session=True)
    return WatchedProcess("it", process, log, check)


def test_a_process_that_ends_is_not_waited_for_and_said_why(tmp_path: Path) -> None:
    process = watched("import sys; sys.exit('no more room')", tmp_path)
    with pytest.raises(DistributedError, match=r"it has ended with exit code 1, while .* it said last: no more room"):
        process.wait_for(lambda: None, "a miracle", 30, 0.01)
    process.end()


def test_waiting_has_a_deadline_and_an_end(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    wanted = [True]

    def check() -> None:
        if not wanted:
            raise Enough

    process = watched("import time; time.sleep(600)", tmp_path, check)
    with pytest.raises(DeadlineError, match=r"waited 0\.1 s for a miracle; it said last: nothing"):
        process.wait_for(lambda: None, "a miracle", 0.1, 0.01)
    assert process.wait_for(lambda: "found", "what is there", 0, 0.01) == "found"
    wanted.clear()
    with pytest.raises(Enough):
        process.wait_for(lambda: "found", "what is there", 30, 0.01)
    process.end()


def test_what_does_not_end_by_itself_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddp_bp.bench.watched_process._END_SECONDS", 1.0)
    ignoring = "import signal, time\nfor n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
    process = watched(ignoring + "print('deaf', flush=True)\ntime.sleep(600)", tmp_path)
    process.wait_for(lambda: process.output() or None, "its first word", 30, 0.01)
    process.end()
    assert process._process.returncode == -signal.SIGKILL


def test_a_recipe_trains_the_network_of_the_benchmark(tmp_path: Path) -> None:
    recipe, base = load_recipe(str(write_recipe(SMALL, 3, 50, tmp_path)))
    job = assemble(resolve(recipe, 3, None), base, check_data=True, cache=None)
    shapes = [parameter.shape for parameter in job.objective.model.parameters()]
    assert sorted(shapes) == [(3,), (3, 5), (5,), (5, 6)]
    assert (job.plan.num_shards, job.plan.batch_size, recipe.checkpoint.every_steps) == (3, 12, 50)


@pytest.mark.parity
def test_a_checkpoint_of_the_peer_goes_on_with_the_same_bits() -> None:
    communicator, samples = SingleCommunicator(), made_up_samples(SMALL, 4)
    with torch_peer(communicator, find_nodes(communicator)) as peer:
        assert peer is not None
        first, second = (peer.ddp(SMALL.widths, *samples, bucket_mb=1) for _ in range(2))
        first.steps(3)
        second.load(first.state())
        assert first.steps(2) == second.steps(2)
        ours, theirs = first.state(), second.state()
    assert ours.keys() == theirs.keys()
    assert {name.partition(".")[0] for name in ours} == {"model", "optimizer"}
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
