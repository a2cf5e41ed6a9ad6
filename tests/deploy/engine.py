"""A real Docker engine of the tests' own: images, containers and networks are gone with it, and no rule of the firewall
or other setting of this machine is touched.

It runs in namespaces of its own for mounts and processes, so that one kill ends all that it has started. Containers
reach each other and show ports, but nothing outside; builds use this machine's network.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from support import REPOSITORY, child_environment, run_to_end, wait_until

# The client that comes with the engine can build both stages of an image at once; newer ones need a plugin for that.
DOCKER = "/usr/bin/docker"
CERTIFICATES = Path("/etc/ssl/certs")
_PROGRAMS = ("dockerd", DOCKER, "docker-init", "docker-compose", "mmdebstrap", "prometheus", "unshare")

# Where the engine leaves files outside of the folders that it is given.
_PRIVATE = ("/etc/docker", "/run/docker", "/run/containerd")
_START = 'for folder in {folders}; do mkdir -p "$folder" && mount -t tmpfs none "$folder" || exit; done; exec "$@"'
_ALONE = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false")

# Debian as in the official images of Python: no translations or manuals, and `python` is Python 3.11.
_SUITE = "bookworm"
_PACKAGES = "ca-certificates,python3,python3-venv"
_TRIM = 'cd "$1" && rm -r usr/share/doc usr/share/man usr/share/locale && ln -s python3 usr/bin/python'

_PROMETHEUS = """
FROM {base}
COPY {program} /bin/prometheus
RUN install -d -o nobody /prometheus
USER nobody
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


def why_not() -> str | None:
    """Why there can be no engine here, or None."""
    if os.geteuid() != 0:
        return "a Docker engine needs root"
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"needs {', '.join(missing)} (Debian: apt-get install docker.io docker-compose mmdebstrap prometheus)"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        return "the kernel gives no namespaces for a Docker engine"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlay file system for a Docker engine"
    return None


class CannotStart(Exception):
    """The engine ended at once; the text is its last word."""


class Engine:
    """An engine that runs within a `with` statement. Its images are made by `make_base` and those that follow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._group = f"ddp-bp-{os.getpid()}"
        self._existed = [path for path in _PRIVATE if Path(path).exists()]
        self.environment = {"DOCKER_HOST": f"unix://{folder / 'socket'}", "DOCKER_BUILDKIT": "1"}

    def __enter__(self) -> Engine:
        folder = self._folder
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "docker-init", "--"]
        command += ["sh", "-c", _START.format(folders=" ".join(_PRIVATE)), "sh", "dockerd"]
        command += [f"--data-root={folder / 'data'}", f"--exec-root={folder / 'exec'}", f"--pidfile={folder / 'pid'}"]
        command += ["--host", self.environment["DOCKER_HOST"], *_ALONE]
        command += ["--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self._group}"]
        log = folder / "log"
        with log.open("wb") as output:
            options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, "start_new_session": True}
            self._process = subprocess.Popen(command, env=child_environment(), **options)
        try:
            wait_until(lambda: self._process.poll() is not None or self._answers(), "the Docker engine", 30)
            if self._process.poll() is not None:
                raise CannotStart(log.read_text().strip().splitlines()[-1])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        try:
            # Networks are this machine's bridges.
            if containers := self.run("ps", "--all", "--quiet").split():
                self.run("rm", "--force", "--volumes", *containers)
            self.run("network", "prune", "--force")
        finally:
            self._end()

    def run(self, *arguments: object, timeout_seconds: float = 60) -> str:
        """What `docker ...` prints."""
        return self._run(DOCKER, *arguments, timeout_seconds=timeout_seconds)

    def inspect(self, name: str) -> dict[str, Any]:
        """All that the engine knows of an image or a container."""
        found: dict[str, Any] = json.loads(self.run("inspect", name))[0]
        return found

    def make_base(self, name: str) -> None:
        """A stand-in for the official image of Python: Debian with its own Python."""
        scratch = self._folder / "scratch"
        scratch.mkdir()
        bootstrap = f"""
            mount -t tmpfs none {scratch} && export TMPDIR={scratch} || exit
            mmdebstrap --quiet --mode=root --variant=minbase --include={_PACKAGES} --dpkgopt=force-unsafe-io \
              --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
              --customize-hook='{_TRIM}' --customize-hook='copy-in {CERTIFICATES} /etc/ssl' \
              {_SUITE} - {_debian_mirror()} | {DOCKER} import - {name}"""
        self._run("unshare", "--mount", "bash", "-o", "pipefail", "-c", bootstrap, timeout_seconds=180)

    def make_prometheus(self, name: str, base: str) -> None:
        """A stand-in for the official image of Prometheus: this machine's."""
        program = Path(str(shutil.which("prometheus"))).resolve()
        recipe = self._folder / "Dockerfile"
        recipe.write_text(_PROMETHEUS.format(base=base, program=program.name))
        self.run("build", "--network", "none", "--file", recipe, "--tag", name, program.parent)

    def make_image(self, name: str, base: str) -> None:
        """The image that is deployed, as the header of its Dockerfile says."""
        arguments = {"BASE": base, "PIP_CERT": str(CERTIFICATES / "ca-certificates.crt")}
        if index := os.environ.get("PIP_INDEX_URL"):
            arguments["PIP_INDEX_URL"] = index
        words = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        recipe = REPOSITORY / "deploy/docker/Dockerfile"
        command = ("build", "--network", "host", "--file", recipe, *words, "--tag", name, REPOSITORY)
        self.run(*command, timeout_seconds=180)

    def _run(self, *command: object, timeout_seconds: float) -> str:
        done = run_to_end([str(word) for word in command], timeout_seconds, **self.environment)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _answers(self) -> bool:
        return not run_to_end([DOCKER, "version"], 30, **self.environment).returncode

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for path in _PRIVATE:
            if path not in self._existed:
                with contextlib.suppress(OSError):
                    Path(path).rmdir()
        # Each controller may count them below whatever this process belongs to.
        walk = os.walk("/sys/fs/cgroup")
        groups = [Path(folder, self._group) for folder, names, _ in walk if self._group in names]
        wait_until(lambda: not _occupied(groups), "the end of all containers", 10)
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        shutil.rmtree(self._folder)


def _debian_mirror() -> str:
    """Where this machine gets Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(SITE)", "Identifier: Packages"]
    said = run_to_end(command, 30).stdout.splitlines()
    sites = [words[2] for words in map(str.split, said) if words[:2] == ["Debian", "main"]]
    return next((site for site in sites if not site.endswith("-security")), "")


def _occupied(groups: list[Path]) -> bool:
    return any(list_.read_text().strip() for group in groups for list_ in group.glob("**/cgroup.procs"))
