"""docker-compose.yml on a real Docker engine: the image, and training with the bits of one process."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine import DOCKER, CannotStart, Engine, why_not
from expressions import ALERTS, RULES, of_rules
from prometheus import Prometheus, free_port
from support import REPOSITORY, ddp_bp, end_tree, run_to_end, start, wait_until

from ddp_bp.cli.view import fetch_status

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

IMAGE, BASE = "ddp-bp", "stand-in"
MAX_IMAGE_BYTES = 250_000_000
# So that there is room for a base that is larger than the stand-in, as python:3.11-slim is by some 10 MB.
MAX_OWN_BYTES = 115_000_000
MAX_COLD_START_SECONDS = 20
SERVERS = ("coordinator", "worker", "prometheus")  # Grafana's image cannot be had everywhere.

# A shard for each of three workers, whose ranks stand still from step 20 of a start on while there is a file `wait`.
RECIPE = """
[model]
factory = "deploy_models:waiting"
options = { after = 20, wait = "/recipes/wait" }
[data]
name = "digits"
[train]
epochs = 3
batch_size = 72
shards = 3
[checkpoint]
every_steps = 50
"""
NUM_STEPS = 60
STOPPED = 143  # what `train` exits with after SIGTERM, with a checkpoint

KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{16}")


class Compose:
    """docker-compose with the file of the repository as it is, on an engine with all the images."""

    def __init__(self, engine: Engine, recipe: Path) -> None:
        self.engine = engine
        self._wait_file = recipe.with_name("wait")
        self.ports = {"HTTP_PORT": str(free_port()), "PROMETHEUS_PORT": str(free_port())}
        variables = {"RECIPE": f"/recipes/{recipe.name}", "RECIPES": str(recipe.parent), "BASE": BASE}
        self.environment = {**engine.environment, **self.ports, **variables, "COMPOSE_PROJECT_NAME": "ddp-bp-test"}

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Ranks that start meanwhile stand still in the middle until the block ends."""
        self._wait_file.touch()
        try:
            yield
        finally:
            self._wait_file.unlink()

    @contextlib.contextmanager
    def up(self, run: str) -> Iterator[None]:
        """`docker-compose up` for this run; it has ended at the end of the block."""
        command = self.command("up", "--detach", "--no-build", "--scale", "worker=3", "launcher", *SERVERS)
        with self.going_on(command, RUN=run):
            yield

    @contextlib.contextmanager
    def going_on(self, command: list[str], **variables: str) -> Iterator[None]:
        """A command that runs beside the block."""
        process = start(command, **self.environment, **variables)
        try:
            yield
            said = process.communicate(timeout=60)
        finally:
            end_tree(process)
        assert process.returncode == 0, f"{command}: {said}{self.log()}"

    def command(self, *arguments: str) -> list[str]:
        return ["docker-compose", "--file", str(REPOSITORY / "docker-compose.yml"), *arguments]

    def run(self, *arguments: str, timeout_seconds: float = 120, **variables: str) -> str:
        """What `docker-compose ...` prints."""
        done = run_to_end(self.command(*arguments), timeout_seconds, **{**self.environment, **variables})
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    def log(self) -> str:
        done = run_to_end(self.command("logs", "--no-color", "--tail=50"), 30, **self.environment)
        return done.stdout + done.stderr

    def containers(self, service: str) -> list[dict[str, Any]]:
        """What the engine knows of a service's containers."""
        return [self.engine.inspect(name) for name in self.run("ps", "--all", "--quiet", service).split()]

    def wait_for_step(self, run: str, step: int) -> dict[str, Any]:
        """The status of this run once the job has committed so many steps."""

        def reached() -> dict[str, Any] | None:
            status = fetch_status(f"http://127.0.0.1:{self.ports['HTTP_PORT']}")
            is_it = status is not None and status["run_dir"] == f"/runs/{run}" and status["step"] >= step
            return status if is_it else None

        status: dict[str, Any] = self.wait(reached, f"step {step} of {run}")
        return status

    def wait_for_end(self, run: str) -> dict[str, Any]:
        """The summary of this run once the launcher has ended, and not for being started again."""
        launcher = self.containers("launcher")[0]["Id"]

        def ended() -> dict[str, Any] | None:
            self.engine.run("wait", launcher, timeout_seconds=90)
            state: dict[str, Any] = self.engine.inspect(launcher)["State"]
            return state if state["Status"] == "exited" else None

        state = self.wait(ended, f"the end of {run}")
        assert state["ExitCode"] == 0, self.log()
        return self.summary(run)

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("exec", "-T", "coordinator", "cat", f"/runs/{run}/summary.json"))
        return found

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            return wait_until(condition, what, 90)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None


@dataclass
class Trained:
    """A training that nobody disturbed, on three workers."""

    cold_start_seconds: float
    samples: dict[str, float | None]
    last_samples: dict[str, float | None]
    healths: dict[str, list[str]]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the image, and with what stands in for others'."""
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        try:
            engine = stack.enter_context(Engine(tmp_path_factory.mktemp("engine")))
        except CannotStart as error:
            pytest.skip(f"a Docker engine does not run here: {error}")
        engine.make_base(BASE)
        engine.make_image(IMAGE, BASE)
        services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
        engine.make_prometheus(services["prometheus"]["image"], BASE)
        yield engine


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    shutil.copy(Path(__file__).parent / "deploy_models.py", folder)
    (folder / "recipe.toml").write_text(RECIPE)
    folder.chmod(0o755)  # containers read it as a user of their own
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def compose(engine: Engine, recipe: Path) -> Compose:
    return Compose(engine, recipe)


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of one process without containers."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    done = run_to_end(ddp_bp("train", recipe, "-n", 1, "--run-dir", run_dir, "--json"), 90)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.fixture(scope="module")
def trained(compose: Compose) -> Trained:
    with compose.standing_still():
        begin = time.monotonic()
        with compose.up("quiet"):
            compose.wait_for_step("quiet", 1)
            cold_start_seconds = time.monotonic() - begin
        prometheus = Prometheus(int(compose.ports["PROMETHEUS_PORT"]))
        compose.wait(lambda: value_of(prometheus, "ddp_bp_step"), "Prometheus")
        samples = {name: value_of(prometheus, name) for name in ("ddp_bp_step", "ddp_bp_world_size", "up")}
    summary = compose.wait_for_end("quiet")
    last = ('ddp_bp_state{state="finished"}', "ddp_bp_step", "ddp_bp_samples_total")
    last_samples = {name: value_of(prometheus, f"last_over_time({name}[1h])") for name in last}
    services = ("coordinator", "worker")
    healths = {name: [each["State"]["Health"]["Status"] for each in compose.containers(name)] for name in services}
    return Trained(cold_start_seconds, samples, last_samples, healths, summary)


def value_of(prometheus: Prometheus, expression: str) -> float | None:
    """The newest sample of the only series that this gives, if there is one already."""
    series = prometheus.query(expression) if prometheus.is_ready() else []
    return float(series[0]["value"][1]) if series else None


def assert_same(summary: dict[str, Any], alone: dict[str, Any]) -> None:
    for key in ("steps", "weights_sha256", "ledger_sha256", "train_loss", "eval_loss"):
        assert summary[key] == alone[key], key


def test_image_is_small_and_runs_without_root(engine: Engine) -> None:
    """The size is that of the whole image, Debian and Python of the stand-in included."""
    image = engine.inspect(IMAGE)
    own_bytes = image["Size"] - engine.inspect(BASE)["Size"]
    assert image["Size"] < MAX_IMAGE_BYTES, f"{image['Size'] / 1e6:.1f} MB"
    assert own_bytes < MAX_OWN_BYTES, f"{own_bytes / 1e6:.1f} MB besides the base image"
    assert image["Config"]["User"] == "ddp"
    uid = engine.run("run", "--rm", "--network", "none", "--entrypoint", "id", IMAGE, "--user")
    assert uid.strip() == "10001"


def test_image_holds_no_secrets(engine: Engine, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    engine.run("save", "--output", archive, IMAGE)
    names = []
    with tarfile.open(archive) as image:
        (manifest,) = json.load(image.extractfile("manifest.json"))
        config = image.extractfile(manifest["Config"]).read()
        for name in manifest["Layers"][1:]:
            with tarfile.open(fileobj=image.extractfile(name)) as layer:
                for member in layer:
                    names.append(member.name)
                    if member.isfile():
                        assert not KEY.search(layer.extractfile(member).read()), member.name
    assert not [name for name in names if re.search(r"ssh_host_|\.env$|\.git/|pip\.conf|^root/", name)]
    assert b"PIP_" not in config
    assert "opt/ddp_bp/bin/ddp-bp" in names


def test_container_without_its_server_is_unhealthy(engine: Engine) -> None:
    done = run_to_end([DOCKER, "run", "--rm", "--network", "none", IMAGE, "check"], 30, **engine.environment)
    assert done.returncode == 1, done.stderr


def test_three_workers_end_with_the_bits_of_one_process(trained: Trained, alone: dict[str, Any]) -> None:
    assert_same(trained.summary, alone)
    assert trained.summary["world_size"] == 3 and trained.summary["recoveries"] == 0
    assert trained.healths == {"coordinator": ["healthy"], "worker": ["healthy"] * 3}


def test_first_step_comes_soon_after_up(trained: Trained) -> None:
    assert trained.cold_start_seconds < MAX_COLD_START_SECONDS, f"{trained.cold_start_seconds:.1f} s to the first step"


def test_prometheus_has_the_series(compose: Compose, trained: Trained) -> None:
    assert trained.samples["ddp_bp_step"] in range(1, 21)
    assert (trained.samples["ddp_bp_world_size"], trained.samples["up"]) == (3, 1)
    assert list(trained.last_samples.values()) == [1, NUM_STEPS, trained.summary["samples"]]
    prometheus = Prometheus(int(compose.ports["PROMETHEUS_PORT"]))
    groups = prometheus.get("rules")["groups"]
    loaded = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert loaded == dict.fromkeys({**of_rules(RULES), **of_rules(ALERTS)}, "ok")


def test_run_goes_on_with_other_settings(compose: Compose, trained: Trained) -> None:
    compose.run("run", "--rm", "-T", "--no-deps", "launcher", "train", "--set", "train.epochs=4", RUN="quiet")
    summary = compose.summary("quiet")
    assert (summary["resumed_from_step"], summary["steps"], summary["world_size"]) == (NUM_STEPS, NUM_STEPS + 20, 3)


def test_run_gives_any_other_command(compose: Compose, trained: Trained) -> None:
    bench = ("bench", "training", "-n", "2", "--models", "tiny", "--repeats", "1", "--json")
    assert json.loads(compose.run("run", "--rm", "-T", "--no-deps", "launcher", *bench))
    listed = compose.run("exec", "-T", "coordinator", "ddp-bp", "checkpoint", "ls", "/runs/quiet", "--json")
    assert json.loads(listed)[0]["step"] >= NUM_STEPS


def test_stopped_project_goes_on_at_the_next_up_and_after_a_killed_worker(
    compose: Compose, trained: Trained, alone: dict[str, Any]
) -> None:
    with contextlib.ExitStack() as until_heard:
        until_heard.enter_context(compose.standing_still())
        with compose.up("disturbed"):
            step = compose.wait_for_step("disturbed", 10)["step"]
        # Of all containers, of which workers and coordinator must stay until the launcher has ended.
        with compose.going_on(compose.command("stop")):
            compose.wait(lambda: "SIGTERM: saving a checkpoint" in compose.log(), "the launcher to hear of its end")
            until_heard.close()
    assert compose.containers("launcher")[0]["State"]["ExitCode"] == STOPPED, compose.log()
    listed = compose.run("run", "--rm", "-T", "--no-deps", "launcher", "checkpoint", "ls", "/runs/disturbed", "--json")
    saved = max(checkpoint["step"] for checkpoint in json.loads(listed))
    assert step <= saved < NUM_STEPS
    with compose.standing_still():
        with compose.up("disturbed"):
            assert compose.wait_for_step("disturbed", saved + 1)["world_size"] == 3
        compose.engine.run("kill", compose.containers("worker")[0]["Id"])
    summary = compose.wait_for_end("disturbed")
    assert_same(summary, alone)
    assert summary["world_size"] == 2 and summary["resumed_from_step"] >= saved
