from __future__ import annotations

import typing
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.errors import WireError
from ddp_bp.wire import messages as m
from ddp_bp.wire.codec import decode_from_coordinator, decode_from_worker, encode, num_payloads
from ddp_bp.wire.phases import NUM_PHASE_BUCKETS

_DELTA = m.PhaseTotal([1] * NUM_PHASE_BUCKETS, 0.25)
_LAYOUT = m.ArrayLayout("parameters", "model", "float32", 6, [m.TensorLayout("0.weight", [2, 3], 0)])

FROM_WORKER: list[m.FromWorker] = [
    m.Hello(1, "0.1.0", "r", 1, 2, 77, "node1", 4),
    m.Heartbeat(m.Position(3, "forward", 0.5)),
    m.Membership(1, 0, 2, [0]),
    m.Report(0, 12, 1, 1.5e9, 3, 96, "train", {"forward": _DELTA}, {"train_loss": 0.5}),
    m.LedgerRecords(0, ['{"step": 3}'], 3, "ab"),
    m.Evaluation(12, 1, 0.5, None, 100, 0.1),
    m.CheckpointBegin("step-12", 1, 2, {"step": 12, "extra": {"num_steps": 12}}, [_LAYOUT]),
    m.CheckpointChunk("step-12", 1, "parameters", 3),
    m.CheckpointEnd("step-12", 1),
    m.Failure(1, 12, "ValueError: é", "Traceback"),
    m.Finished(0, {"steps": 12, "eval_accuracy": None}),
    m.Stacks("stacks-1", [m.ThreadStack("MainThread", ["run (loop.py:7)"])]),
    m.Goodbye(1),
    m.StatusRequest(),
    m.StacksRequest(),
    m.CheckpointRequest("request-1"),
    m.StopRequest("SIGINT"),
    m.ScaleRequest(3),
]
FROM_COORDINATOR: list[m.FromCoordinator] = [
    m.Welcome(1, "r", 100),
    m.Introduce(),
    m.Refused("no"),
    m.TakeCheckpoint("timed-1", "time"),
    m.TellStacks("stacks-1"),
    m.Stop("SIGTERM"),
    m.End("evicted"),
    m.KillProcess(7, "boot pid:[1] 7 99"),
    m.CheckpointDone("step-12", True, 12, "/r/checkpoints/step-00000012"),
    m.Acknowledged("ledger", 12),
    m.StacksReply([{"rank": 0, "threads": None}]),
    m.StatusReply({"step": 12, "ranks": [{"rank": 0}]}),
    m.Heartbeat(),
]


def _payloads(message: m.Message) -> list[bytes]:
    return [b"\x00\x00\x80\x3f"] * num_payloads(message)


def test_every_message_has_an_example() -> None:
    assert {type(one) for one in FROM_WORKER} == set(typing.get_args(m.FromWorker))
    assert {type(one) for one in FROM_COORDINATOR} == set(typing.get_args(m.FromCoordinator))


@pytest.mark.parametrize("message", FROM_WORKER, ids=m.type_name)
def test_worker_messages_come_back_as_they_were(message: m.FromWorker) -> None:
    payloads = _payloads(message)
    assert decode_from_worker(encode(message, payloads)) == (message, payloads)


@pytest.mark.parametrize("message", FROM_COORDINATOR, ids=m.type_name)
def test_coordinator_messages_come_back_as_they_were(message: m.FromCoordinator) -> None:
    assert decode_from_coordinator(encode(message)) == (message, [])


def test_directions_do_not_mix() -> None:
    with pytest.raises(WireError):
        decode_from_worker(encode(m.Refused("no")))
    with pytest.raises(WireError):
        decode_from_coordinator(encode(m.StatusRequest()))


def test_nan_survives() -> None:
    report = m.Report(0, 1, 0, 0.0, 1, 1, "train", {}, {"train_loss": float("nan")})
    decoded, _ = decode_from_worker(encode(report))
    assert isinstance(decoded, m.Report)
    assert np.isnan(decoded.scalars["train_loss"])


def test_the_type_is_named_in_snake_case() -> None:
    frames = encode(m.CheckpointChunk("a", 0, "b", 0), [b""])
    assert msgspec.msgpack.decode(frames[0])["type"] == "checkpoint_chunk"


def test_payloads_are_not_copied() -> None:
    array = np.arange(4, dtype=np.float32)
    frames = encode(m.CheckpointChunk("a", 0, "b", 0), [array.data])
    array[0] = 7
    assert np.frombuffer(frames[1], np.float32)[0] == 7


@pytest.mark.parametrize("num_frames", [0, 1, 3])
def test_the_number_of_payloads_is_checked(num_frames: int) -> None:
    frames = [*encode(m.CheckpointChunk("a", 0, "b", 0), [b"1234"]), b"more"][:num_frames]
    with pytest.raises(WireError, match="frame"):
        decode_from_worker(frames)
    with pytest.raises(WireError, match="expected 0 payload frames, got 1"):
        encode(m.Heartbeat(), [b"x"])


@pytest.mark.parametrize("value", [np.float32(1), 1 << 70, "\ud800", object()], ids=str)
def test_what_cannot_be_encoded_is_named(value: Any) -> None:
    with pytest.raises(WireError, match="finished cannot be encoded"):
        encode(m.Finished(0, {"steps": value}))


def _raw(**fields: Any) -> list[bytes]:
    return [msgspec.msgpack.encode(fields)]


@pytest.mark.parametrize(
    "frames",
    [
        _raw(type="goodbye", rank=-2),
        _raw(type="goodbye", rank="0"),
        _raw(type="stop_request", reason="boredom"),
        _raw(type="nonsense"),
        _raw(rank=0),
        [b"\xc1"],
        [b""],
        [b"\x91" * 100_000],
        [b"\x81\xa4type\xa7good\xffye"],
        _raw(
            type="report",
            rank=0,
            step=1,
            epoch=0,
            sent_at_unix_seconds=0.0,
            num_steps=1,
            num_samples=1,
            phase="train",
            phases={"forward": {"counts": [1, 2], "sum_seconds": 1.0}},
            scalars={},
        ),
    ],
)
def test_bad_fields_are_wire_errors(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode_from_worker(frames)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=3))
def test_random_bytes_are_only_ever_wire_errors(frames: list[bytes]) -> None:
    for decode in (decode_from_worker, decode_from_coordinator):
        try:
            decode(frames)
        except WireError:
            continue


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_messages_with_wrong_fields_are_only_ever_wire_errors(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(FROM_WORKER))
    fields = msgspec.to_builtins(message)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        fields[name] = data.draw(_JSON)
    try:
        decode_from_worker([msgspec.msgpack.encode(fields), *_payloads(message)])
    except WireError:
        return


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FROM_WORKER), st.data())
def test_flipped_bytes_are_only_ever_wire_errors(message: m.FromWorker, data: st.DataObject) -> None:
    frame = bytearray(encode(message, _payloads(message))[0])
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_from_worker([bytes(frame), *_payloads(message)])
    except WireError:
        return
