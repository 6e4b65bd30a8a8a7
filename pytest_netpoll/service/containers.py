"""Finds a container's process by asking docker or podman, and proves that it is on this machine."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pytest_netpoll.errors import ServiceError, UsageError
from pytest_netpoll.gobinary.go_version import go_version_of
from pytest_netpoll.service import guardian

ENGINES = ("docker", "podman")
ANSWER_SECONDS = 20.0  # for a question
RESTART_SECONDS = 60.0  # an engine gives the old process 10 s before it kills it

# Names that docker and podman allow; ids match, too. A leading dash would be an option.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_NO_SUCH = re.compile(r"no such (container|object)", re.IGNORECASE)


class _State(NamedTuple):
    """The engine's answer about a container."""

    id: str
    status: str
    pid: int
    exit_status: int


@dataclass(frozen=True)
class Container:
    """A container that an engine knows. engine: its command. Nothing is cached: the engine is asked each
    time.
    """

    name: str
    engine: str

    def pid(self) -> int:
        """The pid of its first process, which may be a shell or an init with the service below it. Raises
        ServiceError if it isn't running, or the pid isn't on this machine.
        """
        state = _inspect(self.engine, self.name)
        if state is None:
            raise ServiceError(f"there is no container {self.name!r}", why=f"{self.engine} has none")
        if state.status != "running":
            paused = state.status == "paused"
            raise ServiceError(
                f"container {self.name!r} is not running",
                why=_condition(state),
                fix=f"{self.engine} {'unpause' if paused else 'start'} {self.name}",
                detail=self._last_lines(),
            )
        if not _is_of(state.pid, state.id):
            raise ServiceError(
                f"cannot watch container {self.name!r}",
                why=f"process {state.pid}, which {self.engine} names, does not belong to it here: "
                "the engine runs on another machine, or pytest in another pid namespace",
                fix="run pytest on the engine's machine; in a container, with --pid=host",
            )
        return state.pid

    def ending(self, pid: int) -> tuple[str, str | None] | None:
        """What happened to the container whose process `pid` is gone, and what to do; None if unknown."""
        try:
            state = _inspect(self.engine, self.name)
        except ServiceError:
            return None
        if state is None:
            return "the container was removed", None
        if state.status != "running":
            return f"the container ended: {_condition(state)}", f"{self.engine} logs {self.name}"
        if state.pid == pid:
            return None  # on its way out
        return (
            f"the container was restarted, and its process is {state.pid} now instead of {pid}",
            "restart it with the service's restart(), or ask go_service for it again in each test",
        )

    def restart(self) -> None:
        """Restarts it and waits until the engine has started it. Raises ServiceError."""
        _ask(self.engine, "restart", self.name, seconds=RESTART_SECONDS)

    def output(self, began: str) -> bytes:
        """Its output since `began`, a time from `began()`; empty if the engine doesn't keep it."""
        with contextlib.suppress(ServiceError):
            return _ask(self.engine, "logs", "--since", began, self.name, merged=True).encode()
        return b""

    def _last_lines(self) -> str | None:
        with contextlib.suppress(ServiceError):
            return _ask(self.engine, "logs", "--tail", "20", self.name, merged=True).strip() or None
        return None


def find(name: object, engine: object = None) -> Container:
    """The container of that name, with the engine that knows it.

    engine: "docker", "podman" or the path of one; None for the one that knows the name.
    Raises UsageError for an invalid name, ServiceError if no engine knows it, or both do.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError("go_service: container= must be the name or id of a container", why=f"got {name!r}")
    if engine is not None and not (isinstance(engine, str) and engine.strip()):
        raise UsageError('go_service: engine= must be "docker", "podman", or a path', why=f"got {engine!r}")
    asked = [engine] if engine is not None else [command for command in ENGINES if shutil.which(command)]
    if not asked or not shutil.which(asked[0]):
        raise ServiceError(
            f"cannot look for container {name!r}",
            why=f"there is no {engine or ' and no '.join(ENGINES)} on PATH",
            fix="install the one that runs it, or give the service itself: pid=, port= or process=",
        )
    found: dict[str, Container] = {}
    refused: dict[str, ServiceError] = {}
    for command in asked:
        try:
            state = _inspect(command, name)
        except ServiceError as error:
            refused[command] = error
            continue
        if state is not None:  # podman may also be installed as docker: then it is one container
            found.setdefault(state.id, Container(name, command))
    if len(found) > 1:
        engines = [container.engine for container in found.values()]
        raise ServiceError(
            f"there is more than one container {name!r}",
            why=f"{' and '.join(engines)} have one each",
            fix=f"choose one: engine={engines[0]!r}",
        )
    if found:
        return next(iter(found.values()))
    if len(refused) == len(asked) == 1:
        raise next(iter(refused.values()))
    raise _unknown(name, [command for command in asked if command not in refused], refused.values())


def began(pid: int) -> str:
    """When the process began, in the engines' format; it printed nothing before."""
    stat = guardian.stat(pid)
    if stat is None:
        return "0s"  # it has ended already: anything before now
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    # A tick earlier, since ticks are coarse and two clocks are read here.
    seconds = booted + (stat.start - 1) / os.sysconf("SC_CLK_TCK")
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat()


def check_go(name: str, pid: int) -> None:
    """Raises ServiceError if neither the process nor its descendants are a Go program; doesn't if one is
    hidden.
    """
    stat = guardian.stat(pid)
    programs = []
    for member in sorted(guardian.family({pid: stat.start})) if stat is not None else ():
        try:
            program = os.readlink(f"/proc/{member}/exe")  # noqa: PTH115
        except FileNotFoundError:
            continue  # it ended meanwhile
        except PermissionError:
            return
        if go_version_of(f"/proc/{member}/exe") is not None:
            return
        programs.append(program)
    if programs:
        raise ServiceError(
            f"container {name!r} does not run a Go program",
            why=f"it runs {', '.join(dict.fromkeys(programs))}",
            fix="give the container of the Go service",
        )


def _unknown(name: str, asked: list[str], refused: Iterable[ServiceError]) -> ServiceError:
    reasons = [f"{' and '.join(asked)} {'has' if len(asked) == 1 else 'have'} none"] if asked else []
    reasons += [f"{error.what}: {error.why}" for error in refused]
    fix = f"see {' and '.join(f'`{command} ps --all`' for command in asked)}" if asked else None
    if "podman" in asked:
        fix = f"{fix}; podman knows only those of the user that runs it"
    return ServiceError(
        f"there is no container {name!r}",
        why="; ".join(reasons),
        fix=fix or next((error.fix for error in refused), None),
    )


def _inspect(engine: str, name: str) -> _State | None:
    """The container's state; None if the engine has no such container. ServiceError if it doesn't answer."""
    try:
        answer = _ask(engine, "container", "inspect", name)
    except _Failed as error:
        if _NO_SUCH.search(error.said):
            return None
        raise
    try:
        (about,) = json.loads(answer)
        state = about["State"]
        return _State(
            str(about["Id"]), str(state["Status"]).lower(), int(state["Pid"]), int(state["ExitCode"])
        )
    except (ValueError, LookupError, TypeError):
        raise ServiceError(
            f"{engine} cannot be asked for container {name!r}",
            why=f"`{engine} container inspect {name}` printed something unexpected: {answer:.100}",
            fix="give the service itself: pid=, port= or process=",
        ) from None


class _Failed(ServiceError):
    """The engine ended with an error. said: its output."""

    def __init__(self, engine: str, arguments: tuple[str, ...], said: str) -> None:
        self.said = said
        lines = said.strip().splitlines() or ["it printed nothing"]
        denied = "permission denied" in said.lower()
        super().__init__(
            f"`{' '.join((engine, *arguments))}` failed",
            why=lines[-1].removeprefix("Error: "),
            fix=f"run pytest as a user who may use {engine}, such as root" if denied else None,
        )


def _ask(engine: str, *arguments: str, seconds: float | None = None, merged: bool = False) -> str:
    """The engine's output. Raises _Failed if it ends with an error, ServiceError if it doesn't answer."""
    seconds = seconds or ANSWER_SECONDS
    try:
        run = subprocess.run(
            [engine, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            timeout=seconds,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise ServiceError(
            f"`{' '.join((engine, *arguments))}` timed out after {seconds:g} s",
            fix=f"see whether the engine works: {engine} ps",
        ) from None
    except OSError as error:
        raise ServiceError(f"cannot run {engine}", why=error.strerror) from None
    if run.returncode:
        raise _Failed(engine, arguments, run.stdout if merged else run.stderr)
    return run.stdout


def _condition(state: _State) -> str:
    match state.status:
        case "exited" | "stopped":
            return f"it exited with status {state.exit_status}"
        case "created" | "configured" | "initialized":
            return "it was created, but not started"
        case "restarting":
            return f"the engine is restarting it; it exited with status {state.exit_status} before"
    return f"it is {state.status}"


def _is_of(pid: int, container: str) -> bool:
    """Whether the process is the container's: its cgroup, or the engine's process above it, names the id. The
    pids of an engine elsewhere (DOCKER_HOST, a virtual machine) belong to other processes here.
    """
    stat = guardian.stat(pid)
    if pid <= 0 or stat is None:
        return False
    with contextlib.suppress(OSError):
        if container in Path(f"/proc/{pid}/cgroup").read_text():
            return True
    with contextlib.suppress(OSError):
        return container.encode() in Path(f"/proc/{stat.parent}/cmdline").read_bytes()
    return False
