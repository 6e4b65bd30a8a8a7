"""Measures services with the agent: watches their processes, opens and closes windows."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pytest_netpoll.errors import Reason, UnmeasuredError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import agent_client, parked_groups, privilege, unanswered
from pytest_netpoll.meter.messages import Closed, Process
from pytest_netpoll.meter.processes import Watched
from pytest_netpoll.meter.programs import Programs
from pytest_netpoll.meter.reading import Part, Reader
from pytest_netpoll.meter.window import Window
from pytest_netpoll.model.evidence import Offence, ParkedGoroutine
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import METRICS, PARKED_METRICS
from pytest_netpoll.options import Config
from pytest_netpoll.service import guardian
from pytest_netpoll.service.patience import Say

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


class Meter:
    """Measures services; lives as long as the pytest session.

    Nothing here raises if measuring is impossible: the measurements carry the reason.
    """

    def __init__(
        self,
        config: Config,
        symbolizer: Symbolizer,
        say: Say | None = None,
        new_agent: Callable[[Mapping[str, int]], agent_client.Agent] | None = None,
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
        self._agent: agent_client.Agent | None = None
        self._refused: UnmeasuredError | None = None
        # The processes that are, or during an open window were, a service: root pid -> service.
        self._roots: dict[int, Watched] = {}
        self._not_watched: dict[int, UnmeasuredError] = {}
        self._gone: set[int] = set()
        self._windows: list[Window] = []

    @property
    def environment(self) -> Mapping[str, Any]:
        """What the agent reported about itself and the machine; empty without an agent."""
        return self._agent.environment if self._agent is not None else {}

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
        return self._agent.programs() if self._agent is not None else []

    def parked(self, service: Watched) -> list[ParkedGoroutine]:
        """The service's goroutines that are parked on descriptors now. Raises UnmeasuredError."""
        if self._refused is not None:
            raise self._refused
        found: list[ParkedGoroutine] = []
        for pid, of in self._roots.items():
            if of is service and pid not in self._gone:
                if pid in self._not_watched:
                    raise self._not_watched[pid]
                assert self._agent is not None
                found += parked_groups.now(self._agent.parked(pid), self._symbolizer)
        return found

    @property
    def agent_pid(self) -> int | None:
        return self._agent.pid if self._agent is not None else None

    def start(self, limited: Collection[str] = ()) -> None:
        """Starts the agent without waiting for it: it compiles while the services are built. limited: the
        metrics that will be judged, because timing answers takes a larger program.
        """
        if self._agent is not None or self._refused is not None:
            return
        config = self._config
        judged = {*limited, *config.compared}
        asked = config.response == "auto" and any(map(unanswered.are_timed, judged))
        self._times_answers |= asked or config.response == "on"
        try:
            self._agent = self._new_agent(
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

    def _launch(self, load: Mapping[str, int]) -> agent_client.Agent:
        config = self._config
        argv = privilege.command(config.python, config.sudo, config.agent, config.cache)
        return agent_client.Agent(argv, load, config.agent, self._say)

    @property
    def _usable(self) -> agent_client.Agent | None:
        """The agent; None if it has failed."""
        return self._agent if self._agent is not None and self._agent.failed is None else None

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop()

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
            self._agent,
            bool(ready_stacks),
            "cpu" in wanted,
            "parked" in wanted,
            "mutex" in wanted,
            failed=self._refused,
        )
        self._windows.append(window)
        if self._agent is None:
            return window
        io_calls = "io" in wanted
        with window.unless_interrupted():
            try:
                self._programs.prepare(self._agent, self._agent.programs())
                window.number = self._agent.open(
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

        def ask(agent: agent_client.Agent) -> Closed:
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
        ask: Callable[[agent_client.Agent], Closed],
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
        reader = Reader(
            self._symbolizer,
            self._programs,
            self.environment,
            self._times_answers,
            needs_ready_calls=self._config.goready == "on",
        )
        return [
            reader.read(window, self._part(service), answer, failed, seconds) for service in services
        ], answer

    def _part(self, service: Watched) -> Part:
        roots = [pid for pid, of in self._roots.items() if of is service]
        refusals = (self._not_watched.get(pid) for pid in roots)
        return Part(service, roots, next(filter(None, refusals), None))

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
        if self._agent is None:
            return
        try:
            self._programs.prepare(self._agent, self._agent.watch(pid))
        except UnmeasuredError as error:
            self._not_watched[pid] = error

    def _revive(self) -> None:
        """Starts a new agent if one died: its tests were unmeasured, the next ones need not be."""
        self.start()
        if self._agent is None or self._agent.state is not agent_client.State.DIED:
            # An agent that never got ready won't the second time either, and costs its deadline each time.
            return
        self._agent.stop()
        self._agent = None
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
                # It remembers that it has failed; the next window starts a new agent.
                with contextlib.suppress(UnmeasuredError):
                    self._usable.unwatch(pid)
            self._not_watched.pop(pid, None)
        self._gone = self._gone - gone
