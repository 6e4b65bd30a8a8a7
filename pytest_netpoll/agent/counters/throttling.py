"""How CPU quotas stopped processes: counters of their cgroups and of those above, v1 and v2."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from processes.watched import Process


class Counters(NamedTuple):
    """A cgroup's periods in which it wanted to run, those in which its quota stopped it, and for how many ns,
    over all CPUs.
    """

    periods: int
    throttled: int
    ns: int


class Unknown(Exception):
    """A process's quotas can't be read; the message says why."""


class Hierarchy(NamedTuple):
    """Where cgroups with the CPU controller are mounted. root: which cgroup is mounted there."""

    point: str
    root: str
    v2: bool


_MOST_ABOVE = 64  # cgroups above a process
_LONGEST = 4096  # bytes to read of a cgroup's file
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Throttling:
    """Reads the counters in each window, when asked."""

    def __init__(self) -> None:
        self._v1, self._v2 = _mounted()
        self._last: dict[str, Counters] = {}  # directory -> its counters
        # root -> ns, of the cgroup that was stopped longest in each interval
        self._grown: dict[int, int] = {}
        self._why: dict[int, str] = {}  # root -> why its quotas are unknown
        self._windows: dict[int, dict[int, dict[str, tuple[Counters, Counters]]]] = {}
        self._names: dict[str, str] = {}  # directory -> the name of its cgroup
        self._chains: dict[tuple[str, bool], list[str]] = {}

    def open(self, window: int) -> None:
        """Opens a window; call `sample` first."""
        self._windows[window] = {}

    def close(self, window: int) -> None:
        del self._windows[window]
        if not self._windows:
            self._last, self._grown, self._names, self._chains = {}, {}, {}, {}

    def sample(self, services: dict[int, list[Process]]) -> None:
        """Reads the counters. services: {root: its processes}."""
        now: dict[str, Counters | None] = {}
        self._why = {}
        for root, processes in services.items():
            longest = 0
            for directory in self._directories(root, processes):
                if directory not in now:
                    now[directory] = _counters(directory)
                new = now[directory]
                if new is None:
                    continue
                old = self._last.get(directory, new)
                longest = max(longest, new.ns - old.ns)
                for seen in self._windows.values():
                    cgroups = seen.setdefault(root, {})
                    first, _ = cgroups.get(directory, (old, new))
                    cgroups[directory] = first, new
            self._grown[root] = self._grown.get(root, 0) + longest
        self._last = {directory: new for directory, new in now.items() if new is not None}

    def grown(self, root: int) -> int | None:
        """ns for which a quota stopped the service, since an arbitrary moment; None if unknown."""
        return None if root in self._why else self._grown.get(root, 0)

    def as_json(self, window: int, root: int) -> dict[str, Any]:
        """The window until the last sample as JSON: meter.messages.Throttled."""
        found = []
        for directory, (first, last) in self._windows[window].get(root, {}).items():
            quota = _quota(directory)
            if quota is not None or last.ns > first.ns:
                found.append([self._names.get(directory, directory), *first, *last, *(quota or (None, None))])
        return {"unknown": self._why.get(root), "cgroups": found}

    def lap(self, window: int) -> None:
        """Begins the window again with the last sample."""
        self._windows[window] = {
            root: {directory: (last, last) for directory, (_, last) in cgroups.items()}
            for root, cgroups in self._windows[window].items()
        }

    def _directories(self, root: int, processes: Iterable[Process]) -> list[str]:
        found: dict[str, None] = {}
        for process in processes:
            if process.exited or process.foreign:
                continue
            try:
                found.update(dict.fromkeys(self._chain(process.pid)))
            except ProcessLookupError:
                continue  # it has ended
            except Unknown as error:
                self._why[root] = str(error)
        return list(found)

    def _chain(self, pid: int) -> list[str]:
        """The directories of the process's cgroup and those above it. Raises Unknown."""
        path, v2 = _cgroup_of(pid)
        known = self._chains.get((path, v2))
        if known is not None:
            return known
        hierarchy = self._v2 if v2 else self._v1
        if hierarchy is None:
            raise Unknown("no cgroup filesystem with the CPU controller is mounted here")
        parts = path.split("/")
        inside = hierarchy.root.rstrip("/")
        if ".." in parts or not (path == inside or path.startswith(inside + "/")):
            raise Unknown(f"its cgroup, {path}, is not visible here")
        parts = [part for part in path[len(inside) :].split("/") if part]
        chain = []
        for length in range(len(parts), -1, -1)[:_MOST_ABOVE]:
            directory = os.path.join(hierarchy.point, *parts[:length])
            self._names[directory] = inside + "/" + "/".join(parts[:length])
            chain.append(directory)
        if not _can_throttle(hierarchy, chain):
            raise Unknown("its cgroup has no counters of a CPU quota: the kernel or the container has none")
        self._chains[path, v2] = chain
        return chain


def _mounted() -> tuple[Hierarchy | None, Hierarchy | None]:
    """The hierarchy of v1 with the CPU controller, and that of v2."""
    v1 = v2 = None
    try:
        with open("/proc/self/mountinfo") as file:
            lines = file.readlines()
    except OSError:
        return None, None
    for line in lines:
        before, _, after = line.rstrip("\n").partition(" - ")
        fields, kind = before.split(), after.split(None, 2)
        if len(fields) < 5 or len(kind) < 3:
            continue
        root, point = (_ESCAPED.sub(lambda m: chr(int(m[1], 8)), field) for field in fields[3:5])
        if kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            v1 = v1 or Hierarchy(point, root, v2=False)
        elif kind[0] == "cgroup2":
            v2 = v2 or Hierarchy(point, root, v2=True)
    return v1, v2


def _cgroup_of(pid: int) -> tuple[str, bool]:
    """(path, whether it is v2's): v1 if that has the CPU controller. Raises ProcessLookupError if the process
    is gone.
    """
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError as error:
        raise ProcessLookupError(pid) from error
    paths = {controllers: path for _, controllers, path in lines}
    for controllers, path in paths.items():
        if "cpu" in controllers.split(","):
            return path, False
    if "" not in paths:
        raise Unknown("it is in no cgroup with the CPU controller")
    return paths[""], True


def _can_throttle(hierarchy: Hierarchy, chain: list[str]) -> bool:
    """Whether a quota in that directory would be seen."""
    if any(_counters(directory) is not None for directory in chain):
        return True
    # In v2 a cgroup may lack the controller. If the uppermost one has it, that means no quota.
    return hierarchy.v2 and "cpu" in (_text(f"{hierarchy.point}/cgroup.controllers") or "").split()


def _counters(directory: str) -> Counters | None:
    """The cgroup's counters; None if it has no quota or is gone."""
    found: dict[str, int] = {}
    for line in (_text(f"{directory}/cpu.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            found[name] = int(value)
    ns = found.get("throttled_time", found.get("throttled_usec", -1) * 1000)
    if ns < 0 or "nr_throttled" not in found:
        return None
    return Counters(found.get("nr_periods", 0), found["nr_throttled"], ns)


def _quota(directory: str) -> tuple[int, int] | None:
    """µs of CPU in each period, and the period's µs; None for no limit."""
    text = _text(f"{directory}/cpu.max")
    if text is None:
        quota, period = (_text(f"{directory}/cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        text = f"{quota} {period}"
    fields = text.split()
    if len(fields) != 2 or not all(map(str.isdecimal, fields)):
        return None
    return int(fields[0]), int(fields[1])


def _text(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read(_LONGEST)
    except (OSError, ValueError):
        return None
