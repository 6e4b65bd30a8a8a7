"""Real container engines for tests: podman as installed, docker with the tests' own daemon."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import patiently

PREFIX = f"netpoll-test-{os.getpid()}"
# How long a container's start or end takes on a slow machine.
SECONDS = 300

# No image registry is used: all images start empty, and their content comes from this machine.
SCRATCH = """\
FROM scratch
COPY . /
"""


class NoEngine(Exception):
    """Why an engine cannot be used here."""


@dataclass
class Engine:
    """command: "docker" or "podman". env: separates it from the machine's own engine."""

    command: str
    env: Mapping[str, str]
    run_options: Sequence[str] = ()
    _made: list[str] = field(default_factory=list)

    def __call__(self, *arguments: object, check: bool = True, **options: object) -> str:
        """Its standard output. AssertionError, with its whole output, if it fails."""
        run = subprocess.run(
            [self.command, *map(str, arguments)],
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            **options,
        )
        assert not check or run.returncode == 0, f"{self.command} {arguments}:\n{run.stdout}{run.stderr}"
        return run.stdout.strip()

    def try_run(self, image: str, *command: object, options: Sequence[object] = ()) -> tuple[int, str]:
        """Runs a container to its end; returns its exit status and what it and the engine printed."""
        name = f"{PREFIX}-{len(self._made)}"
        self._made.append(name)
        arguments = ["run", "--name", name, *self.run_options, *options, image, *command]
        run = subprocess.run(
            [self.command, *map(str, arguments)],
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * SECONDS,
        )
        return run.returncode, run.stdout

    def start(self, image: str, *command: object, options: Sequence[object] = ()) -> str:
        """Starts a container with a new name, which is removed with the test; returns the name."""
        name = f"{PREFIX}-{len(self._made)}"
        self._made.append(name)
        self("run", "--detach", "--name", name, *self.run_options, *options, image, *command)
        return name

    def remove_all(self) -> None:
        for name in self._made:
            self("rm", "--force", name, check=False)

    def pid(self, name: str) -> int:
        return int(self("container", "inspect", "--format", "{{.State.Pid}}", name))


def write_tree(root: Path, programs: Mapping[str, str | Path]) -> Path:
    """A directory to build an image from: programs by their path in it, with the libraries that they load."""
    for inside, outside in programs.items():
        _copy(Path(outside), root / inside.lstrip("/"))
        libraries = subprocess.run(["ldd", outside], capture_output=True, text=True, timeout=60).stdout
        for library in re.findall(r"(/\S+) \(0x", libraries):
            _copy(Path(library), root / library.lstrip("/"))
    (root / "Dockerfile").write_text(SCRATCH)
    return root


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), target)


@contextlib.contextmanager
def engine(command: str) -> Iterator[Engine]:
    """Raises NoEngine with the reason if it is not installed or does not work here."""
    with {"podman": _podman, "docker": _docker}[command]() as made:
        try:
            yield made
        finally:
            made.remove_all()


@contextlib.contextmanager
def _podman() -> Iterator[Engine]:
    if not shutil.which("podman"):
        raise NoEngine("podman is not installed: .ci/setup test")
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "containers.conf")
        config.write_text(podman_config())
        made = Engine("podman", {"CONTAINERS_CONF": str(config)})
        _prove(made)
        yield made


def podman_config() -> str:
    """With limits that a root without CAP_SYS_RESOURCE may set, and with runc, which accepts any cgroups."""
    runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""
    manager = "" if Path("/run/systemd/system").exists() else 'cgroup_manager = "cgroupfs"\n'
    return (
        '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        f'[engine]\n{runtime}{manager}events_logger = "file"\n'
    )


@contextlib.contextmanager
def _docker() -> Iterator[Engine]:
    if os.geteuid() != 0 or not shutil.which("dockerd") or not shutil.which("docker"):
        raise NoEngine("a docker daemon of the tests' own needs root, and docker and dockerd: .ci/setup test")
    with tempfile.TemporaryDirectory(prefix="netpoll-docker-") as directory:
        host, log = f"unix://{directory}/sock", Path(directory, "log")
        options = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        paths = [f"--{name}={directory}/{place}" for name, place in options.items()]
        # Without a bridge, because the machine's own docker may have one.
        command = ["dockerd", *paths, "--host", host, "--iptables=false", "--bridge=none"]
        with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as daemon:
            try:
                made = Engine("docker", {"DOCKER_HOST": host}, run_options=["--network=host"])
                socket = Path(directory, "sock")
                patiently(lambda: socket.exists() or daemon.poll() is not None)
                if daemon.poll() is not None:
                    raise NoEngine(f"dockerd does not run here: {log.read_text().splitlines()[-1]}")
                _prove(made)
                yield made
            finally:
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(SECONDS)
                for mounted in Path(directory, "exec", "netns").glob("*"):
                    subprocess.run(["umount", mounted], stderr=subprocess.DEVNULL, timeout=SECONDS)


def _prove(made: Engine) -> None:
    """An engine may be installed on a machine whose kernel or privileges do not let it work."""
    image = f"{PREFIX}-true"
    with tempfile.TemporaryDirectory() as directory:
        write_tree(Path(directory), {"/true": shutil.which("true") or "/bin/true"})
        try:
            made("build", "--quiet", "--tag", image, directory)
            status, said = made.try_run(image, "/true")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            status, said = 1, str(error)
        finally:
            made.remove_all()
            made("rmi", "--force", image, check=False)
    if status != 0:
        raise NoEngine(f"{made.command} does not work here: {said.strip()}")
