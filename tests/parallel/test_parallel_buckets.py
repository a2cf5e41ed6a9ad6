"""The exchange between nodes in buckets: the same sums whatever the nodes, the buckets and the order of events."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.errors import PeerLostError
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.bucket_choice import NO_BUCKETS, choose_buckets
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.buckets import Countdown, cut_buckets
from ddp_bp.parallel.holdings import of_shard_runs
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.parallel.threads import ThreadCommunicator, run_ranks
from ddp_bp.parallel.tree import merge_counts, tree_sum

SIZES = st.sampled_from([1, 5, 1023, 1024, 1025, 4100, 9000])


def shard_gradient(shard: int, size: int, step: int = 0) -> np.ndarray:
    return np.random.default_rng([shard, step]).normal(size=size).astype(np.float32) * np.float32(10.0 ** (shard % 5))


def build(comm, size: int, num_shards: int, node_of_rank: list[int], buckets, *, in_background: bool = True):
    arena = Arena(comm, Nodes(node_of_rank))
    stack, holdings = of_shard_runs(arena, size, num_shards, np.float32)
    totals = arena.allocate("totals", size, np.float32)
    exchange = BucketExchange(comm, arena.nodes, num_shards, holdings, totals, buckets, in_background=in_background)
    return stack, exchange


def compute(comm, stack, size: int, num_shards: int, step: int) -> None:
    run = shard_run(num_shards, comm.size, comm.rank)
    height = 0
    for shard, count in zip(run, merge_counts([(s, s + 1) for s in run], num_shards), strict=True):
        stack[height][:] = shard_gradient(shard, size, step)
        height += 1
        for _ in range(count):
            height -= 1
            stack[height - 1] += stack[height]


def sums_of_rank(comm, size: int, num_shards: int, node_of_rank: list[int], bucket: int, *, in_background: bool):
    """What this rank gets in two steps, releasing buckets one at a time."""
    buckets = cut_buckets(size - size // 10, size, bucket)
    stack, exchange = build(comm, size, num_shards, node_of_rank, buckets, in_background=in_background)
    results = []
    for step in range(2):
        exchange.begin()
        compute(comm, stack, size, num_shards, step)
        for _ in range(len(buckets) // 2):
            exchange.release()
        exchange.release_all()
        exchange.finish()
        got = {}

        def take(lo: int, hi: int, total: np.ndarray, got: dict = got) -> None:
            got.update({lo: total.copy()})
            total.fill(np.nan)

        exchange.reduce(take)
        assert sum(part.size for part in got.values()) == exchange.bounds[1] - exchange.bounds[0]
        comm.barrier()
        results.append(np.concatenate([got[lo] for lo in sorted(got)] or [np.zeros(0, np.float32)]))
    exchange.close()
    return exchange.bounds, results, exchange.is_first_copy


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.integers(0, 3), min_size=2, max_size=6).filter(lambda names: len(set(names)) > 1),
    SIZES,
    st.sampled_from([1, 1024, 2048, 10**6]),
    st.booleans(),
)
def test_every_node_gets_the_sum_along_the_tree(
    num_shards: int, node_of_rank: list[int], size: int, bucket: int, in_background: bool
) -> None:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(node_of_rank))}
    node_of_rank = [numbers[name] for name in node_of_rank]
    outcomes = run_ranks(
        len(node_of_rank),
        lambda c: sums_of_rank(c, size, num_shards, node_of_rank, bucket, in_background=in_background),
    )
    for step in range(2):
        expected = tree_sum(np.stack([shard_gradient(shard, size, step) for shard in range(num_shards)]))
        for (lo, hi), results, _ in outcomes:
            np.testing.assert_array_equal(results[step], expected[lo:hi])
    first = sorted(bounds for bounds, _, is_first in outcomes if is_first)
    assert (first[0][0], first[-1][1]) == (0, size)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(first))


def test_buckets_are_exchanged_while_others_are_not_yet_complete() -> None:
    """Both ranks see the sum of the first bucket although neither has released the last one."""
    size, buckets = 4096, [(2048, 4096), (1024, 2048), (0, 1024)]

    def run(comm) -> None:
        stack, exchange = build(comm, size, 2, [0, 1], buckets)
        arrived, calls = threading.Event(), itertools.count(1)
        used, send = exchange._used, exchange._used.exchange

        def counted(sends, receives) -> None:
            send(sends, receives)
            # The sums of a bucket are sent in the round of the next one, after its partials.
            if next(calls) == 3:
                arrived.set()

        used.exchange = counted
        exchange.begin()
        stack[0][1024:] = comm.rank + 1
        exchange.release()
        exchange.release()
        assert arrived.wait(10)
        assert (exchange._totals[2048:] == 3).all()
        stack[0][:1024] = 10
        exchange.release_all()
        exchange.finish()
        total = np.empty(size)

        def take(lo: int, hi: int, part: np.ndarray) -> None:
            total[lo:hi] = part

        exchange.reduce(take)
        assert (total[1024:] == 3).all()
        assert (total[:1024] == 20).all()
        exchange.close()

    run_ranks(2, run)


@pytest.mark.parametrize("node_of_rank", [[0, 1], [0, 1, 0, 1]])
def test_a_bucket_is_taken_while_others_are_on_their_way(node_of_rank: list[int]) -> None:
    """The last rounds wait until the first bucket has been taken."""
    size, buckets = 8192, [(lo, lo + 1024) for lo in reversed(range(0, 8192, 1024))]

    def run(comm) -> list[int]:
        _, exchange = build(comm, size, comm.size, node_of_rank, buckets)
        taken, calls = threading.Event(), itertools.count(1)
        used, send = exchange._used, exchange._used.exchange
        # Partials, and from the second round on sums, are a call each; with neighbours one more comes before both. The
        # sums of the first bucket are waited for in the third round, and neighbours hear of it in the fourth.
        num_before = 6 if comm.size == 2 else 10

        def held_back(sends, receives) -> None:
            assert next(calls) < num_before or exchange.bounds[1] < size or taken.wait(10)
            send(sends, receives)

        used.exchange = held_back
        exchange.begin()
        exchange.release_all()
        order = []

        def take(lo: int, hi: int, total: np.ndarray) -> None:
            order.append(lo)
            taken.set()

        exchange.reduce(take)
        exchange.close()
        assert order == [lo for lo, hi in exchange.order if exchange.bounds[0] <= lo < exchange.bounds[1]]
        return order

    orders = run_ranks(len(node_of_rank), run)
    assert sorted(lo for order in orders[:: len(node_of_rank) // 2] for lo in order)


def test_a_death_ends_the_exchange_of_all_others() -> None:
    size, begun = 3000, threading.Barrier(3)

    def run(comm: ThreadCommunicator) -> str:
        _, exchange = build(comm, size, 3, [0, 1, 2], cut_buckets(size, size, 1024))
        exchange.begin()
        begun.wait(10)
        if comm.rank == 1:
            comm.die()
        exchange.release_all()
        try:
            exchange.finish()
        except PeerLostError as error:
            exchange.close()
            return str(error)
        return "nothing"

    first, dead, last = run_ranks(3, run)
    assert dead is None
    assert "another rank has died" in first
    assert "another rank has died" in last


def test_an_exchange_that_is_abandoned_is_a_loss_for_the_others() -> None:
    def run(comm: ThreadCommunicator) -> bool:
        _, exchange = build(comm, 3000, 2, [0, 1], cut_buckets(3000, 3000, 1024))
        exchange.begin()
        if comm.rank == 0:
            exchange.close()
            return True
        exchange.release_all()
        with pytest.raises(PeerLostError):
            exchange.finish()
        exchange.close()
        return True

    assert run_ranks(2, run) == [True, True]


def test_an_exchange_that_has_failed_goes_with_its_last_user() -> None:
    """Without a garbage collection, which does not look at what was there before the first step."""
    begun = threading.Barrier(2)

    def run(comm: ThreadCommunicator) -> bool:
        _, exchange = build(comm, 3000, 2, [0, 1], cut_buckets(3000, 3000, 1024))
        exchange.begin()
        begun.wait(10)
        if comm.rank == 1:
            comm.die()
        exchange.release_all()
        with contextlib.suppress(PeerLostError):
            exchange.finish()
        exchange.close()
        left = weakref.ref(exchange)
        del exchange
        return left() is None

    gc.disable()
    try:
        assert run_ranks(2, run) == [True, None]
    finally:
        gc.enable()


@given(st.integers(1, 20000), st.integers(0, 100), st.integers(1, 8000))
def test_buckets_cover_everything_once_from_the_end(num_parameters: int, num_moves: int, bucket: int) -> None:
    buckets = cut_buckets(num_parameters, num_parameters + num_moves, bucket)
    if num_moves:
        assert buckets.pop() == (num_parameters, num_parameters + num_moves)
    assert buckets[0][1] == num_parameters
    assert buckets[-1][0] == 0
    assert all(after[1] == before[0] for before, after in itertools.pairwise(buckets))


@given(st.permutations(range(10)), st.integers(1, 30))
def test_a_bucket_is_complete_with_all_before_it(order: list[int], bucket: int) -> None:
    buckets = [(lo, min(lo + bucket, 100)) for lo in reversed(range(0, 100, bucket))]
    countdown = Countdown(buckets)
    for _ in range(2):
        countdown.begin()
        complete: set[int] = set()
        released = []
        for number in order:
            complete |= set(range(10 * number, 10 * number + 10))
            released += countdown.finish(10 * number, 10 * number + 10)
            expected = list(itertools.takewhile(lambda b, done=frozenset(complete): set(range(*b)) <= done, buckets))
            assert released == expected
        assert released == buckets
        assert not list(countdown.rest())
    countdown.begin()
    assert list(countdown.rest()) == buckets


def test_what_is_chosen_is_the_same_on_all_ranks_and_says_why() -> None:
    def run(comm: ThreadCommunicator, nodes: list[int], **settings):
        return choose_buckets(comm, Nodes(nodes), 10**6, 4, **settings)

    assert set(run_ranks(2, lambda c: run(c, [0, 0]))) == {NO_BUCKETS}
    [off] = set(run_ranks(2, lambda c: run(c, [0, 1], overlap="off")))
    assert (off.num_elements, off.in_background) == (0, False)
    assert "as exchange.overlap says" in off.line
    [on] = set(run_ranks(3, lambda c: run(c, [0, 1, 0], overlap="on", bucket_bytes=2**20)))
    assert (on.num_elements, on.in_background) == (2**18, True)
    assert "gradients between 2 nodes: exchanged during backward, in buckets of 1024 KiB (4 MB in" in on.line


def test_no_threads_where_mpi_allows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(comm: ThreadCommunicator):
        comm.allows_threads = False
        return choose_buckets(comm, Nodes([0, 1]), 10**6, 4, "on")

    [choice] = set(run_ranks(2, run))
    assert choice.num_elements == 0
    assert "does not allow threads" in choice.line
