"""Reads a service's measurement from what the agent reports when a window closes."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, TypeAlias, get_args

from pytest_netpoll.agent.constants import (
    SCHEDULER_LATENCY,
    SCHEDULER_LOCKS,
    SCHEDULER_MUTEXES,
    SCHEDULER_QUEUES,
    SCHEDULER_WAITERS,
)
from pytest_netpoll.errors import Reason, UnmeasuredError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import (
    agent_client,
    cgroups,
    checks,
    intervals,
    mutex_waits,
    offender_stacks,
    parked_groups,
    slow_stacks,
    unanswered,
)
from pytest_netpoll.meter.doubts import LOSSES, Seen, why_not_exact
from pytest_netpoll.meter.messages import Closed, Measured, Times
from pytest_netpoll.meter.processes import Watched, ended_program, runs_goroutines, version
from pytest_netpoll.meter.programs import Programs
from pytest_netpoll.meter.snapshots import read_snapshot
from pytest_netpoll.meter.window import Window
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import OPTIONAL_COUNTERS, READY_METRICS, SCHED_LATENCIES
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.service.listeners import listening_ports, network_namespace

_Field: TypeAlias = Literal[
    "dispatches", "runq_max", "p_looks", "p_running", "sched_latency", "mutex_wait", "lock_wait"
]
_FIELDS: tuple[_Field, ...] = get_args(_Field)

# What is read from the Go scheduler: field in a message, first name of its group, metrics.
_OF_THE_SCHEDULER: tuple[tuple[_Field, str, tuple[str, ...]], ...] = (
    ("dispatches", SCHEDULER_QUEUES[0], ("dispatches", "dispatches_per_event")),
    ("runq_max", SCHEDULER_QUEUES[0], ("runq_max",)),
    ("p_looks", SCHEDULER_QUEUES[0], ("p_utilization",)),
    ("sched_latency", SCHEDULER_LATENCY[0], SCHED_LATENCIES),
    ("mutex_wait", SCHEDULER_MUTEXES[0], ("mutex_wait_seconds",)),
    ("lock_wait", SCHEDULER_LOCKS[0], ("runtime_lock_wait_seconds",)),
)

# Raised for impossible numbers in an otherwise valid response.
_INVALID = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


def _not_described(what: str) -> Reason:
    """Why something of sockets can't be known on this kernel."""
    if checks.BTF.is_file():
        return Reason(
            what,
            why="the kernel's type information (BTF) lacks a member that the agent reads",
            fix="a newer version may know this kernel: pip install --upgrade pytest-netpoll",
        )
    return Reason(what, why="the kernel has no type information (BTF)", fix=checks.btf().fix)


@dataclass(frozen=True)
class Part:
    """A service in a window. roots: the processes from which it is followed. refused: why the first of those
    that could not be watched could not.
    """

    service: Watched
    roots: Sequence[int]
    refused: UnmeasuredError | None


@dataclass
class _Found:
    """What one measurement is made of, collected topic by topic. absent: metric -> why it is unknown.
    unexplained: offence -> why its evidence is missing.
    """

    unexplained: dict[str, Reason]
    processes: list[Measured] = field(default_factory=list)
    snapshot: Snapshot = field(default_factory=Snapshot)
    offenders: tuple[Offender, ...] = ()
    absent: dict[str, Reason] = field(default_factory=dict)
    quotas: cgroups.Quotas = cgroups.NOTHING
    timelines: list[Sequence[Sequence[Any]]] = field(default_factory=list)
    slow_answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    listening: frozenset[int] = frozenset()

    def change(self, **numbers: Any) -> None:
        """Replaces fields of the snapshot."""
        self.snapshot = dataclasses.replace(self.snapshot, **numbers)

    def count(self, counters: Mapping[str, int]) -> None:
        """Adds counters to the snapshot."""
        self.change(counters={**self.snapshot.counters, **counters})


@dataclass(frozen=True)
class Reader:
    """Reads measurements. environment: what the agent reported about itself and the machine. times_answers:
    whether it was asked to time answers. needs_ready_calls: whether a service without a count of its ready
    calls is unmeasured.
    """

    symbolizer: Symbolizer
    programs: Programs
    environment: Mapping[str, Any]
    times_answers: bool
    needs_ready_calls: bool

    def read(
        self,
        window: Window,
        part: Part,
        answer: Closed | None,
        failed: UnmeasuredError | None,
        seconds: float,
    ) -> Measurement:
        """The service's measurement; raises nothing. answer: the agent's, None if that failed. seconds: how
        long the window was open.
        """
        try:
            return self._read(window, part, answer, failed, seconds)
        except _INVALID as error:
            invalid = UnmeasuredError(agent_client.INVALID, why=repr(error), fix=agent_client.INVALID_FIX)
            return self._read(window, part, None, failed or invalid, seconds)

    def _read(
        self,
        window: Window,
        part: Part,
        answer: Closed | None,
        failed: UnmeasuredError | None,
        seconds: float,
    ) -> Measurement:
        found = _Found(self._unexplained(window))
        if answer is not None:
            roots = [str(pid) for pid in part.roots]
            found.processes = [process for root in roots for process in answer["services"].get(root, [])]
            found.timelines = [answer["timelines"].get(root, []) for root in roots]
            if found.processes:
                self._add_numbers(found, answer, roots)
                self._add_answers(found)
                self._add_offenders(found, window)
                if window.parked:
                    self._add_parked(found)
                if window.mutexes:
                    self._add_mutexes(found, seconds)
        late = [
            {**wakeup, "go_version": version(process)}
            for process in found.processes
            for wakeup in process["slowest"]
        ]
        service = part.service
        return Measurement(
            service=service.name,
            pid=part.roots[-1] if part.roots else None,
            executable=service.executable,
            go_version=service.go_version,
            window_seconds=seconds,
            snapshot=found.snapshot,
            offenders=found.offenders,
            slowest=slow_stacks.collect(late, self.symbolizer),
            slow_answers=slow_stacks.answers(found.slow_answers, self.symbolizer),
            timeline=intervals.collect(found.timelines),
            cgroups=found.quotas.cgroups,
            unmeasured=self._unmeasured(part, found, failed),
            absent=found.absent,
            unexplained=found.unexplained,
            gomaxprocs=service.gomaxprocs,
            cpus=service.cpus,
            listening=found.listening,
        )

    def _unexplained(self, window: Window) -> dict[str, Reason]:
        """Offence -> why requested evidence for it could not be recorded."""
        found: dict[str, Reason] = {}
        lack = self.environment.get("no_cpu_samples")
        if window.cpu_samples and lack:
            found["cpu"] = Reason(lack["what"], fix=lack["fix"])
        if not self.environment.get("sees_sockets", True):
            found["spurious"] = _not_described("sockets can't be inspected")
        if not self.environment.get("sees_held_writes", True):
            found["held"] = _not_described("it could not be recorded whether writes are held back")
        return found

    def _unmeasured(self, part: Part, found: _Found, failed: UnmeasuredError | None) -> Reason | None:
        """Why the numbers aren't exact."""
        if failed is not None:
            return failed.reason
        follows_children = bool(self.environment.get("follows_children", True))
        doubt = why_not_exact(Seen(part.service, found.processes, part.refused, follows_children))
        if doubt is None and self.needs_ready_calls and "ready_calls" in found.absent:
            return found.absent["ready_calls"].about("ready calls were not counted")
        return doubt

    def _add_numbers(self, found: _Found, answer: Closed, roots: Sequence[str]) -> None:
        """Counters, times and quotas, and why some are missing."""
        found.absent = self._absent(found.processes)
        is_go = any(map(runs_goroutines, found.processes))
        found.snapshot = reduce(operator.add, (_snapshot(process, is_go) for process in found.processes))
        found.change(**_times(answer["times"], roots))
        # A service's processes are mostly in one network namespace, so its total isn't their sum.
        dropped = [count for root in roots if (count := answer["dropped_datagrams"].get(root)) is not None]
        found.change(dropped_datagrams=max(dropped, default=None))
        quotas = cgroups.collect([answer["throttled"][root] for root in roots if root in answer["throttled"]])
        found.change(throttled_ns=quotas.ns, throttled_periods=quotas.throttled)
        found.absent |= quotas.absent
        found.quotas = quotas

    def _add_answers(self, found: _Found) -> None:
        """The slowest answers, or why answers were not timed."""
        no_arrivals = self.environment.get("no_arrivals")
        older_sockets = no_arrivals is None and any(p["delays"] is None for p in found.processes)
        if older_sockets:
            found.change(delays={})
        found.absent |= unanswered.reasons(found.snapshot, no_arrivals, self.times_answers, older_sockets)
        found.slow_answers = {
            name: [
                {**entry, "go_version": version(process)}
                for process in found.processes
                for entry in (() if older_sockets else process["slow_answers"].get(name, ()))
            ]
            for name in ("response", "queue_delay")
        }

    def _add_offenders(self, found: _Found, window: Window) -> None:
        raw = [offender for process in found.processes for offender in process["offenders"]]
        found.offenders += offender_stacks.collect(raw, self.symbolizer, found.snapshot.counters)
        ready_calls = found.snapshot.counters.get("ready_calls")
        if ready_calls is not None and window.ready_stacks:
            own = offender_stacks.runtime_ready_calls(found.offenders, ready_calls)
            found.count({"runtime_ready_calls": own})

    def _add_parked(self, found: _Found) -> None:
        parked = parked_groups.collect(found.processes, self.symbolizer)
        found.absent |= parked.absent
        found.offenders += parked.groups
        if parked.unproven is not None:
            found.unexplained["parked"] = parked.unproven
        found.count(parked.counters)
        # Usually one, however many processes there are.
        namespaces = {network_namespace(process["pid"]): process["pid"] for process in found.processes}
        found.listening = frozenset().union(*map(listening_ports, namespaces.values()))

    def _add_mutexes(self, found: _Found, seconds: float) -> None:
        waits = mutex_waits.collect(
            found.processes,
            self.symbolizer,
            round(seconds * 1e9),
            lambda process: self.programs.why_no_scheduler(process, SCHEDULER_WAITERS[0]),
        )
        why_not = found.absent.pop("mutex_wait_seconds", None)
        gone = why_not is not None and any(map(ended_program, found.processes))
        found.change(mutex_wait_ns=None if gone else waits.waited_ns, mutex_looked=True)
        why_not = why_not if gone else waits.absent
        if why_not is not None:
            found.absent["mutex_wait_seconds"] = why_not
        found.offenders += waits.offenders

    def _absent(self, processes: Sequence[Measured]) -> dict[str, Reason]:
        """Metric -> why it is unknown for one of the processes."""
        why: dict[str, Reason] = {}
        unprobed = sum(process["unprobed"] for process in processes)
        if self.programs.count_ready and unprobed:
            reason = Reason(
                f"{unprobed} child processes ended before probes could be placed in them",
                why="for users other than root, probes are placed in one process at a time",
                fix="run pytest as root",
            )
            why = dict.fromkeys(READY_METRICS, reason)
        for process in filter(runs_goroutines, processes):
            if self.programs.count_ready and process["ready_calls"] is None:
                reason = self.programs.why_no_ready_calls(process)
                why |= dict.fromkeys(("ready_calls", "runtime_ready_calls", "wakeups_per_event"), reason)
            if self.programs.count_ready and process["deadline_wakeups"] is None:
                why["deadline_wakeups"] = self.programs.why_no_deadlines(process)
            for name, group, metrics in _OF_THE_SCHEDULER:
                if process[name] is None:
                    why |= dict.fromkeys(metrics, self.programs.why_no_scheduler(process, group))
        program = next(filter(None, map(ended_program, processes)), None)
        if program is not None:
            gone = Reason(
                f"a child process that ran {program} has ended, and its memory with it",
                why="the Go runtime's own numbers can only be read from a process that runs",
                fix="let it run until the test ends, or leave out this limit",
            )
            why |= dict.fromkeys((name for *_, names in _OF_THE_SCHEDULER for name in names), gone)
        return why


def _snapshot(process: Measured, is_go: bool) -> Snapshot:
    """A process's Snapshot. is_go: whether any process of the service is Go."""
    fields: Mapping[str, Any] = {**process}
    counters = dict(process["counters"])
    counters["lost"] = sum(counters.pop(name) for name in LOSSES)
    counters.pop("lost_offenders")  # for the shares, which cover everything counted
    optional = {name: fields[name] for name in OPTIONAL_COUNTERS}
    scheduler: dict[str, Any] = {name: process[name] for name in _FIELDS}
    if is_go and not runs_goroutines(process):
        # It has no goroutines, so it adds 0 to the service's sum, not an unknown number. Anything counted
        # belongs to its children.
        optional = {name: counters.get(name, 0) for name in optional}
        nothing = {**dict.fromkeys(scheduler, 0), "sched_latency": []}
        scheduler = {name: nothing[name] if value is None else value for name, value in scheduler.items()}
    if ended_program(process):
        scheduler = dict.fromkeys(scheduler)
        optional["dispatches"] = None
    if process["unprobed"]:
        optional.update(ready_calls=None, deadline_wakeups=None)
    return read_snapshot({**fields, "counters": counters | optional, **scheduler})


def _times(times: Mapping[str, Times], roots: Sequence[str]) -> dict[str, int | None]:
    """CPU times of all processes in the window, also of ended ones, of which nothing else is known."""
    found = [times[root] for root in roots if root in times]
    used = sum(entry["cpu_ns"] for entry in found)
    waits = [waited for entry in found if (waited := entry["run_delay_ns"]) is not None]
    if used < 0 or sum(waits) < 0:
        raise ValueError(f"times {times!r:.200}")
    return {"cpu_ns": used, "run_delay_ns": sum(waits) if len(waits) == len(found) else None}
