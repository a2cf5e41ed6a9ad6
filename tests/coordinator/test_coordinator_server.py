from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from coordinator_fakes import DEADLINE_SECONDS, RunningServer, report, running
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from ddp_bp.checkpoint import load_checkpoint
from ddp_bp.coordinator.address import ADDRESS_FILE, read_address
from ddp_bp.coordinator.client import ToolClient
from ddp_bp.coordinator.memory import read_memory
from ddp_bp.errors import AddressError, InputError
from ddp_bp.wire import messages as m


def _get(server: RunningServer, path: str, **headers: str) -> httpx.Response:
    return httpx.get(server.address.url + path, headers=headers, timeout=DEADLINE_SECONDS)


def test_a_job_from_hello_to_goodbye(tmp_path: Path) -> None:
    with running(tmp_path, total_steps=10, checkpoint_every_steps=5) as server:
        workers = server.joined()
        assert workers[0].join().checkpoint_every_steps == 5
        workers[0].send(report(step=10))
        workers[0].send(m.Evaluation(10, 1, 0.25, 0.9, 100, 0.1))
        lines = [json.dumps({"step": step}) for step in range(10)]
        workers[0].send(m.LedgerRecords(0, lines, 9, "ab"))
        acknowledged = workers[0].expect(m.Acknowledged)
        assert (acknowledged.of, acknowledged.step) == ("ledger", 9)
        assert (tmp_path / "ledger.jsonl").read_text().splitlines() == lines

        for worker in workers:
            worker.send_checkpoint(10, "final")
        done = [worker.expect(m.CheckpointDone) for worker in workers]
        assert done[0] == done[1]
        assert done[0].ok and done[0].step == 10 and done[0].path is not None
        checkpoint = load_checkpoint(Path(done[0].path))
        np.testing.assert_array_equal(checkpoint.model["0.weight"], np.arange(6, dtype=np.float32).reshape(2, 3))
        np.testing.assert_array_equal(checkpoint.model["0.bias"], np.arange(6, 10, dtype=np.float32))
        assert checkpoint.optimizer["0.weight.exp_avg"][1, 2] == -5
        assert checkpoint.manifest.samples == 320

        workers[0].send(m.Finished(0, {"steps": 10, "eval_loss": float("nan")}))
        assert workers[0].expect(m.Acknowledged).of == "finished"
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary == {"steps": 10, "eval_loss": None, "checkpoint": done[0].path}
        for worker in workers:
            worker.send(m.Goodbye(worker.rank))
        assert server.wait() == 0
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [10, 10]
    assert metrics[0]["train_loss"] == 0.5 and metrics[1]["eval_accuracy"] == 0.9
    assert not (tmp_path / ADDRESS_FILE).exists()
    # A job that is started again with more or fewer ranks counts on from there.
    memory = read_memory(tmp_path)
    assert memory is not None and memory.num_messages["goodbye"] == len(workers)


def test_the_address_file_is_private_and_tells_where(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        address = read_address(tmp_path)
        assert address == server.address
        assert address.pid == os.getpid() and address.run_id == "r1"
        assert stat.S_IMODE((tmp_path / ADDRESS_FILE).stat().st_mode) == 0o600
        assert address.address == f"tcp://127.0.0.1:{address.port}"


def test_readiness_follows_the_ranks(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert _get(server, "healthz").status_code == 200
        waiting = _get(server, "readyz")
        assert waiting.status_code == 503 and "0 of 2 ranks" in waiting.text
        workers = server.joined()
        assert _get(server, "readyz").status_code == 200
        workers[1].send(m.Failure(1, 7, "ValueError: no", "Traceback"))
        workers[1].send(m.StatusRequest())
        workers[1].expect(m.StatusReply)
        assert _get(server, "readyz").status_code == 503
        assert _get(server, "api/status").json()["failure"]["error"] == "ValueError: no"
        for worker in workers:
            worker.send(m.Goodbye(worker.rank))
        assert server.wait() == 1


def test_status_and_history_are_json_even_with_nan(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        workers = server.joined()
        workers[0].send(report(step=10))
        scalars = {"train_loss": float("nan"), "gradient_norm": float("inf")}
        workers[0].send(report(step=20, num_steps=10, num_samples=320, scalars=scalars))
        workers[0].send(m.StatusRequest())
        told = workers[0].expect(m.StatusReply).status
        status = _get(server, "api/status").json()
        assert status["step"] == told["step"] == 20
        assert status["train_loss"] is None and told["train_loss"] is None and status["gradient_norm"] is None
        assert status["learning_rate"] == 0.1
        assert status["samples"] == 320 and status["samples_per_second"] == 16
        assert status["ranks"][0]["backward_seconds_mean"] == pytest.approx(150e-6)
        assert _get(server, "api/history").json() == {"train_loss": [[10, 0.5], [20, None]], "eval_loss": []}


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        page = _get(server, "")
        assert page.headers["content-type"].startswith("text/html")
        assert "api/status" in page.text
        for outside in ("src=", "@import", '<link rel="stylesheet', "https:"):
            assert outside not in page.text


def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        workers = server.joined()
        before = {family.name for family in text_string_to_metric_families(_get(server, "metrics").text)}
        assert "ddp_bp_train_loss" not in before and "ddp_bp_step" not in before
        workers[0].send(report(0))
        workers[1].send(report(1))
        workers[0].send(m.Evaluation(10, 1, 0.25, 0.9, 100, 0.1))
        for worker in workers:
            worker.send_checkpoint(10, "final")
        assert workers[0].expect(m.CheckpointDone).ok
        answer = _get(server, "metrics", accept="text/plain")
        openmetrics = _get(server, "metrics", accept="application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["ddp_bp_backward_seconds"].type == "histogram"
    samples = {
        (one.name, *sorted(one.labels.items())): one.value for one in families["ddp_bp_backward_seconds"].samples
    }
    assert samples[("ddp_bp_backward_seconds_count", ("rank", "1"))] == 5
    assert samples[("ddp_bp_backward_seconds_bucket", ("le", "0.0001"), ("rank", "0"))] == 0
    assert samples[("ddp_bp_backward_seconds_bucket", ("le", "0.0002"), ("rank", "0"))] == 5
    assert samples[("ddp_bp_backward_seconds_sum", ("rank", "0"))] == pytest.approx(750e-6)
    one = {sample.name: sample.value for family in families.values() for sample in family.samples if not sample.labels}
    assert one["ddp_bp_samples_total"] == 160 and one["ddp_bp_steps_total"] == 5
    assert one["ddp_bp_nonfinite_steps_total"] == 0
    assert one["ddp_bp_eval_accuracy"] == 0.9 and one["ddp_bp_workers_connected"] == 2
    assert one["ddp_bp_checkpoint_bytes_total"] == one["ddp_bp_checkpoint_last_bytes"] > 0
    assert one["ddp_bp_ledger_gaps_total"] == 0
    assert one["ddp_bp_checkpoint_last_step"] == 10 and one["ddp_bp_checkpoint_every_steps"] == 0
    assert one["ddp_bp_run_directory_size_bytes"] >= one["ddp_bp_run_directory_free_bytes"] > 0
    assert one["ddp_bp_start_timestamp_seconds"] == pytest.approx(time.time(), abs=60)
    results = {sample.labels["result"]: sample.value for sample in families["ddp_bp_checkpoints"].samples}
    assert results == {"ok": 1, "failed": 0, "dropped": 0}
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(openmetrics.text)} >= {"ddp_bp_steps", "ddp_bp_step_seconds"}
    promtool = shutil.which("promtool")
    if promtool is not None:
        lint = subprocess.run(
            [promtool, "check", "metrics"], input=answer.text, text=True, capture_output=True, timeout=30
        )
        assert lint.returncode == 0, lint.stdout + lint.stderr


def test_how_a_job_ended_can_be_read_for_a_while(tmp_path: Path) -> None:
    with running(tmp_path, linger_seconds=60.0) as server:
        worker, other = server.joined()
        worker.send(m.Finished(0, {"steps": 10}))
        assert worker.expect(m.Acknowledged).of == "finished"
        worker.send(m.Goodbye(0))
        other.send(m.Goodbye(1))
        ended = 'ddp_bp_state{state="finished"} 1.0'
        deadline = time.monotonic() + 10
        while ended not in _get(server, "metrics").text:
            assert time.monotonic() < deadline
        server.end_parent()
        assert server.wait() == 0


PROMETHEUS = {"x-prometheus-scrape-timeout-seconds": "10"}
"""What a Prometheus says that comes every 15 s, which is longer than these tests last."""


def _end(server: RunningServer) -> None:
    worker, other = server.joined()
    worker.send(m.Finished(0, {"steps": 10}))
    assert worker.expect(m.Acknowledged).of == "finished"
    worker.send(m.Goodbye(0))
    other.send(m.Goodbye(1))


def test_a_job_that_has_ended_stays_until_prometheus_has_seen_it(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert 'ddp_bp_state{state="waiting"} 1.0' in _get(server, "metrics", **PROMETHEUS).text
        assert _get(server, "api/status").json()["lingers_seconds"] == 0
        _end(server)
        assert 10 < _get(server, "api/status").json()["lingers_seconds"] < 20
        # Meanwhile tools get to know as well how it has ended.
        with ToolClient(server.address.address, "r1") as tool:
            assert tool.status()["state"] == "finished"
        assert 'ddp_bp_state{state="finished"} 1.0' in _get(server, "metrics", **PROMETHEUS).text
        assert server.wait() == 0


def test_one_that_was_stopped_stays_as_well_and_a_second_stop_ends_that(tmp_path: Path) -> None:
    with running(tmp_path, parent_fd=None) as server, ToolClient(server.address.address, "r1") as tool:
        workers = server.joined()
        _get(server, "metrics", **PROMETHEUS)
        tool.stop("user")
        for worker in workers:
            worker.expect(m.Stop)
            worker.send(m.Goodbye(worker.rank))
        assert 10 < _get(server, "api/status").json()["lingers_seconds"] < 20
        tool.stop("user")
        assert server.wait() == 0


@pytest.mark.parametrize("goes_on", [True, False], ids=["to go on", "failed"])
def test_one_that_may_be_started_again_does_not_stay(tmp_path: Path, goes_on: bool) -> None:
    with running(tmp_path) as server, ToolClient(server.address.address, "r1") as tool:
        workers = server.joined()
        _get(server, "metrics", **PROMETHEUS)
        if goes_on:
            tool.stop("respawn")
        else:
            workers[0].send(m.Failure(0, 7, "ValueError: no", "Traceback"))
        for worker in workers:
            worker.send(m.Goodbye(worker.rank))
        began = time.monotonic()
        assert server.wait() == (0 if goes_on else 1)
        assert time.monotonic() - began < 5


def test_a_read_by_somebody_else_keeps_no_job(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for timeout in ("", "never", "nan", "-1"):
            assert _get(server, "metrics", **{"x-prometheus-scrape-timeout-seconds": timeout}).status_code == 200
        _end(server)
        began = time.monotonic()
        assert server.wait() == 0
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("which", ["port", "http_port"])
def test_an_occupied_port_is_named(tmp_path: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=rf"port {port} on 127.0.0.1 cannot be used.*choose another"):
            RunningServer(tmp_path, **{which: port})
    assert not (tmp_path / ADDRESS_FILE).exists()


def test_an_unknown_host_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="host"):
        RunningServer(tmp_path, host="nowhere.invalid")


def test_a_run_directory_takes_one_job_at_a_time(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with pytest.raises(InputError, match="in use by another job"):
            RunningServer(tmp_path)
        assert read_address(tmp_path) == server.address
    with running(tmp_path):
        pass


def test_rubbish_and_strangers_are_told_and_counted(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        stranger = server.worker(0)
        stranger.send_raw(b"\xff\x00", b"x")
        assert "cannot be read" in stranger.expect(m.Refused).reason
        other = server.worker(0, run_id="other")
        other.send(other.hello)
        assert "serves run 'r1', not 'other'" in other.expect(m.Refused).reason
        worker = server.joined()[0]
        worker.send(m.Goodbye(1))
        worker.send(m.StatusRequest())
        assert worker.expect(m.StatusReply).status["ranks"][1]["connected"]
        assert "ddp_bp_messages_rejected_total 3.0" in _get(server, "metrics").text


def test_a_rank_that_vanishes_is_noticed(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        workers = server.joined()
        workers[1].close()
        workers[0].expect(m.Heartbeat)
        workers[0].expect(m.Heartbeat)
        workers[0].send(m.StatusRequest())
        status = workers[0].expect(m.StatusReply).status
        assert [rank["connected"] for rank in status["ranks"]] == [True, False]
        assert "rank 1 is not connected" in _get(server, "readyz").text


def test_the_end_of_the_parent_ends_it_after_writing(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        worker = server.joined()[0]
        for step in range(200):
            worker.send(m.LedgerRecords(0, [json.dumps({"step": step})], step, "ab"))
        server.end_parent()
        assert server.wait() == 1
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 200


def test_without_a_parent_it_ends_when_every_rank_is_silent(tmp_path: Path) -> None:
    with running(tmp_path, parent_fd=None, worker_timeout_seconds=0.3) as server:
        server.joined()
        assert server.wait() == 1


def test_tools_ask_for_status_checkpoint_and_stop(tmp_path: Path) -> None:
    with running(tmp_path) as server, ToolClient(server.address.address, "r1") as tool:
        assert tool.status()["state"] == "waiting"
        refused = tool.request_checkpoint()
        assert not refused.ok and "waiting" in refused.message
        workers = server.joined()

        answers: list[m.CheckpointDone] = []
        asking = threading.Thread(target=lambda: answers.append(tool.request_checkpoint()))
        asking.start()
        take = workers[0].expect(m.TakeCheckpoint)
        for worker in workers:
            worker.send_checkpoint(3, take.request_id)
        asking.join(DEADLINE_SECONDS)
        assert answers[0].ok and answers[0].step == 3

        tool.stop("SIGINT")
        assert [worker.expect(m.Stop).reason for worker in workers] == ["SIGINT", "SIGINT"]
        assert tool.status()["state"] == "stopping"
        for worker in workers:
            worker.send(m.Goodbye(worker.rank))
        assert server.wait() == 0


def test_a_number_of_ranks_is_known_to_the_next_coordinator_once_it_is_acknowledged(tmp_path: Path) -> None:
    with running(tmp_path, most_workers=4) as server:
        server.joined()
        with ToolClient(server.address.address, "r1") as tool:
            tool.scale(3)
            memory = read_memory(tmp_path)
            assert memory is not None and memory.wanted_world_size == 3


def test_tools_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="no job is running"):
        read_address(tmp_path)
    with running(tmp_path) as server:
        with ToolClient(server.address.address, "other") as tool, pytest.raises(AddressError, match="serves run 'r1'"):
            tool.status()
        gone = server.address.address
    with (
        ToolClient(gone, "r1", timeout_seconds=0.2) as tool,
        pytest.raises(AddressError, match="no coordinator answers"),
    ):
        tool.status()
    with pytest.raises(AddressError, match="no address"):
        ToolClient("nonsense", "r1")


def test_a_checkpoint_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        workers = server.joined()
        (tmp_path / "checkpoints").write_text("in the way")
        for worker in workers:
            worker.send_checkpoint(3, "step-3")
        done = workers[1].expect(m.CheckpointDone)
        assert not done.ok and done.step == 3 and "could not be written" in done.message
        (tmp_path / "checkpoints").unlink()
        for worker in workers:
            worker.send_checkpoint(4, "step-4")
        assert workers[1].expect(m.CheckpointDone).ok
        checkpoints = _get(server, "api/status").json()["checkpoints"]
        assert (checkpoints["count"], checkpoints["failures"], checkpoints["last_step"]) == (1, 1, 4)
