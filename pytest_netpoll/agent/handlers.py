"""What each command of protocol.py does. pytest_netpoll/meter/messages.py has the types of its answers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import constants
import protocol
from bpf import ready_probes
from counters import (
    delays,
    mutexes,
    offenders,
    parking,
    recorder,
    run_queues,
    sampler,
    scheduler_memory,
    throttling,
    timeline,
    windows,
)
from processes import goroutines, proc, watched

if TYPE_CHECKING:
    from bpf.program import Kernel
    from processes.watched import Process
    from security.privileges import Invoker

MAX_SETTLE_MS = 1000
REST = 1  # s without a window, after which no descriptors are kept open for the next one


class Evidence(NamedTuple):
    """The evidence that a window records. unclaimed: descriptors whose events found nobody. io_stacks: the
    stack of one futile I/O call in this many, 0 for none. io_calls: of any I/O calls, not only futile ones.
    cpu_samples: what uses the CPU. woken: where the goroutines that one poll in this many woke were parked, 0
    for none. held_writes: writes held back by TCP. mutexes: goroutines that wait for a mutex.
    """

    unclaimed: bool
    io_stacks: int
    io_calls: bool
    cpu_samples: bool
    woken: int
    held_writes: bool
    mutexes: bool


class Agent:
    """Answers the commands. may_watch: whether the user may watch a process."""

    def __init__(
        self, kernel: Kernel, timers: sampler.Timers, user: Invoker, may_watch: Callable[[int], bool]
    ) -> None:
        self._kernel = kernel
        self._timers = timers
        self._windows = windows.Windows(kernel)
        self._processes = watched.Processes(kernel, self._windows, may_watch)
        self._at_open: dict[int, dict[int, tuple[int, int]]] = {}  # window -> {root: (ns used, ns waited)}
        self._dropped: dict[int, dict[int, int | None]] = {}  # window -> {namespace: datagrams}
        self._timelines: dict[int, timeline.Timeline] = {}  # by window
        self._evidence: dict[int, Evidence] = {}  # by window
        self._probes = ready_probes.Probes(kernel, user, may_watch)
        self._recorder = recorder.Recorder(kernel)
        self._schedulers = run_queues.Schedulers(kernel.is_current, self._recorder.look)
        self._throttling = throttling.Throttling()
        self._parking = parking.Parking(kernel)
        self._mutexes = mutexes.Mutexes(kernel.is_current, self._schedulers.place)
        self._looking: sampler.Timer | None = None  # while a window asks for waits for mutexes
        self._sampling: list[sampler.Timer] = []  # while a window is open
        self._resting: sampler.Timer | None = None  # while none is

    def watch(self, pid: int) -> dict[str, Any]:
        self._processes.watch(pid)
        return {"processes": [self._about(p) for p in self._processes.of(pid)]}

    def unwatch(self, pid: int) -> dict[str, Any]:
        self._processes.unwatch(pid)
        self._probes.release(self._live())
        return {}

    def programs(self) -> dict[str, Any]:
        """All watched processes, and what is known of their programs."""
        self._processes.refresh()
        return {"processes": [self._about(p) for p in self._live()]}

    def attach(self, pid: int, ready: int, deadline: int) -> dict[str, Any]:
        try:
            self._probes.attach(self._find(pid), ready, deadline)
        except ready_probes.BadPlace as error:
            raise watched.Refused(str(error), error.fix) from error
        return {}

    def learn(self, pid: int, **layout: int) -> dict[str, Any]:
        if not self._schedulers.learn(self._find(pid), scheduler_memory.Layout(**layout)):
            raise watched.Refused(f"the memory of process {pid} does not hold the scheduler's counters")
        return {}

    def _find(self, pid: int) -> Process:
        self._processes.refresh()
        for process in self._live():
            if process.pid == pid and not process.exited and not process.foreign:
                return process
        raise watched.Refused(f"process {pid} is not watched")

    def parked(self, pid: int) -> dict[str, Any]:
        """Who is parked on descriptors now in the root's processes."""
        self._refresh()
        processes = [p for p in self._processes.of(pid) if not p.exited and not p.foreign]
        if not processes:
            raise watched.Refused(f"process {pid} is not watched")
        try:
            return {"processes": [{"pid": p.pid, **self._parking.now(p)} for p in processes]}
        except goroutines.Unreadable as error:
            raise watched.Refused(f"its goroutines can't be read: {error}") from error

    def open(
        self,
        ready_stacks: int,
        unclaimed: int,
        io_stacks: int,
        io_calls: int,
        cpu_samples: int,
        parked: int,
        woken: int,
        held_writes: int,
        mutexes: int,
    ) -> dict[str, Any]:
        self._refresh()
        self._processes.reap()
        before = self._parking.before(self._live()) if parked else None
        if mutexes:
            self._mutexes.prepare(self._live())
        self._sample(states=False)
        self._recorder.prepare()
        evidence = Evidence(
            unclaimed=bool(unclaimed),
            io_stacks=io_stacks,
            io_calls=bool(io_calls),
            cpu_samples=bool(cpu_samples),
            woken=woken,
            held_writes=bool(held_writes),
            mutexes=bool(mutexes),
        )
        self._keep([*self._evidence.values(), evidence])
        try:
            window = self._windows.open(self._processes.slots())
        except windows.TooMany as error:
            raise watched.Refused(str(error)) from error
        self._recorder.open(window)
        self._at_open[window] = self._times()
        self._dropped[window] = self._dropped_datagrams()
        self._throttling.open(window)
        self._timelines[window] = timeline.Timeline(self._beginning())
        if before is not None:
            self._parking.open(window, before)
        self._probes.open(window, ready_stacks)
        self._evidence[window] = evidence
        self._schedulers.open(window, self._live())
        if evidence.mutexes:
            self._mutexes.open(window)
            self._look_for_waiters(True)
        self._cancel_rest()
        if not self._sampling:
            self._sampling = [
                self._timers.every(timeline.PERIOD, self._tick),
                self._timers.every(run_queues.PERIOD, self._sample_schedulers),
            ]
        return {"window": window}

    def close(self, window: int, settle_ms: int) -> dict[str, Any]:
        answer, _ = self._end(window, settle_ms, self._windows.close)
        del self._at_open[window], self._dropped[window], self._timelines[window]
        self._schedulers.close(window)
        self._throttling.close(window)
        self._parking.close(window)
        self._mutexes.close(window)
        self._look_for_waiters(self._mutexes.any_open)
        self._probes.close(window)
        del self._evidence[window]
        self._keep(self._evidence.values())
        if not self._windows.any_open:
            for timer in self._sampling:
                self._timers.cancel(timer)
            self._sampling = []
            self._resting = self._timers.every(REST, self._rest)
            self._kernel.forget_culprits()
        self._processes.reap()
        self._probes.reap(self._live())
        return answer

    def _keep(self, wanted: Collection[Evidence]) -> None:
        """Records what any of the open windows asks for."""
        every = max((evidence.io_stacks for evidence in wanted), default=0)
        self._kernel.keep(
            bool(wanted),
            any(evidence.unclaimed for evidence in wanted),
            bool(every),
            any(evidence.io_calls for evidence in wanted),
            any(evidence.held_writes for evidence in wanted),
        )
        self._kernel.sample(constants.SAMPLE_IO_CALLS, every)
        self._kernel.sample(constants.SAMPLE_WOKEN, max((evidence.woken for evidence in wanted), default=0))
        self._kernel.cpu.enable(any(evidence.cpu_samples for evidence in wanted))

    def _look_for_waiters(self, wanted: bool) -> None:
        if wanted and self._looking is None:
            self._looking = self._timers.every(
                mutexes.PERIOD, lambda: self._mutexes.look(self._live()), mutexes.MOST_TIME, uneven=True
            )
        elif not wanted and self._looking is not None:
            self._timers.cancel(self._looking)
            self._looking = None

    def lap(self, window: int, settle_ms: int) -> dict[str, Any]:
        """Ends the window and opens the next one, of the same number, at the same cut."""
        self._refresh()
        # Processes that ended before the cut can't count in the new window; dropping them lets one watch for
        # hours.
        ended = [p for p in self._live() if p.exited]
        answer, cut = self._end(window, settle_ms, self._windows.lap)
        self._timelines[window] = timeline.Timeline(self._beginning())
        if len(self._at_open) == 1:
            offenders.forget(self._kernel, cut)
            self._processes.free(ended)
            self._probes.reap(self._live())
        return answer

    def _end(
        self, window: int, settle_ms: int, cut: Callable[[int, list[int]], windows.Window]
    ) -> tuple[dict[str, Any], int]:
        """(the answer, the first epoch after the window). cut: ends the window; CPU time starts again."""
        if window not in self._at_open:
            raise protocol.BadMessage(f"window {window!r} is not open")
        self._processes.refresh()
        closed = cut(window, self._processes.slots())
        # Children forked since then ran in the window, too, if only for its last moment.
        self._processes.refresh()
        self._processes.miss_children()
        waits = self._mutexes.lap(window, self._live())
        self._sample()
        now = self._schedulers.read(self._live())
        runtimes = self._runtimes(window)
        throttled = {root: self._throttling.as_json(window, root) for root in self._processes.roots()}
        self._throttling.lap(window)
        scheduled = self._schedulers.lap(window, self._live(), now)
        kept = self._kept(window)
        at_open, points = self._at_open[window], self._timelines[window]
        at_close = self._at_open[window] = self._times()
        dropped, self._dropped[window] = self._dropped[window], self._dropped_datagrams()
        networks = {process.root: network for network, process in self._networks()}
        self._windows.settled(closed, self._processes.slots(), min(settle_ms, MAX_SETTLE_MS) / 1000)
        banks = {p.slot: self._windows.sum(p.slot, closed) for p in self._live()}
        self._add_waiting(closed, banks)
        for process in self._live():
            if process.foreign:
                banks[process.slot].forget()
        points.add(
            closed.closed - closed.opened,
            self._by_root(lambda p, names: [banks[p.slot].counters[name] for name in names], runtimes),
        )
        offences = [kept[name] for name in kept if any(bank.counters[name] for bank in banks.values())]
        if self._evidence[window].cpu_samples:
            offences.append("cpu")
        if self._evidence[window].held_writes:
            offences.append("held")
        found = offenders.kept(self._kernel, closed, offences)
        traces = self._recorder.take(
            window, closed, {root: self._processes.of(root) for root in self._processes.roots()}
        )
        # Last, because it waits for goroutines that are at work when the window ends.
        parked = self._parking.lap(window, self._live())
        services = {}
        for root in sorted(self._processes.roots()):
            children = sum(banks[p.slot].counters.pop("children") for p in self._processes.of(root))
            unprobed = self._probes.unprobed(self._processes.of(root), closed, children)
            services[root] = [
                self._process(p, window, closed, banks[p.slot], scheduled[p.owner], found)
                for p in self._processes.of(root)
            ]
            services[root][0]["unprobed"] = unprobed
            services[root][0]["ended"] = self._processes.ended(root, closed.opened)
            for process, entry in zip(self._processes.of(root), services[root]):  # noqa: B905 - 3.9 has no strict
                entry["parked"] = parked.get(process.owner)
                entry["mutexes"] = waits.get(process.owner)
        answer = {
            "duration_ns": closed.closed - closed.opened,
            "services": services,
            "timelines": {root: points.of(root) for root in services},
            "throttled": {root: throttled[root] for root in services},
            "times": {root: watched.passed(at_open.get(root, (0, 0)), at_close[root]) for root in services},
            "traces": traces,
            "dropped_datagrams": {
                root: watched.difference(
                    dropped.get(networks.get(root, 0)), self._dropped[window].get(networks.get(root, 0))
                )
                for root in services
            },
        }
        return answer, closed.end

    def _add_waiting(self, window: windows.Window, banks: dict[int, windows.Bank]) -> None:
        owners = {p.owner: p.slot for p in self._live() if not p.exited}
        for waiting in delays.waiting(self._kernel, owners):
            banks[owners[waiting.owner]].add_waiting(waiting, window.closed)

    def _tick(self) -> None:
        self._processes.refresh()
        self._probes.follow(self._live())
        self._sample()
        for window, points in self._timelines.items():
            points.add(self._windows.age(window), self._states(window))

    def _rest(self) -> None:
        self._cancel_rest()
        for process in self._live():
            process.rest()

    def _cancel_rest(self) -> None:
        if self._resting is not None:
            self._timers.cancel(self._resting)
            self._resting = None

    def _sample(self, states: bool = True) -> None:
        for process in self._live():
            process.sample(functools.partial(self._kernel.lives, process.tgid), states)
        self._throttling.sample({root: self._processes.of(root) for root in self._processes.roots()})

    def _sample_schedulers(self) -> None:
        self._schedulers.sample(self._live())

    def _beginning(self) -> dict[int, timeline.State]:
        """A window's initial state, as of its cut."""
        began = {root: timeline.Runtime(self._throttling.grown(root)) for root in self._processes.roots()}
        return self._by_root(lambda _, names: [0] * len(names), began)

    def _states(self, window: int) -> dict[int, timeline.State]:
        runtimes = self._runtimes(window)
        return self._by_root(lambda p, names: self._windows.so_far(p.slot, window, names), runtimes)

    def _runtimes(self, window: int) -> dict[int, timeline.Runtime]:
        """{root: Runtime} for the window's interval that ends now."""
        return {
            root: timeline.Runtime(
                self._throttling.grown(root),
                *(self._schedulers.interval(window, self._processes.of(root)) or ()),
            )
            for root in self._processes.roots()
        }

    def _by_root(
        self,
        counters: Callable[[Process, Sequence[str]], list[int]],
        runtimes: Mapping[int, timeline.Runtime],
    ) -> dict[int, timeline.State]:
        """{root: State} of the processes. counters: returns the named counters of a process."""
        names = timeline.COUNTERS
        states = {}
        for root in self._processes.roots():
            processes = self._processes.of(root)
            _, waited = self._processes.times(root)
            states[root] = timeline.total(
                [counters(p, names) for p in processes],
                waited,
                sum(p.threads for p in processes),
                sum(p.running for p in processes),
                runtimes.get(root, timeline.UNKNOWN),
            )
        return states

    def _times(self) -> dict[int, tuple[int, int]]:
        return {root: self._processes.times(root) for root in self._processes.roots()}

    def _dropped_datagrams(self) -> dict[int, int | None]:
        """{network namespace: UDP datagrams with a wrong checksum so far}. Includes the agent's own, which a
        process that starts later probably shares.
        """
        found = {proc.network(os.getpid()): proc.udp_checksum_errors(os.getpid())}
        for network, process in self._networks():
            if network not in found:
                found[network] = proc.udp_checksum_errors(process.pid)
        return found

    def _networks(self) -> Iterator[tuple[int, Process]]:
        """(network namespace, process) of those that run."""
        for process in self._live():
            network = 0 if process.exited or process.foreign else proc.network(process.pid)
            if network:
                yield network, process

    def _live(self) -> list[Process]:
        return [p for root in self._processes.roots() for p in self._processes.of(root)]

    def _refresh(self) -> None:
        self._processes.refresh()
        self._processes.adopt()
        for process in self._live():
            self._processes.calibrate(process)
        self._probes.follow(self._live())

    def _about(self, process: Process) -> dict[str, Any]:
        return {
            "pid": process.pid,
            "root": process.root,
            "executable": process.executable,
            "exited": process.exited,
            "unwatched": process.unwatched,
            "foreign": process.foreign,
            "calibration": process.calibration(),
            "goready": self._probes.of(process) is not None,
            "scheduler": self._schedulers.knows(process),
        }

    def _kept(self, window: int) -> dict[str, str]:
        """{counter: the offence that it is the total of}, for the offences that the window records."""
        kept = {"spurious_wakeups": "spurious", "stale_retries": "stale"}
        evidence = self._evidence[window]
        if evidence.unclaimed:
            kept["unclaimed_events"] = "unclaimed"
        if evidence.io_stacks:
            kept["futile_calls"] = "futile"
        if evidence.io_calls:
            kept["io_calls"] = "io"
        if evidence.woken:
            kept["wakeups"] = "woken"
        if self._probes.keeps_stacks(window):
            kept["ready_calls"] = "ready"
        return kept

    def _process(
        self,
        process: Process,
        number: int,
        window: windows.Window,
        bank: windows.Bank,
        scheduled: run_queues.Scheduled,
        found: offenders.Kept,
    ) -> dict[str, Any]:
        latency_max = bank.counters.pop("latency_max")
        maxima = {name: bank.counters.pop(name) for name in delays.MAXIMA}
        for name in ("reads", "answers", *delays.SUMS):
            del bank.counters[name]  # the timeline has these
        tallies = {name: bank.counters.pop(name) for name in delays.TALLIES}
        about = self._about(process)
        culprits = offenders.culprits(self._kernel, process, found)
        if self._evidence[number].cpu_samples:
            culprits += offenders.switches(self._kernel, process, window)
        about.update(
            counters=bank.counters,
            histogram=bank.histogram,
            events_per_poll=bank.polls_by_events,
            latency_max_ns=latency_max,
            delays=None if self._kernel.no_arrivals or process.older_sockets else bank.delays.as_json(maxima),
            **tallies,
            **bank.failures.as_json(bank.counters["io_calls"]),
            offenders=culprits,
            slowest=offenders.slowest(self._kernel, process, bank.slowest, window),
            slow_answers={
                name: offenders.slowest(self._kernel, process, slow, window)
                for name, slow in bank.slow_answers.items()
            },
            **scheduled._asdict(),
            unprobed=0,
            ended=[],
            **self._probes.counted(process, window, bank.counters),
        )
        return about
