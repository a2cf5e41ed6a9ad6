"""Several hosts on one machine: network namespaces on a bridge, each with a name, processes and an sshd of its own.

Needs root, iproute2 and OpenSSH's server. What happens in it is real: ranks are started over ssh, share neither memory
nor /proc, and talk TCP over links whose rate and delay can be set.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Of this process alone, so that several test runs on one machine do not meet.
_OWN = os.getpid() % 250
NETWORK = f"10.77.{_OWN}"
_BRIDGE = f"ddp{_OWN}br"
_PASSED_ON = ("OPENBLAS_NUM_THREADS", "PYTHONPATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
NEEDED = ("ip", "tc", "unshare", "ssh", "ssh-keygen", "/usr/sbin/sshd")


def why_not() -> str | None:
    """Why no hosts can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{', '.join(missing)} missing"
    made = subprocess.run(["ip", "netns", "add", f"ddp{_OWN}probe"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", f"ddp{_OWN}probe"], check=False)
    return None


class Hosts:
    """Hosts with addresses 10.77.X.11, 10.77.X.12, ...; they end with the block."""

    def __init__(self, count: int, folder: Path, *, have_servers: bool = True) -> None:
        """`have_servers`: whether each has an sshd from the start."""
        self._have_servers = have_servers
        self.names = [f"ddp{_OWN}h{number}" for number in range(1, count + 1)]
        self.addresses = [f"{NETWORK}.{10 + number}" for number in range(1, count + 1)]
        self._folder = folder
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hosts:
        try:
            self._make()
        except BaseException:
            self._unmake()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._unmake()

    def link(self, rate: str, delay: str) -> str:
        """Give every host's link a rate, such as 1gbit, and a delay, such as 0.2ms; what they got.

        A kernel without netem gives them a rate alone.
        """
        netem = ("netem", "delay", delay, "rate", rate, "limit", "100000")
        bucket = ("tbf", "rate", rate, "burst", "128kb", "latency", "100ms")
        got = ""
        for name in self.names:
            queue = ("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "eth0", "root")
            if subprocess.run((*queue, *netem), capture_output=True, check=False).returncode == 0:
                got = f"{rate}, {delay}"
            else:
                _run(*queue, *bucket)
                got = f"{rate}, no delay, since this kernel has no netem"
        return got

    def mpirun(
        self, slots: list[int], arguments: list[object], timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run this interpreter with `arguments` on `slots[i]` ranks of host i, by mpirun on the first one."""
        hostfile = self._folder / "hostfile"
        hostfile.write_text("".join(f"{a} slots={n}\n" for a, n in zip(self.addresses, slots, strict=False)))
        mpirun = [
            *(str(Path(sys.executable).parent / "mpirun"), "--allow-run-as-root", "--hostfile", str(hostfile)),
            *("--prefix", sys.prefix, "--bind-to", "none", "--map-by", "slot", "-n", str(sum(slots))),
            *(
                "--prtemca",
                "plm_ssh_args",
                " ".join(self._ssh_options()),
            ),
            # The hosts have the cores of one machine in common.
            *(("--mca", "mpi_yield_when_idle", "true") if sum(slots) > (os.cpu_count() or 1) else ()),
            *("--mca", "btl_tcp_if_include", f"{NETWORK}.0/24", "--prtemca", "prte_if_include", f"{NETWORK}.0/24"),
            # As on one host: ranks compute with the same kernels, and find the same modules.
            *(option for name in _PASSED_ON if name in os.environ for option in ("-x", name)),
            *(sys.executable, *map(str, arguments)),
        ]
        environment = {**os.environ, "TMPDIR": str(self._temporary(self.names[0]))}
        process = subprocess.Popen(
            self._inside(self.names[0], mpirun),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=timeout_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(mpirun, process.returncode, stdout, stderr)

    def inside(self, index: int, command: Sequence[object]) -> list[str]:
        """The command line that runs `command` on host `index`."""
        return self._inside(
            self.names[index], ["env", f"TMPDIR={self._temporary(self.names[index])}", *map(str, command)]
        )

    def environment(self) -> dict[str, str]:
        """What Open MPI, and `ddp-bp`, need to know to reach the hosts by ssh."""
        # Each host believes that its cores are its own.
        return {"PRTE_MCA_plm_ssh_args": " ".join(self._ssh_options()), "OMPI_MCA_mpi_yield_when_idle": "true"}

    def kill(self, index: int) -> None:
        """Kill everything that was started on the host over ssh, and its sshd: nobody answers there any more."""
        server = self._servers.pop(self.names[index], None)
        if server is not None:
            # The first process of the host's own process namespace takes all others with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(5)

    def start(self, index: int, mounts: Mapping[Path, Path] | None = None) -> None:
        """Start the host again. `mounts`: what it sees, and in the place of which file or folder."""
        self.kill(index)
        # Process numbers begin anew there, and with them the names of what was left behind.
        shutil.rmtree(self._temporary(self.names[index]))
        self._temporary(self.names[index])
        self._start_sshd(self.names[index], mounts)

    def cut(self, index: int, *, again: bool = False) -> None:
        """Cut the host's link so that nothing arrives or is refused; or mend it `again`."""
        _run("ip", "link", "set", f"v{self.names[index]}", "up" if again else "down")

    def processes(self, index: int) -> list[int]:
        """The processes on the host whose command line names ranks of ours."""
        told = subprocess.run(["ip", "netns", "pids", self.names[index]], capture_output=True, text=True, check=True)
        found = []
        for pid in map(int, told.stdout.split()):
            with contextlib.suppress(OSError):
                if b"--supervised" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def _make(self) -> None:
        self._key = self._folder / "key"
        for name in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name))
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "link", "set", _BRIDGE, "up")
        Path("/run/sshd").mkdir(exist_ok=True)
        for name, address in zip(self.names, self.addresses, strict=True):
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", f"v{name}", "master", _BRIDGE, "up")
            for command in (
                ("ip", "link", "set", "lo", "up"),
                ("ip", "addr", "add", f"{address}/24", "dev", "eth0"),
                ("ip", "link", "set", "eth0", "up"),
            ):
                _run("ip", "netns", "exec", name, *command)
            if self._have_servers:
                self._start_sshd(name)

    def _ssh_options(self) -> list[str]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        return ["-i", str(self._key), "-F", "/dev/null", *(word for option in options for word in ("-o", option))]

    def _start_sshd(self, name: str, mounts: Mapping[Path, Path] | None = None) -> None:
        config = self._folder / f"sshd-{name}"
        config.write_text(
            f"HostKey {self._folder / 'host_key'}\nAuthorizedKeysFile {self._folder / 'key.pub'}\nPidFile none\n"
            "PermitRootLogin yes\nStrictModes no\nUsePAM no\nLogLevel ERROR\n"
            f"SetEnv TMPDIR={self._temporary(name)} PYTHONPATH={os.environ.get('PYTHONPATH', '')}\n"
        )
        server = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
        if mounts:
            binds = " && ".join(f"mount --bind {shlex.quote(str(a))} {shlex.quote(str(b))}" for a, b in mounts.items())
            server = ["sh", "-c", f'{binds} && exec "$@"', "sh", *server]
        self._servers[name] = subprocess.Popen(self._inside(name, server), start_new_session=True)
        deadline = time.monotonic() + 10
        reach = self._inside(name, ["ssh", *self._ssh_options(), self.addresses[self.names.index(name)], "true"])
        while subprocess.run(reach, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"no sshd on {name}"
            time.sleep(0.05)

    def _temporary(self, name: str) -> Path:
        """A temporary folder of the host's own: process numbers, and so names in /tmp, repeat from host to host."""
        folder = self._folder / f"tmp-{name}"
        folder.mkdir(exist_ok=True)
        return folder

    @staticmethod
    def _inside(name: str, command: list[str]) -> list[str]:
        script = f'hostname {name}; exec "$@"'
        return ["ip", "netns", "exec", name, "unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
                "sh", "-c", script, "sh", *command]  # fmt: skip

    def _unmake(self) -> None:
        for index in range(len(self.names)):
            self.kill(index)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", _BRIDGE], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
