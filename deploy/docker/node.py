"""What the containers of docker-compose.yml run; the image's entry point.

    serve              coordinator and workers: let mpirun in over ssh
    check              whether this container is healthy
    train [OPTION ...] launcher: wait for the workers, then `ddp-bp train` over them, with options of `train`
    anything else      `ddp-bp` with these arguments

Knows which containers there are, and nothing of training. It needs only the standard library.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

KEYS = Path("/keys/ssh")
RUNS = Path("/runs")
HOSTFILE = Path("/tmp/hostfile")
SSHD = "/usr/sbin/sshd"
SSH_PORT = 2222
CONFIG = Path(__file__).parent
COORDINATOR_PORT, HTTP_PORT = 9465, 9464
LOOK_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    """The exit code, where this process does not become another program."""
    match arguments:
        case ["serve"]:
            make_keys(KEYS)
            return become([SSHD, "-D", "-e", "-f", str(CONFIG / "sshd_config")])
        case ["check"]:
            return check()
        case ["train", *options]:
            return train(options)
        case _:
            return become(["ddp-bp", *arguments])


def become(command: list[str], **environment: str) -> int:
    """Go on as another program; it never returns."""
    os.execvpe(command[0], command, {**os.environ, **environment})


def make_keys(folder: Path) -> None:
    """The keys of this project, unless another container has made them: all or none of them are there."""
    if folder.exists():
        return
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    for name in ("host_key", "client_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ddp-bp", "-f", str(made / name)]
        subprocess.run(command, check=True)
    (made / "known_hosts").write_text(f"ddp-bp {(made / 'host_key.pub').read_text()}")
    try:
        made.rename(folder)
    except OSError:
        # Another container was faster; a folder with files in it is never replaced.
        shutil.rmtree(made)


def check() -> int:
    """0 if sshd listens and, where a job's coordinator is to answer, it does."""
    if not answers("127.0.0.1"):
        return 1
    if socket.gethostname() != "coordinator":
        return 0
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{HTTP_PORT}/healthz", timeout=3):
            return 0
    except urllib.error.HTTPError:
        return 1
    except OSError:
        # There is no job.
        return 0


def train(options: list[str]) -> int:
    """Become `ddp-bp train` on all workers that are there. Their number is that of ranks, times RANKS_PER_WORKER."""
    recipe = os.environ.get("RECIPE") or "digits"
    run_dir = RUNS / (os.environ.get("RUN") or Path(recipe).stem)
    slots, wait = os.environ.get("RANKS_PER_WORKER") or "1", os.environ.get("WAIT_SECONDS") or "60"
    for name, value in (("RANKS_PER_WORKER", slots), ("WAIT_SECONDS", wait)):
        if not value.isdigit() or int(value) < 1:
            return refuse(f"{name}: expected a whole number from 1, got {value!r}")
    workers = wait_for_workers(int(wait))
    if not workers:
        return 1
    HOSTFILE.write_text("".join(f"{address} slots={slots}\n" for address in workers))
    ssh = f"ssh -F {CONFIG / 'ssh_config'}"
    command = ["ddp-bp", "train", recipe, "--hostfile", str(HOSTFILE), "--run-dir", str(run_dir)]
    command += ["--coordinator-shell", f"{ssh} coordinator", "--set", "coordinator.host=0.0.0.0"]
    command += ["--set", f"coordinator.port={COORDINATOR_PORT}", "--set", f"coordinator.http_port={HTTP_PORT}"]
    return become([*command, *options], PRTE_MCA_plm_ssh_agent=ssh)


def wait_for_workers(wait_seconds: int) -> list[str]:
    """The addresses of all workers, once each of them answers; none, and a message, after so long."""
    deadline = time.monotonic() + wait_seconds
    while True:
        there = addresses()
        ready = [address for address in there if answers(address)]
        if ready and ready == there:
            return ready
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_SECONDS)
    silent = ", ".join(set(there) - set(ready)) or "none there at all"
    refuse(
        f"expected every container of the service `worker` to answer on port {SSH_PORT} within {wait_seconds} s; "
        f"{len(ready)} did, and these did not: {silent}; see `docker-compose logs worker`"
    )
    return []


def addresses() -> list[str]:
    """Where the containers of the service `worker` are, as the engine's name service says."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo("worker", SSH_PORT, socket.AF_INET)})
    except OSError:
        return []


def answers(address: str) -> bool:
    """Whether an SSH server greets us there."""
    try:
        with socket.create_connection((address, SSH_PORT), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def refuse(text: str) -> int:
    print(f"launcher: {text}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
