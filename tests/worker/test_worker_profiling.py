"""Profiles of whole steps: they add up, they agree with arithmetic by hand, and they change nothing."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from ddp_bp.engine.profiling import Call, Source
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.recipes import load_recipe
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS, PHASES
from ddp_bp.worker.assemble import Job, assemble
from ddp_bp.worker.compose import compose
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.profiling.graph import dot_text
from ddp_bp.worker.profiling.measure import WARM_UP_STEPS, RankProfile, decode, encode, measure
from ddp_bp.worker.profiling.report import Report, make_report
from ddp_bp.worker.profiling.trace import chrome_trace

STEPS, SHARDS, BATCH, HIDDEN = 3, 2, 64, [48, 32, 16]


def job_of() -> Job:
    options = f'{{ hidden = {HIDDEN}, activation = "relu" }}'
    settings = (f"model.options={options}", f"train.shards={SHARDS}", f"train.batch_size={BATCH}")
    recipe, base = load_recipe("digits", settings)
    return assemble(recipe, base, check_data=False)


def profiles_of(size: int) -> tuple[list[RankProfile], list[Job]]:
    def run(communicator: Communicator) -> tuple[list[RankProfile], Job]:
        job = job_of()
        return measure(communicator, job, STEPS), job

    if size == 1:
        profiles, job = run(SingleCommunicator())
        return profiles, [job]
    results = run_ranks(size, run)
    assert all(encode(profiles) == encode(results[0][0]) for profiles, _ in results)
    return results[0][0], [job for _, job in results]


@pytest.fixture(scope="module", params=[1, 2])
def profiles(request: pytest.FixtureRequest) -> list[RankProfile]:
    return profiles_of(request.param)[0]


@pytest.fixture(scope="module")
def report(profiles: list[RankProfile]) -> Report:
    return make_report(profiles)


@pytest.mark.parametrize("size", [1, 2])
def test_the_profiled_steps_are_those_of_training_to_the_bit(size: int) -> None:
    plain = job_of()
    communicator = SingleCommunicator()
    clock = PhaseClock(PHASE_BUCKETS_SECONDS)
    step = compose(communicator, plain, clock, lambda error, number: None).team.step
    before = plain.parameters.data.tobytes()
    for number in range(WARM_UP_STEPS + STEPS):
        step.run(number)
    assert plain.parameters.data.tobytes() != before
    for job in profiles_of(size)[1]:
        assert job.parameters.data.tobytes() == plain.parameters.data.tobytes()
        assert all("forward" not in vars(module) for module in job.objective.model.modules())


def test_flops_of_a_known_network_by_hand(report: Report) -> None:
    # Every sample passes every layer once; a product forward, two backward, but one in the first layer; biases add.
    num_samples = STEPS * BATCH
    widths = [64, *HIDDEN, 10]
    for number, (num_in, num_out) in enumerate(pairwise(widths)):
        row = next(row for row in report.modules if row.name == str(2 * number))
        product, bias = 2 * num_samples * num_in * num_out, num_samples * num_out
        assert row.forward_flops == product + bias
        assert row.backward_flops == (1 if number == 0 else 2) * product + bias
        assert row.calls == STEPS * SHARDS
    linear = next(row for row in report.operations if row.name == "linear")
    assert linear.forward_flops == sum(row.forward_flops for row in report.modules if row.kind == "Linear")
    relu = next(row for row in report.operations if row.name == "relu")
    assert relu.forward_flops == relu.backward_flops == num_samples * sum(HIDDEN)
    assert linear.calls == STEPS * SHARDS * (len(HIDDEN) + 1)


def test_the_first_layer_computes_one_gradient_less(report: Report) -> None:
    per_call = {row.name: row.gradients / row.backward_calls for row in report.modules if row.kind == "Linear"}
    assert per_call == {"0": 2, "2": 3, "4": 3, "6": 3}
    (skipped,) = report.gradients_not_computed
    assert (skipped.operation, skipped.input, skipped.modules) == ("linear", 0, ["0"])
    assert skipped.shape == (BATCH // SHARDS, 64)


def test_times_add_up_to_no_more_than_the_wall_time(report: Report, profiles: list[RankProfile]) -> None:
    seconds = {row.phase: row.seconds for row in report.phases}
    assert list(seconds) == list(PHASES)
    assert 0 < report.total.forward_seconds <= seconds["forward"]
    assert 0 < report.total.backward_seconds <= seconds["backward"]
    assert sum(seconds.values()) - seconds["step"] == pytest.approx(seconds["step"], rel=0.05, abs=1e-3)
    assert sum(row.forward_seconds for row in report.operations) == pytest.approx(report.total.forward_seconds)
    model, loss = (next(r for r in report.modules if r.name == name) for name in ("(model)", "(loss)"))
    assert model.forward_seconds + loss.forward_seconds == pytest.approx(report.total.forward_seconds)
    assert model.backward_flops + loss.backward_flops == report.total.backward_flops
    assert model.calls == STEPS * SHARDS
    for profile in profiles:
        spans = sorted(span for call in profile.calls for span in (call.forward, *call.backward))
        assert all(first[1] <= second[0] for first, second in pairwise(spans)), "one operation at a time"
    assert report.median_step_ratio is not None
    assert report.total.ratio == report.total.backward_seconds / report.total.forward_seconds


def test_a_module_includes_the_modules_in_it() -> None:
    def call(module: str | None) -> Call:
        return Call("add", module, (Source((2,), "float32", None, None),), (2,), "float32", (0.0, 1.0), 2, 8)

    profile, *_ = profiles_of(1)[0]
    profile.calls = [call(module) for module in ("", "a", "a.b", "a.bc", None)]
    template = profile.module_calls[0]
    profile.module_calls = [
        type(template)(path, "Module", (float(number), 9.0)) for number, path in enumerate(("", "a", "a.b", "a.bc"))
    ]
    rows = {row.name: row.forward_seconds for row in make_report([profile]).modules}
    assert rows == {"(model)": 4.0, "a": 3.0, "a.b": 1.0, "a.bc": 1.0, "(loss)": 1.0}


def test_the_trace_is_valid(profiles: list[RankProfile]) -> None:
    trace = json.loads(json.dumps(chrome_trace(profiles)))
    events = trace["traceEvents"]
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert sorted(lanes) == [(rank, lane) for rank in range(len(profiles)) for lane in range(len(PHASES))]
    assert {name for (rank, _), name in lanes.items() if rank == 0} == set(PHASES)
    names = [e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"]
    assert names == [f"rank {profile.rank}" for profile in profiles]
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) + sum(event["ph"] == "M" for event in events) == len(events)
    assert [event["ts"] for event in complete] == sorted(event["ts"] for event in complete)
    assert complete[0]["ts"] == 0
    for event in complete:
        assert {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"} == set(event)
        assert event["dur"] >= 0
        assert (event["pid"], event["tid"]) in lanes
        if event["cat"] == "operation":
            assert lanes[event["pid"], event["tid"]] in ("forward", "backward")
    for lane in lanes:
        assert_nested([event for event in complete if (event["pid"], event["tid"]) == lane])
    num_operations = sum(1 + len(call.backward) for profile in profiles for call in profile.calls)
    assert sum(event["cat"] == "operation" for event in complete) == num_operations


def assert_nested(events: list[dict]) -> None:
    """Every event of a lane lies either within or after the one before; operations and modules within a phase."""
    open_ends: list[int] = []
    for event in events:
        began, ended = round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)
        while open_ends and open_ends[-1] <= began:
            open_ends.pop()
        assert not open_ends or ended <= open_ends[-1]
        assert open_ends or event["cat"] == "phase" or began == ended
        open_ends.append(ended)


def test_ranks_are_aligned_by_unix_time() -> None:
    (profile,) = profiles_of(1)[0]
    other = decode(encode([profile]))[0]
    other.rank, other.unix_offset_nanoseconds = 1, profile.unix_offset_nanoseconds + 2_500_000_000
    events = [event for event in chrome_trace([profile, other])["traceEvents"] if event["ph"] == "X"]
    began = [min(event["ts"] for event in events if event["pid"] == rank) for rank in (0, 1)]
    assert began == [0, 2.5e6]


def test_the_graph_has_every_operation_and_shape_once(profiles: list[RankProfile]) -> None:
    text = dot_text(profiles, 'a "title" with \\ in it')
    nodes = re.findall(r'^ *("?[\w .]+"?) \[label="(\w+)\\n(\([\d, ]*\)) (\w+)"', text, re.MULTILINE)
    labels = sorted(label for _, label, _, _ in nodes)
    layers = len(HIDDEN) + 1
    expected = ["cross_entropy", *["linear"] * layers, *["relu"] * len(HIDDEN), "data", "data"]
    assert labels == sorted([*expected, *["weight", "bias"] * layers])
    assert ("(32, 64)", "float32") in [(shape, dtype) for _, _, shape, dtype in nodes]
    edges = re.findall(r'^ *("?[\w .]+"?) -> (call\d+)(.*);$', text, re.MULTILINE)
    assert len(edges) == 3 * layers + len(HIDDEN) + 2
    known = {name for name, *_ in nodes}
    assert all(start in known and end in known for start, end, _ in edges)
    dashed = [start for start, _, style in edges if "dashed" in style]
    assert len(dashed) == 2
    assert all(start.startswith("data") for start in dashed)
    assert text.count("subgraph cluster_") == 2 * layers - 1
    assert text.count("{") == text.count("}")


def test_graphviz_draws_the_graph(profiles: list[RankProfile], tmp_path: Path) -> None:
    dot = shutil.which("dot")
    if dot is None:
        pytest.skip("needs Graphviz (Debian: apt-get install graphviz)")
    text = dot_text(profiles, 'a "title" with \\ in it')
    drawn = subprocess.run([dot, "-Tsvg"], input=text, capture_output=True, text=True, timeout=60)
    assert drawn.returncode == 0
    assert drawn.stderr == ""
    assert drawn.stdout.count('class="node"') == text.count("[label=")
    assert drawn.stdout.count('class="edge"') == text.count(" -> ")
    assert "cross_entropy" in drawn.stdout


def test_a_deep_network_costs_at_most_twice_forward_in_backward() -> None:
    """In arithmetic, which no other load on the machine disturbs: two products for one, but one in the first layer."""
    recipe, base = load_recipe("digits", ("model.options={hidden=[64,64,64,64,64,64,64,64]}", "train.shards=1"))
    total = make_report(measure(SingleCommunicator(), assemble(recipe, base, check_data=False), 1)).total
    assert 1.8 < total.backward_flops / total.forward_flops < 2.0
    assert math.isfinite(total.ratio or math.nan)
