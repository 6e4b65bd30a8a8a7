"""Measures services with the probe: watches them, opens and closes windows, decides what is exact."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
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
    privilege,
    slow_stacks,
    unanswered,
)
from pytest_netpoll.meter.doubts import LOSSES, Seen, why_not_exact
from pytest_netpoll.meter.messages import Closed, Measured, Process, Times
from pytest_netpoll.meter.processes import Watched, ended_program, runs_goroutines, version
from pytest_netpoll.meter.programs import Programs
from pytest_netpoll.meter.snapshots import read_snapshot
from pytest_netpoll.model.evidence import Offence, ParkedGoroutine
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import (
    METRICS,
    OPTIONAL_COUNTERS,
    PARKED_METRICS,
    READY_METRICS,
    SCHED_LATENCIES,
)
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.options import Config
from pytest_netpoll.service import guardian
from pytest_netpoll.service.patience import Say

_Field: TypeAlias = Literal[
    "dispatches", "runq_max", "p_looks", "p_running", "sched_latency", "mutex_wait", "lock_wait"
]
_FIELDS: tuple[_Field, ...] = get_args(_Field)

# If requested, keep the stack of one ready call in this many: a stack costs several times as much as the
# probe.
READY_STACKS = 16
# The same for I/O calls; there may be a million a second.
IO_STACKS = 64
# The same for polls that wake a goroutine.
WOKEN_STACKS = 16

# Not measured unless asked for.
_ON_DEMAND = frozenset((*PARKED_METRICS, "runtime_ready_calls", "mutex_wait_seconds"))

# Seconds, at most, between an exec and the kernel's report of it.
_EXEC_PATIENCE = 1.0


def _not_described(what: str) -> Reason:
    """Why something of sockets can't be known on this kernel."""
    if checks.BTF.is_file():
        return Reason(
            what,
            why="the kernel's type information (BTF) lacks a member that the agent reads",
            fix="a newer version may know this kernel: pip install --upgrade pytest-netpoll",
        )
    return Reason(what, why="the kernel has no type information (BTF)", fix=checks.btf().fix)


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


@dataclass(eq=False)
class Window:
    """One measured stretch, open from Meter.open to Meter.close. number: the agent's. failed: why there is
    nothing to close. opened: on the monotonic clock, s. ready_stacks, cpu_samples: whether callers of ready
    calls and users of CPU time are recorded. parked: whether to look at parked goroutines. mutexes: whether
    to look for goroutines that wait for a mutex.
    """

    agent: agent_client.Probe | None
    ready_stacks: bool
    cpu_samples: bool
    parked: bool = False
    mutexes: bool = False
    number: int = 0
    failed: UnmeasuredError | None = None
    opened: float = field(default_factory=time.monotonic)
    is_open: bool = True

    @contextlib.contextmanager
    def unless_interrupted(self) -> Iterator[None]:
        """Marks the window closed if the block is interrupted (Ctrl-C, pytest-timeout): nobody else would."""
        try:
            yield
        except BaseException:
            self.is_open = False
            raise


class Meter:
    """Measures services; lives as long as the pytest session.

    Nothing here raises if measuring is impossible: the measurements carry the reason.
    """

    def __init__(
        self,
        config: Config,
        symbolizer: Symbolizer,
        say: Say | None = None,
        new_agent: Callable[[Mapping[str, int]], agent_client.Probe] | None = None,
        trace: int = 0,
    ) -> None:
        """say: called with messages about slow work. new_agent: load -> the Agent that counts; None for the
        real one, with the privileges that the options name. trace: how many records of single events windows
        keep, 0 for none.
        """
        self._config = config
        self._new_agent = new_agent or self._launch
        self._times_answers = False
        self._trace = trace
        self._say = say
        self._symbolizer = symbolizer
        self._programs = Programs(count_ready=config.goready != "off")
        self._probe: agent_client.Probe | None = None
        self._refused: UnmeasuredError | None = None
        # The processes that are, or during an open window were, a service: root pid -> service.
        self._roots: dict[int, Watched] = {}
        self._not_watched: dict[int, UnmeasuredError] = {}
        self._gone: set[int] = set()
        self._windows: list[Window] = []

    @property
    def environment(self) -> Mapping[str, Any]:
        """What the agent reported about itself and the machine; empty without an agent."""
        return self._probe.environment if self._probe is not None else {}

    @property
    def windows(self) -> Sequence[Window]:
        """The open windows."""
        self._windows = [window for window in self._windows if window.is_open]
        return self._windows

    @property
    def roots(self) -> Mapping[int, Watched]:
        """The processes that are, or during an open window were, a service."""
        return self._roots

    def processes(self) -> Sequence[Process]:
        """All processes that the agent watches, with descendants. Raises UnmeasuredError."""
        return self._probe.programs() if self._probe is not None else []

    def parked(self, service: Watched) -> list[ParkedGoroutine]:
        """The service's goroutines that are parked on descriptors now. Raises UnmeasuredError."""
        if self._refused is not None:
            raise self._refused
        found: list[ParkedGoroutine] = []
        for pid, of in self._roots.items():
            if of is service and pid not in self._gone:
                if pid in self._not_watched:
                    raise self._not_watched[pid]
                assert self._probe is not None
                found += parked_groups.now(self._probe.parked(pid), self._symbolizer)
        return found

    @property
    def agent_pid(self) -> int | None:
        return self._probe.pid if self._probe is not None else None

    def start(self, limited: Collection[str] = ()) -> None:
        """Starts the agent without waiting for it: it compiles while the services are built. limited: the
        metrics that will be judged, because timing answers takes a larger program.
        """
        if self._probe is not None or self._refused is not None:
            return
        config = self._config
        judged = {*limited, *config.compared}
        asked = config.response == "auto" and any(map(unanswered.are_timed, judged))
        self._times_answers |= asked or config.response == "on"
        try:
            self._probe = self._new_agent(
                {
                    "max_processes": config.max_processes,
                    "max_fds": config.max_fds,
                    "uprobes": int(config.goready != "off"),
                    "answers": int(self._times_answers),
                    "trace": self._trace,
                }
            )
        except UnmeasuredError as error:
            self._refused = error

    def why_not_cached(self) -> Reason | None:
        """Why --netpoll-cache=DIR will not be used, as far as known before the agent starts."""
        config = self._config
        if not isinstance(config.cache, Path) or config.mode == "off":
            return None
        try:
            argv = privilege.command(config.python, config.sudo, config.agent, config.cache)
        except UnmeasuredError:
            return None
        return privilege.why_not_cached(argv, config.cache)

    def _launch(self, load: Mapping[str, int]) -> agent_client.Probe:
        config = self._config
        argv = privilege.command(config.python, config.sudo, config.agent, config.cache)
        return agent_client.Probe(argv, load, config.agent, self._say)

    @property
    def _usable(self) -> agent_client.Probe | None:
        """The agent; None if it has failed."""
        return self._probe if self._probe is not None and self._probe.failed is None else None

    def stop(self) -> None:
        if self._probe is not None:
            self._probe.stop()

    def watch(self, service: Watched) -> Callable[[], None]:
        """Watches a service's process; call it for every new one, as early as possible. Call the result, if
        any, once a held process runs its program.
        """
        self.admit(service, service.pid)
        return partial(self._look_at_program, service.pid)

    def _look_at_program(self, pid: int) -> None:
        agent = self._usable
        if agent is None or pid in self._not_watched:
            return
        deadline = time.monotonic() + _EXEC_PATIENCE
        with contextlib.suppress(UnmeasuredError, OSError):
            while True:
                processes = agent.programs()
                # The kernel has exchanged the program, but may not have reported it yet.
                runs = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115
                seen = next((p["executable"] for p in processes if p["pid"] == pid), None)
                if seen is None or seen.endswith(runs) or time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            self._programs.prepare(agent, processes)

    def follow(self, service: Watched, pid: int) -> None:
        """Watches one more process of a service; ignores it if it has already ended."""
        if self._counts_already(service, pid):
            return
        self.admit(service, pid)
        stat = guardian.stat(pid)
        if pid in self._not_watched and (stat is None or stat.state in "ZX"):
            del self._not_watched[pid], self._roots[pid]

    def unwatch(self, service: Watched) -> None:
        """Stops watching a process that has ended or isn't ours any more; open windows still count it."""
        self._gone |= {pid for pid, of in self._roots.items() if of is service}
        if not self.windows:
            self._forget(self._gone)

    def open(self, limited: Collection[str] = (), offences: Collection[Offence] = ()) -> Window:
        """Opens a window over all services that run.

        limited: the metrics that will be judged. Some evidence is recorded only if they may need it: callers
        of ready calls (always with --netpoll-goready=on), descriptors whose events found nobody, the code
        that makes I/O calls or uses CPU time, parked goroutines, goroutines that the network wakes, and
        goroutines that wait for mutexes. offences: further evidence to record.
        """
        self._revive()
        self._retry()
        # For compared metrics, only what is not counted otherwise: evidence has a cost.
        judged = {*limited, *(self._config.compared & _ON_DEMAND)}
        wanted = {*offences, *(o for name in judged if name in METRICS for o in METRICS[name].explained_by)}
        ready_stacks = self._ready_stacks("ready" in wanted)
        window = Window(
            self._probe,
            bool(ready_stacks),
            "cpu" in wanted,
            "parked" in wanted,
            "mutex" in wanted,
            failed=self._refused,
        )
        self._windows.append(window)
        if self._probe is None:
            return window
        io_calls = "io" in wanted
        with window.unless_interrupted():
            try:
                self._programs.prepare(self._probe, self._probe.programs())
                window.number = self._probe.open(
                    ready_stacks,
                    "unclaimed" in wanted,
                    IO_STACKS if io_calls or "futile" in wanted else 0,
                    io_calls,
                    window.cpu_samples,
                    window.parked,
                    WOKEN_STACKS if "woken" in wanted else 0,
                    "held" in wanted,
                    window.mutexes,
                )
            except UnmeasuredError as error:
                window.failed = error
        window.opened = time.monotonic()
        return window

    def _ready_stacks(self, wanted: bool) -> int:
        if self._trace and self._config.goready != "off":
            return 1  # recording all of them includes the futile ones
        asked = wanted and self._config.goready == "auto"
        return READY_STACKS if asked or self._config.goready == "on" else 0

    def close(self, window: Window, services: Sequence[Watched]) -> list[Measurement]:
        """Closes a window; returns one measurement for each of the services, in order."""
        return self.end(window, services)[0]

    def end(self, window: Window, services: Sequence[Watched]) -> tuple[list[Measurement], Closed | None]:
        """As `close`, also returning the agent's answer, or None."""
        try:
            return self._end(window, services, lambda agent: agent.close(window.number))
        finally:  # Ctrl-C, pytest-timeout: nobody will close it a second time
            window.is_open = False
            if not self.windows:
                self._forget(self._gone)

    def lap(
        self, window: Window, services: Sequence[Watched], patience: float
    ) -> tuple[list[Measurement], Window]:
        """The measurements so far, and the window that continues from that cut: nothing is missed or counted
        twice. patience: seconds to wait for wakeups on their way to their syscall; the next window counts
        meanwhile. Processes that have ended are dropped, so that it can go on for hours.
        """
        gone = set(self._gone)
        settle_ms = round(patience * 1000)

        def ask(agent: agent_client.Probe) -> Closed:
            # Prepare new processes before the cut, so that the next window has all their ready calls.
            self._programs.prepare(agent, agent.programs())
            return agent.lap(window.number, settle_ms)

        with window.unless_interrupted():
            measurements, answer = self._end(window, services, ask)
        if answer is None:
            window.is_open = False
            return measurements, self.open()
        if self.windows == [window]:
            for pid in self._roots.keys() - self._not_watched.keys():
                if all(process["exited"] for process in answer["services"].get(str(pid), ())):
                    gone.add(pid)
            self._forget(gone)
        window.opened = time.monotonic()
        return measurements, window

    def _end(
        self,
        window: Window,
        services: Sequence[Watched],
        ask: Callable[[agent_client.Probe], Closed],
    ) -> tuple[list[Measurement], Closed | None]:
        """The measurements, and the agent's answer that they were made from, or None."""
        seconds = time.monotonic() - window.opened
        answer: Closed | None = None
        failed = window.failed
        if window.agent is not None and failed is None:
            try:
                answer = ask(window.agent)
                seconds = answer["duration_ns"] / 1e9
            except UnmeasuredError as error:
                failed = error
        return [self._measure(window, service, answer, failed, seconds) for service in services], answer

    def _measure(
        self,
        window: Window,
        service: Watched,
        answer: Closed | None,
        failed: UnmeasuredError | None,
        seconds: float,
    ) -> Measurement:
        try:
            return self._read(window, service, answer, failed, seconds)
        except _INVALID as error:
            invalid = UnmeasuredError(agent_client.INVALID, why=repr(error), fix=agent_client.INVALID_FIX)
            return self._read(window, service, None, failed or invalid, seconds)

    def _read(
        self,
        window: Window,
        service: Watched,
        answer: Closed | None,
        failed: UnmeasuredError | None,
        seconds: float,
    ) -> Measurement:
        roots = [pid for pid, of in self._roots.items() if of is service]
        processes: list[Measured] = []
        snapshot, vain, late = Snapshot(), [], []
        timelines: list[Sequence[Sequence[Any]]] = []
        absent: dict[str, Reason] = {}
        quotas = cgroups.NOTHING
        answers: dict[str, list[dict[str, Any]]] = {}
        unexplained = self._unexplained(window)
        if answer is not None:
            processes = [process for pid in roots for process in answer["services"].get(str(pid), [])]
            timelines = [answer["timelines"].get(str(pid), []) for pid in roots]
        if answer is not None and processes:
            absent = self._absent(processes)
            is_go = any(map(runs_goroutines, processes))
            snapshots = (_snapshot(process, is_go) for process in processes)
            snapshot = _with_times(reduce(operator.add, snapshots), answer["times"], roots)
            snapshot = _with_datagrams(snapshot, answer["dropped_datagrams"], roots)
            quotas = cgroups.collect(
                [answer["throttled"][str(pid)] for pid in roots if str(pid) in answer["throttled"]]
            )
            snapshot = dataclasses.replace(
                snapshot, throttled_ns=quotas.ns, throttled_periods=quotas.throttled
            )
            absent |= quotas.absent
            vain = [offender for process in processes for offender in process["offenders"]]
            late = [
                {**wakeup, "go_version": version(process)}
                for process in processes
                for wakeup in process["slowest"]
            ]
            no_arrivals = self.environment.get("no_arrivals")
            unknown = no_arrivals is None and any(process["delays"] is None for process in processes)
            if unknown:
                snapshot = dataclasses.replace(snapshot, delays={})
            absent |= unanswered.reasons(snapshot, no_arrivals, self._times_answers, unknown)
            answers = {
                name: [
                    {**entry, "go_version": version(process)}
                    for process in processes
                    for entry in (() if unknown else process["slow_answers"].get(name, ()))
                ]
                for name in ("response", "queue_delay")
            }
        blamed = offender_stacks.collect(vain, self._symbolizer, snapshot.counters)
        ready_calls = snapshot.counters.get("ready_calls")
        if ready_calls is not None and window.ready_stacks:
            runtimes = offender_stacks.runtime_ready_calls(blamed, ready_calls)
            counters = {**snapshot.counters, "runtime_ready_calls": runtimes}
            snapshot = dataclasses.replace(snapshot, counters=counters)
        if window.parked and processes:
            found = parked_groups.collect(processes, self._symbolizer)
            absent |= found.absent
            blamed += found.groups
            if found.unproven is not None:
                unexplained["parked"] = found.unproven
            snapshot = dataclasses.replace(snapshot, counters={**snapshot.counters, **found.counters})
        if window.mutexes and processes:
            waits = mutex_waits.collect(
                processes,
                self._symbolizer,
                round(seconds * 1e9),
                lambda process: self._programs.why_no_scheduler(process, SCHEDULER_WAITERS[0]),
            )
            why_not = absent.pop("mutex_wait_seconds", None)
            gone = why_not is not None and any(map(ended_program, processes))
            known = None if gone else waits.waited_ns
            snapshot = dataclasses.replace(snapshot, mutex_wait_ns=known, mutex_looked=True)
            why_not = why_not if gone else waits.absent
            if why_not is not None:
                absent["mutex_wait_seconds"] = why_not
            blamed += waits.offenders
        unmeasured = failed.reason if failed is not None else why_not_exact(self._seen(service, processes))
        if unmeasured is None and self._config.goready == "on" and "ready_calls" in absent:
            unmeasured = absent["ready_calls"].about("ready calls were not counted")
        return Measurement(
            service=service.name,
            pid=roots[-1] if roots else None,
            executable=service.executable,
            go_version=service.go_version,
            window_seconds=seconds,
            snapshot=snapshot,
            offenders=blamed,
            slowest=slow_stacks.collect(late, self._symbolizer),
            slow_answers=slow_stacks.answers(answers, self._symbolizer),
            timeline=intervals.collect(timelines),
            cgroups=quotas.cgroups,
            unmeasured=unmeasured,
            absent=absent,
            unexplained=unexplained,
            gomaxprocs=service.gomaxprocs,
            cpus=service.cpus,
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

    def _absent(self, processes: Sequence[Measured]) -> dict[str, Reason]:
        """Metric -> why it is unknown for one of the processes."""
        why: dict[str, Reason] = {}
        unprobed = sum(process["unprobed"] for process in processes)
        if self._programs.count_ready and unprobed:
            reason = Reason(
                f"{unprobed} child processes ended before probes could be placed in them",
                why="for users other than root, probes are placed in one process at a time",
                fix="run pytest as root",
            )
            why = dict.fromkeys(READY_METRICS, reason)
        for process in filter(runs_goroutines, processes):
            if self._programs.count_ready and process["ready_calls"] is None:
                reason = self._programs.why_no_ready_calls(process)
                why |= dict.fromkeys(("ready_calls", "runtime_ready_calls", "wakeups_per_event"), reason)
            if self._programs.count_ready and process["deadline_wakeups"] is None:
                why["deadline_wakeups"] = self._programs.why_no_deadlines(process)
            for name, group, metrics in _OF_THE_SCHEDULER:
                if process[name] is None:
                    why |= dict.fromkeys(metrics, self._programs.why_no_scheduler(process, group))
        program = next(filter(None, map(ended_program, processes)), None)
        if program is not None:
            gone = Reason(
                f"a child process that ran {program} has ended, and its memory with it",
                why="the Go runtime's own numbers can only be read from a process that runs",
                fix="let it run until the test ends, or leave out this limit",
            )
            why |= dict.fromkeys((name for *_, names in _OF_THE_SCHEDULER for name in names), gone)
        return why

    def _seen(self, service: Watched, processes: Sequence[Measured]) -> Seen:
        refusals = (self._not_watched.get(pid) for pid, of in self._roots.items() if of is service)
        follows_children = bool(self.environment.get("follows_children", True))
        return Seen(service, processes, next(filter(None, refusals), None), follows_children)

    def _counts_already(self, service: Watched, pid: int) -> bool:
        """Whether the kernel already followed it from another process of the service."""
        if self._usable is None:
            return False
        with contextlib.suppress(UnmeasuredError):
            for process in self._usable.programs():
                if process["pid"] == pid and not process["exited"]:
                    return self._roots.get(process["root"]) is service
        return False

    def admit(self, service: Watched, pid: int) -> None:
        """Watches a process of the service and its descendants."""
        self._roots[pid] = service
        self._gone.discard(pid)
        self._watch(pid)

    def _watch(self, pid: int) -> None:
        self._not_watched.pop(pid, None)
        self.start()
        if self._probe is None:
            return
        try:
            self._programs.prepare(self._probe, self._probe.watch(pid))
        except UnmeasuredError as error:
            self._not_watched[pid] = error

    def _revive(self) -> None:
        """Starts a new agent if one died: its tests were unmeasured, the next ones need not be."""
        self.start()
        if self._probe is None or self._probe.state is not agent_client.State.DIED:
            # An agent that never got ready won't the second time either, and costs its deadline each time.
            return
        self._probe.stop()
        self._probe = None
        self.start()
        for pid in self._roots:
            if pid not in self._gone:
                self._watch(pid)

    def _retry(self) -> None:
        """Watches processes that could not be watched before: there may be room now."""
        if self.windows or self._usable is None:
            return  # an open window lacked them, and has to say so
        for pid in self._not_watched.keys() - self._gone:
            self._watch(pid)

    def _forget(self, gone: set[int]) -> None:
        for pid in gone & self._roots.keys():
            del self._roots[pid]
            if self._usable is not None and pid not in self._not_watched:
                # The probe remembers a failure; the next window starts a new agent.
                with contextlib.suppress(UnmeasuredError):
                    self._usable.unwatch(pid)
            self._not_watched.pop(pid, None)
        self._gone = self._gone - gone


def _snapshot(process: Measured, is_go: bool) -> Snapshot:
    """A process's Snapshot. is_go: whether any process of the service is Go."""
    told: Mapping[str, Any] = {**process}
    counters = dict(process["counters"])
    counters["lost"] = sum(counters.pop(name) for name in LOSSES)
    counters.pop("lost_offenders")  # for the shares, which cover everything counted
    optional = {name: told[name] for name in OPTIONAL_COUNTERS}
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
    return read_snapshot({**told, "counters": counters | optional, **scheduler})


def _with_datagrams(snapshot: Snapshot, dropped: Mapping[str, int | None], roots: Sequence[int]) -> Snapshot:
    # A service's processes are mostly in one network namespace, so its total isn't their sum.
    known = [count for pid in roots if (count := dropped.get(str(pid))) is not None]
    return dataclasses.replace(snapshot, dropped_datagrams=max(known, default=None))


def _with_times(snapshot: Snapshot, times: Mapping[str, Times], roots: Sequence[int]) -> Snapshot:
    """Adds the CPU times of all processes in the window, including ended ones about which nothing else is
    known.
    """
    found = [times[str(pid)] for pid in roots if str(pid) in times]
    used = sum(entry["cpu_ns"] for entry in found)
    waits = [waited for entry in found if (waited := entry["run_delay_ns"]) is not None]
    if used < 0 or sum(waits) < 0:
        raise ValueError(f"times {times!r:.200}")
    waited = sum(waits) if len(waits) == len(found) else None
    return dataclasses.replace(snapshot, cpu_ns=used, run_delay_ns=waited)
