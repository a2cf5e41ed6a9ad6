"""The launcher's command, variables and ssh configuration of the manifests, on hosts that are set up as its pods are.

A host is a network namespace, with a host name and an /etc of its own: keys as the operator mounts them, the files of
the ConfigMap, a user `ddp`, and the names of all pods, of which the short forms lead nowhere.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hosts import Hosts, why_not
from kustomize import Manifest, expand
from support import REPOSITORY, child_environment, mpi_name, run_to_end, start, summary_of, wait_until
from test_deploy_kubernetes import KUBERNETES, of_kind, pods

pytestmark = [pytest.mark.mpi, pytest.mark.hosts]

NUM_WORKERS = 3
LAUNCHER, COORDINATOR = "ddp-bp-launcher", "ddp-bp-coordinator"
WORKERS = tuple(f"ddp-bp-worker-{number}" for number in range(NUM_WORKERS))
NAMES = (LAUNCHER, *WORKERS, COORDINATOR)
DOMAIN = "ddp-bp.ddp-bp.svc"
# The coordinator is reached by the name of its Service.
ADDRESSES = {**{name: f"{name}.{DOMAIN}" for name in (LAUNCHER, *WORKERS)}, COORDINATOR: COORDINATOR}
KEYS = "/etc/ddp-bp/keys"


class Pods:
    """A launcher, workers and a place for the coordinator, each with an /etc of its own; they end with the block."""

    def __init__(self, hosts: Hosts, manifests: list[Manifest], folder: Path) -> None:
        self._hosts, self._folder = hosts, folder
        self.spec = pods(manifests)["launcher"]["spec"]["containers"][0]
        self.ips = hosts.addresses
        self._config = next(m for m in manifests if m["metadata"]["name"] == "ddp-bp-ssh")["data"]
        assert of_kind(manifests, "MPIJob")["spec"]["sshAuthMountPath"] == KEYS
        for name in NAMES:
            self._make_etc(name)

    def command(self, index: int, command: Sequence[object]) -> list[str]:
        """The command line that runs `command` in a pod."""
        name = NAMES[index]
        upper, work = self._folder / name / "etc", self._folder / name / "work"
        script = (
            f"hostname {name} && mount -t overlay overlay -o lowerdir=/etc,upperdir={upper},workdir={work} /etc "
            f'&& export TMPDIR={self._folder / name} && exec "$@"'
        )
        return self._hosts._inside(self._hosts.names[index], ["sh", "-c", script, "sh", *map(str, command)])

    @contextlib.contextmanager
    def servers(self) -> Iterator[None]:
        """While inside, all but the launcher let it in."""
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ddp-bp/ssh/sshd_config"]
        servers = [start(self.command(index, command)) for index in range(1, len(NAMES))]
        try:
            yield
        finally:
            for server in servers:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.communicate(timeout=10)

    def lets_in(self, index: int) -> bool:
        command = ["ssh", "-F", "/etc/ddp-bp/ssh/ssh_config", ADDRESSES[NAMES[index]], "true"]
        return run_to_end(self.command(0, command), 30).returncode == 0

    def _make_etc(self, name: str) -> None:
        etc = self._folder / name / "etc"
        for part in ("ddp-bp/ssh", "ddp-bp/keys", "mpi"):
            (etc / part).mkdir(parents=True)
        (self._folder / name / "work").mkdir()
        for file, text in self._config.items():
            # Folders for temporary files are what pods do not share; here they would.
            text = text.replace("SetEnv ", f"SetEnv TMPDIR={self._folder / name} PYTHONPATH={REPOSITORY} ")
            (etc / "ddp-bp" / "ssh" / file).write_text(text)
        keys = self._folder / "keys"
        if not keys.exists():
            keys.mkdir()
            make = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", str(keys / "id_rsa")]
            subprocess.run(make, check=True, timeout=30)
            shutil.copy(keys / "id_rsa.pub", keys / "authorized_keys")
        shutil.copytree(keys, etc / "ddp-bp" / "keys", dirs_exist_ok=True)
        lines = [f"{ip} {ADDRESSES[pod]}\n" for pod, ip in zip(NAMES, self.ips, strict=True)]
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines) + f"{self.ips[NAMES.index(name)]} {name}\n")
        (etc / "mpi" / "hostfile").write_text("".join(f"{ADDRESSES[pod]} slots=1\n" for pod in WORKERS))
        # Root under the name of the image's user, who may not read an interpreter that belongs to root.
        users = Path("/etc/passwd").read_text() + f"ddp:x:0:0::{self._folder}:/bin/sh\n"
        (etc / "passwd").write_text(users)


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Pods]:
    if reason := why_not() or ("the operators' hostfile is Open MPI's" if mpi_name() != "Open MPI" else None):
        pytest.skip(reason)
    for name in ("hosts", "pods"):
        (tmp_path / name).mkdir()
    with Hosts(len(NAMES), tmp_path / "hosts", have_servers=False) as hosts:
        made = Pods(hosts, expand(KUBERNETES / "mpi-operator"), tmp_path / "pods")
        probe = run_to_end(made.command(0, ["test", "-e", "/etc/mpi/hostfile"]), 30)
        if probe.returncode != 0:
            pytest.skip(f"no /etc of a pod's own can be made here: {probe.stderr.strip()}")
        with made.servers():
            for index in range(1, len(NAMES)):
                wait_until(lambda index=index: made.lets_in(index), f"sshd of {NAMES[index]}", 20)
            yield made


def test_the_launcher_places_ranks_on_all_workers_and_the_coordinator_in_its_pod(
    launched: Pods, tmp_path: Path
) -> None:
    recipe, signs = tmp_path / "recipe.toml", tmp_path / "signs"
    signs.mkdir()
    shutil.copy(Path(__file__).parent / "deploy_models.py", tmp_path)
    model = f'[model]\nfactory = "deploy_models:signing"\noptions = {{ folder = "{signs}" }}\n'
    recipe.write_text(model + '[data]\nname = "digits"\n[train]\nshards = 3\n')
    own = {"/recipes/recipe.toml": str(recipe), "/runs/ddp-bp": str(tmp_path / "run")}
    arguments = list(launched.spec["args"])
    arguments[arguments.index("-n") + 1] = str(NUM_WORKERS)
    for here, there in own.items():
        arguments = [argument.replace(here, there) for argument in arguments]
    variables = {variable["name"]: variable["value"] for variable in launched.spec["env"] if "value" in variable}
    command = [sys.executable, "-m", "ddp_bp", *launched.spec["command"][1:], *arguments]
    result = run_to_end(launched.command(0, command), 90, **{**child_environment(), **variables})
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"
    assert summary_of(tmp_path / "run")["world_size"] == NUM_WORKERS
    # The launcher builds the model once, to check it.
    assert {sign.name for sign in signs.iterdir()} == {LAUNCHER, *WORKERS}
    coordinator = launched.ips[NAMES.index(COORDINATOR)]
    assert f"coordinator http://{coordinator}:9464/ (live page, /metrics, /api/status)" in result.stdout
