"""The ledger: its chain by an independent computation, on any number of ranks, and after a restart."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_cases import PLAN, Case, build_rank, classes

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.digest import result_digest
from ddp_bp.worker.ledger import Ledger

GENESIS = Ledger.genesis(PLAN.seed, PLAN.num_samples, PLAN.batch_size, PLAN.num_shards)


def little_endian(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def first_8_bytes(ids: list[int]) -> int:
    return int.from_bytes(hashlib.sha256(little_endian(*ids)).digest()[:8], "little")


def chain_of(lines: list[str], head: bytes) -> str:
    """The head of the chain, from nothing but what the lines say."""
    for line in lines:
        record = json.loads(line)
        digests = [int(digest, 16) for digest in record["shards"] + record["results"]]
        skipped = record.get("skipped", False)
        body = little_endian(record["step"], record["epoch"], record["samples"], skipped, *digests)
        head = hashlib.sha256(head + body).digest()
        assert record["chain"] == head.hex()
    return head.hex()


def train_and_record(size: int, first: int = 0, last: int = 9, chain: str = GENESIS) -> tuple[list[str], str]:
    """The lines and the head that `size` ranks make of real steps; only if all of them agree."""

    def run(communicator):
        rank = build_rank(communicator, Case(classes(34, 6), plan=PLAN))
        ledger = Ledger(chain, size)
        for step in range(first):  # as a checkpoint would have kept it
            rank.step.run(step)
        for step in range(first, last):
            epoch, step_in_epoch = PLAN.position(step)
            result = rank.step.run(step)
            ledger.commit(
                step,
                epoch,
                PLAN.batch_size_at(step_in_epoch),
                result.shard_digests,
                result.shard_results,
                result.owners,
            )
        return ledger.take_lines(), ledger.chain_sha256

    outcomes = run_ranks(size, run)
    assert all(each == outcomes[0] for each in outcomes)
    return outcomes[0]


def test_the_chain_follows_from_the_plan_by_hand() -> None:
    genesis = hashlib.sha256(little_endian(7, 34, 10, 4)).digest()
    assert genesis.hex() == GENESIS
    lines, head = train_and_record(2)
    assert chain_of(lines, genesis) == head
    for line in lines:
        record = json.loads(line)
        shards = [PLAN.shard_ids(record["step"], shard).tolist() for shard in range(4)]
        assert [int(digest, 16) for digest in record["shards"]] == [first_8_bytes(ids) for ids in shards]
        assert record["samples"] == sum(map(len, shards))
        assert (record["membership"], record["world_size"], record["owners"]) == (0, 2, [[0, 0, 2], [1, 2, 4]])
        assert "\n" not in line
    assert [json.loads(line)["step"] for line in lines] == list(range(9))
    assert [json.loads(line)["epoch"] for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_a_result_is_the_loss_and_the_squared_norm_of_the_gradient_of_its_shard() -> None:
    lines, _ = train_and_record(3, last=1)
    case = Case(classes(34, 6), plan=PLAN)
    [rank] = run_ranks(1, lambda communicator: build_rank(communicator, case))
    for shard, result in enumerate(json.loads(lines[0])["results"]):
        inputs, targets = case.dataset.batch(PLAN.shard_ids(0, shard))
        loss = nn.functional.cross_entropy(rank.objective.model(ddp.tensor(inputs)), targets, reduction="sum")
        rank.parameters.zero_grad()
        loss.backward()
        gradient = np.concatenate([parameter.grad.reshape(-1) for parameter in rank.parameters.parameters])
        assert int(result, 16) == result_digest(loss.item(), float(np.dot(gradient, gradient)))


def test_owners_are_runs_of_shards_whoever_they_are_and_the_chain_does_not_know_them() -> None:
    heads = []
    for owners, runs in (([0, 0, 1], [[0, 0, 2], [1, 2, 3]]), ([2, 0, 2], [[2, 0, 1], [0, 1, 2], [2, 2, 3]])):
        ledger = Ledger(GENESIS, 3, membership=7)
        ledger.commit(0, 0, 9, (0, 1, 2), (0, 1, 2), tuple(owners))
        [line] = ledger.take_lines()
        record = json.loads(line)
        assert (record["owners"], record["membership"]) == (runs, 7)
        heads.append(ledger.chain_sha256)
    assert heads[0] == heads[1]


def test_any_number_of_ranks_makes_the_same_chain() -> None:
    expected = train_and_record(1)[1]
    assert [train_and_record(size)[1] for size in (2, 3, 5)] == [expected] * 3


def test_a_restart_on_other_ranks_replays_to_the_same_head() -> None:
    _, expected = train_and_record(2)
    kept, middle = train_and_record(3, last=4)
    again, head = train_and_record(1, first=4, chain=middle)
    assert head == expected
    assert chain_of(kept + again, bytes.fromhex(GENESIS)) == expected


some_digests = st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3)


@settings(max_examples=50)
@given(
    records=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 99), some_digests, some_digests, st.booleans()),
        min_size=1,
        max_size=5,
    ),
    data=st.data(),
)
def test_any_other_history_has_another_head(records: list, data) -> None:
    def head(history: list) -> str:
        ledger = Ledger(GENESIS, 1)
        for step, (epoch, num_samples, digests, results, skipped) in enumerate(history):
            ledger.commit(step, epoch, num_samples, digests, results, (0, 0, 0), skipped=skipped)
        assert chain_of(ledger.take_lines(), bytes.fromhex(GENESIS)) == ledger.chain_sha256
        return ledger.chain_sha256

    index = data.draw(st.integers(0, len(records) - 1))
    epoch, num_samples, digests, results, skipped = records[index]
    changed = data.draw(
        st.sampled_from(
            [
                (epoch + 1, num_samples, digests, results, skipped),
                (epoch, num_samples + 1, digests, results, skipped),
                (epoch, num_samples, [digests[0] ^ 1, *digests[1:]], results, skipped),
                (epoch, num_samples, digests, [results[0] ^ 1, *results[1:]], skipped),
                (epoch, num_samples, digests, results, not skipped),
            ]
        )
    )
    assert head([*records[:index], changed, *records[index + 1 :]]) != head(records)
    assert head(records[:-1]) != head(records)


def test_lines_are_taken_once() -> None:
    ledger = Ledger(GENESIS, 1)
    assert ledger.take_lines() == []
    ledger.commit(0, 0, 4, (0, 0), (0, 0), (0, 0))
    assert len(ledger.take_lines()) == 1
    assert ledger.take_lines() == []
    assert Ledger.genesis(7, 34, 10, 5) != GENESIS
