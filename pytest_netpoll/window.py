"""From services and the probe to measurements: what is watched, opened, closed and may be trusted."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pytest_netpoll import offenders, privilege, probe, slowest, timeline
from pytest_netpoll.errors import ServiceError, UnmeasuredError
from pytest_netpoll.metrics import Measurement, Snapshot
from pytest_netpoll.options import Config
from pytest_netpoll.service import Service
from pytest_netpoll.symbols import Symbolizer
from pytest_netpoll.toolchain import go_version_of

# What the agent counts as lost, and what mends it.
LOSSES = {
    "lost_fds": "descriptors beyond the table: raise --netpoll-max-fds",
    "lost_processes": "child processes beyond the table: raise --netpoll-max-processes",
    "lost_memory": "events whose memory could not be read",
}


@dataclass(frozen=True)
class Window:
    """One measured stretch, open until Meter.close.

    number: how the agent knows it. failed: why there is nothing to close. opened: on the monotonic clock, s.
    """

    agent: probe.Probe | None
    number: int
    failed: UnmeasuredError | None
    opened: float


class Meter:
    """Measures services; lives as long as the pytest session.

    Nothing here raises because measuring is impossible: the reason becomes the measurements'.
    """

    def __init__(self, config: Config, symbolizer: Symbolizer) -> None:
        self._config = config
        self._symbolizer = symbolizer
        self._probe: probe.Probe | None = None
        self._refused: UnmeasuredError | None = None
        # The processes that are, or during an open window were, a service: root pid -> service.
        self._roots: dict[int, Service] = {}
        self._not_watched: dict[int, UnmeasuredError] = {}
        self._gone: set[int] = set()
        self._open = 0

    @property
    def environment(self) -> Mapping[str, Any]:
        """What the agent said of itself and the machine; empty while there is none."""
        return self._probe.environment if self._probe is not None else {}

    @property
    def agent_pid(self) -> int | None:
        return self._probe.pid if self._probe is not None else None

    def start(self) -> None:
        """Starts the agent without waiting for it: it compiles while the services are built."""
        if self._probe is not None or self._refused is not None:
            return
        config = self._config
        try:
            argv = privilege.command(config.python, config.sudo, config.agent)
            load = {"max_processes": config.max_processes, "max_fds": config.max_fds}
            self._probe = probe.Probe(argv, load, config.agent)
        except UnmeasuredError as error:
            self._refused = error

    def stop(self) -> None:
        if self._probe is not None:
            self._probe.stop()

    def watch(self, service: Service) -> None:
        """Called with every new process of a service, as early as possible."""
        self._roots[service.pid] = service
        self._gone.discard(service.pid)
        self._watch(service.pid)

    def unwatch(self, service: Service) -> None:
        """The process has ended or is no longer ours; open windows still count what it did."""
        self._gone.add(service.pid)
        self._forget()

    def open(self) -> Window:
        """Opens a window over all services that run."""
        self._revive()
        self._open += 1
        failed, number = self._refused, 0
        if self._probe is not None:
            try:
                number = self._probe.open()
            except UnmeasuredError as error:
                failed = error
        return Window(self._probe, number, failed, time.monotonic())

    def close(self, window: Window, services: Sequence[Service]) -> list[Measurement]:
        """Closes a window: one measurement for each of the services, in their order."""
        seconds = time.monotonic() - window.opened
        answer: Mapping[str, Any] | None = None
        failed = window.failed
        if window.agent is not None and failed is None:
            try:
                answer = window.agent.close(window.number)
                seconds = answer["duration_ns"] / 1e9
            except UnmeasuredError as error:
                failed = error
        measurements = [self._measure(service, answer, failed, seconds) for service in services]
        self._open -= 1
        self._forget()
        return measurements

    def _measure(
        self,
        service: Service,
        answer: Mapping[str, Any] | None,
        failed: UnmeasuredError | None,
        seconds: float,
    ) -> Measurement:
        roots = [pid for pid, of in self._roots.items() if of is service]
        processes = [p for pid in roots for p in (answer or {"services": {}})["services"].get(str(pid), [])]
        snapshot, vain, late = Snapshot(), [], []
        intervals: list[Sequence[Sequence[Any]]] = []
        try:
            if processes:
                snapshot = reduce(operator.add, map(_snapshot, processes))
                vain = [offender for process in processes for offender in process["offenders"]]
                late = [
                    {**wakeup, "go_version": _version(process)}
                    for process in processes
                    for wakeup in process["slowest"]
                ]
                intervals = [(answer or {})["timelines"].get(str(pid), []) for pid in roots]
            unmeasured = failed.reason if failed is not None else self._distrust(service, roots, processes)
        except (ValueError, KeyError, TypeError) as error:
            unmeasured = f"the eBPF agent answered nonsense: {error!r}"
        return Measurement(
            service=service.name,
            pid=roots[-1] if roots else None,
            executable=service.executable,
            go_version=service.go_version,
            window_seconds=seconds,
            snapshot=snapshot,
            offenders=offenders.collect(vain, self._symbolizer),
            slowest=slowest.collect(late, self._symbolizer),
            timeline=timeline.collect(intervals),
            unmeasured=unmeasured,
        )

    def _distrust(
        self, service: Service, roots: Sequence[int], processes: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """Why the numbers of this service mean nothing, None when they are exact."""
        for pid in roots:
            if pid in self._not_watched:
                return self._not_watched[pid].reason
        if not service.stopped:
            try:
                service.check_alive("during the test")
            except ServiceError as error:
                return error.reason
        if not processes:
            return f"service {service.name!r} was not watched when the window opened"
        proven = [p for p in processes if p["calibration"]["layout"]]
        for process in proven:
            if process["foreign"]:
                return (
                    f"process {process['pid']} of the service became another user's, of whom pytest is told "
                    "nothing (to mend: run pytest as root)"
                )
        for process in processes:
            calibration = process["calibration"]
            if calibration["unproven"] and _is_go(process):
                count = calibration["proven"] + calibration["unproven"]
                return (
                    f"{calibration['unproven']} of {count} descriptors of process {process['pid']} "
                    f"({_version(process)}) did not decode as pollDescs; a newer pytest-netpoll may know "
                    "them (pip install --upgrade pytest-netpoll)"
                )
        go = [p for p in processes if _is_go(p)]
        for process in processes:
            # One that cannot be looked into may be Go for all that is known.
            if process not in go and process["executable"] is not None:
                continue
            why_not = process["calibration"]["why_not"]
            if why_not:
                return f"the poller of process {process['pid']} ({_version(process)}) is unknown: {why_not}"
        unwatched = sum(p["unwatched"] for p in processes)
        if unwatched:
            return f"{unwatched} not watched: {LOSSES['lost_processes']}"
        if proven:
            return self._losses(processes)
        if not go:
            return f"{service.executable or service.name} is not a Go program"
        return (
            f"no descriptor of service {service.name!r} is registered with the Go runtime's network poller "
            f"({_version(go[0])}): it never waited for the network"
        )

    @staticmethod
    def _losses(processes: Sequence[Mapping[str, Any]]) -> str | None:
        for name, what in LOSSES.items():
            lost = sum(p["counters"][name] for p in processes)
            if lost:
                return f"{lost} lost, so the numbers are not exact: {what}"
        return None

    def _watch(self, pid: int) -> None:
        self._not_watched.pop(pid, None)
        self.start()
        if self._probe is None:
            return
        try:
            self._probe.watch(pid)
        except UnmeasuredError as error:
            self._not_watched[pid] = error

    def _revive(self) -> None:
        """A new agent in place of one that died: its tests were unmeasured, the next ones need not be."""
        self.start()
        if self._probe is None or self._probe.failed is None or not self._was_ready():
            return
        self._probe.stop()
        self._probe = None
        self.start()
        for pid in self._roots:
            if pid not in self._gone:
                self._watch(pid)

    def _was_ready(self) -> bool:
        # One that never got ready would not a second time either, and costs its deadline each time.
        return bool(self.environment)

    def _forget(self) -> None:
        if self._open:
            return
        for pid in self._gone & self._roots.keys():
            del self._roots[pid]
            if self._probe is not None and self._probe.failed is None and pid not in self._not_watched:
                # A failure is noted in the probe; the next window starts a new agent.
                with contextlib.suppress(UnmeasuredError):
                    self._probe.unwatch(pid)
            self._not_watched.pop(pid, None)
        self._gone.clear()


def _snapshot(process: Mapping[str, Any]) -> Snapshot:
    counters = dict(process["counters"])
    counters["lost"] = sum(counters.pop(name) for name in LOSSES)
    counters.pop("lost_stacks")
    return Snapshot.from_json({**process, "counters": counters})


def _is_go(process: Mapping[str, Any]) -> bool:
    return go_version_of(process["executable"] or "") is not None


def _version(process: Mapping[str, Any]) -> str:
    return go_version_of(process["executable"] or "") or "not Go"
