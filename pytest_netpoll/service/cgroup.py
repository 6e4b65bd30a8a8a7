"""The processes of a cgroup, measured together as if they were one service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pytest_netpoll.errors import UsageError
from pytest_netpoll.gobinary.go_version import go_version_of
from pytest_netpoll.service.spec import process_name


class Program(NamedTuple):
    """A process's program. go_version: None if it isn't Go's and so isn't measured."""

    pid: int
    name: str
    go_version: str | None


class Cgroup:
    """A cgroup v2 and those below it; what a Meter can measure (meter.processes.Watched).

    The kernel follows children from their first moment, whatever program their parent runs, so all processes
    are watched, also those that aren't Go's. Only processes moved into the cgroup from outside have to be
    searched for. A process that leaves the cgroup stays watched.
    """

    stopped = True  # no process has to exist: they come and go
    executable = ""
    go_version = None
    gomaxprocs = cpus = None  # each process has its own

    def __init__(self, path: Path) -> None:
        """UsageError if there is no such cgroup."""
        if not (path / "cgroup.procs").is_file():
            raise UsageError(
                f"{path} is not a cgroup",
                why="it has no cgroup.procs",
                fix="findmnt -t cgroup2; systemd-cgls",
            )
        if not (path / "cgroup.controllers").is_file():
            raise UsageError(
                f"{path} is not a cgroup v2", why="it has no cgroup.controllers", fix="findmnt -t cgroup2"
            )
        self.path = path
        self.name = f"cgroup {path.name}"
        self._pids: list[int] = []

    @property
    def pid(self) -> int:
        return self._pids[0] if self._pids else 0

    @property
    def programs(self) -> list[Program]:
        """The programs of its processes now: a shell may have exec'ed the service meanwhile."""
        return [Program(pid, process_name(pid), go_version_of(f"/proc/{pid}/exe")) for pid in self._pids]

    def check_alive(self, when: str) -> None:
        """Does nothing: a cgroup can't die."""

    def arrived(self) -> list[int]:
        """The processes that are new since the last call."""
        before, self._pids = self._pids, self._present()
        return [pid for pid in self._pids if pid not in before]

    def _present(self) -> list[int]:
        pids: list[int] = []
        for directory, _, _ in os.walk(self.path):
            try:
                with open(os.path.join(directory, "cgroup.procs")) as file:  # noqa: PTH118 - many times a second
                    pids += map(int, file)
            except OSError:  # gone meanwhile, or a threaded cgroup
                continue
        # 0 stands for a process of another pid namespace.
        return [pid for pid in pids if pid not in (0, os.getpid())]
