"""Talks to the agent: starts it, and gives every message a deadline."""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import os
import queue
import shlex
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.meter import checks
from pytest_netpoll.meter.agent_process import AgentProcess, Transport
from pytest_netpoll.meter.messages import Closed, Opened, ParkedIn, ParkedNow, Process, Processes, Ready
from pytest_netpoll.meter.privilege import why_sudo_refused
from pytest_netpoll.meter.schema import wrong
from pytest_netpoll.service.patience import QUIET_SECONDS, Say

PROTOCOL = 6

# Seconds. Compiling takes under one on an idle machine; a CI machine is not idle.
START_DEADLINE = 60.0
ANSWER_DEADLINE = 30.0
# How long close() waits for wakeups that are still on their way to their syscall.
SETTLE_MS = 20

INVALID = "the agent sent an invalid response"
INVALID_FIX = f"reinstall pytest-netpoll; if that doesn't help, open an issue with: {checks.DOCTOR} --json"

Answer = TypeVar("Answer")


class State(enum.Enum):
    """An agent's state, as last known. The states from NEVER_READY on have a reason, `Agent.failed`."""

    STARTING = enum.auto()
    READY = enum.auto()
    NEVER_READY = enum.auto()  # a new agent would not get ready either
    DIED = enum.auto()  # or its answers made no sense: a new agent may do better
    NOT_OURS = enum.auto()  # pytest was forked, and the agent answers the process that started it


class Agent:
    """One agent process. Once it has failed, `state` and `failed` say so, and a new Agent is needed.

    argv: from privilege.command. load: the arguments of the agent's first message. installed: where to look
    for the agent for sudo. say: called with messages about slow work. start: argv -> Transport. environment:
    what the agent reported when it was ready. All methods raise UnmeasuredError, with the agent's own words
    if there are any.
    """

    def __init__(
        self,
        argv: list[str],
        load: Mapping[str, int] = MappingProxyType({}),
        installed: Path | None = None,
        say: Say | None = None,
        start: Callable[[list[str]], Transport] = AgentProcess,
    ) -> None:
        self._say = say
        self.state = State.STARTING
        self.environment: Mapping[str, Any] = {}
        self.failed: UnmeasuredError | None = None
        self._argv = argv
        self._installed = installed
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._transport = start(argv)
        os.register_at_fork(after_in_child=partial(_let_go, weakref.ref(self)))
        self._started = time.monotonic()
        self._at_parked: set[int] = set()  # windows that look at parked goroutines
        with contextlib.suppress(OSError):  # it has ended; waiting for it gives the reason
            self._send({"id": 0, "do": "load", **load})

    @property
    def pid(self) -> int:
        return self._transport.pid

    def wait_ready(self) -> None:
        """Waits until the BPF program is compiled and attached."""
        with self._lock:
            self._wait_ready()

    def watch(self, pid: int) -> Sequence[Process]:
        """Starts watching the process and its descendants; returns them."""
        return self._ask("watch", Processes, pid=pid)["processes"]

    def unwatch(self, pid: int) -> None:
        self._ask("unwatch", dict[str, Any], pid=pid)

    def programs(self) -> Sequence[Process]:
        """All watched processes."""
        return self._ask("programs", Processes)["processes"]

    def attach(self, pid: int, ready: int, deadline: int | None) -> None:
        """Counts ready calls in all processes that run this one's program, until the last service with it
        ends.

        ready, deadline: offsets in the program's file.
        """
        self._ask("attach", dict[str, Any], pid=pid, ready=ready, deadline=deadline or 0)

    def learn(self, pid: int, layout: Mapping[str, int]) -> None:
        """Reads the scheduler's counters in all processes of this one's program."""
        self._ask("learn", dict[str, Any], pid=pid, **layout)

    def open(
        self,
        ready_stacks: int = 0,
        unclaimed: bool = False,
        io_stacks: int = 0,
        io_calls: bool = False,
        cpu_samples: bool = False,
        parked: bool = False,
        woken: int = 0,
        held_writes: bool = False,
        mutexes: bool = False,
    ) -> int:
        """Opens a window over everything watched; returns its number.

        ready_stacks: keep the stack of one ready call in this many, 0 for none. unclaimed: whether to record
        the descriptors whose events found nobody. io_stacks: as ready_stacks, for futile I/O calls. io_calls:
        whether for all I/O calls. cpu_samples: whether to record stacks of what uses CPU time. parked:
        whether to look at parked goroutines at both ends. woken: for one poll in this many, record where the
        goroutines that it woke were parked, 0 for none. held_writes: whether to record writes that the kernel
        holds back. mutexes: whether to look for goroutines that wait for a mutex.
        """
        window = self._ask(
            "open",
            Opened,
            ready_stacks=ready_stacks,
            unclaimed=int(unclaimed),
            io_stacks=io_stacks,
            io_calls=int(io_calls),
            cpu_samples=int(cpu_samples),
            parked=int(parked),
            woken=woken,
            held_writes=int(held_writes),
            mutexes=int(mutexes),
        )["window"]
        if parked:
            self._at_parked.add(window)
        return window

    def close(self, window: int) -> Closed:
        """Closes a window; returns what happened in it."""
        return self._ask("close", Closed, window=window, settle_ms=SETTLE_MS)

    def lap(self, window: int, settle_ms: int) -> Closed:
        """As `close`, and opens the window again at the same cut."""
        return self._ask("lap", Closed, window=window, settle_ms=settle_ms)

    def parked(self, pid: int) -> Sequence[ParkedIn]:
        """The goroutines parked on descriptors now, for each process of that root."""
        return self._ask("parked", ParkedNow, pid=pid)["processes"]

    def stop(self) -> None:
        """Ends the agent, and with it everything it has in the kernel."""
        if self.state in (State.STARTING, State.NEVER_READY):
            self._transport.kill()  # it doesn't end when told to
        self._transport.end()

    def _ask(self, do: str, wanted: type[Answer], **arguments: int) -> Answer:
        """Sends a message and returns the answer, which is of the type `wanted`."""
        with self._lock:
            self._wait_ready()
            identity = next(self._ids)
            try:
                self._send({"id": identity, "do": do, **arguments})
                answer = self._receive(ANSWER_DEADLINE, f"answer {do!r}", self._awaited(do, arguments))
            except OSError:
                raise self._ended() from None
            except UnmeasuredError:
                raise
            except BaseException:
                # Ctrl-C, pytest-timeout: the pending answer would be taken for the next message's.
                self._fail("the agent was stopped", why=f"pytest was interrupted in {do!r}")
                raise
            if answer.get("id") != identity:
                raise self._fail("the agent answered another request", why=f"to {do!r}: {answer!r:.200}")
            if "error" in answer:
                raise UnmeasuredError(**complaint(answer["error"]))
            strange = wrong(answer.get("ok"), wanted, "ok")
            if strange is not None:
                raise self._fail(INVALID, why=f"to {do!r}: {strange}", fix=INVALID_FIX)
            return cast("Answer", answer["ok"])

    @property
    def _who(self) -> str:
        """What messages call it: until it has started, users may not have met it."""
        return "the agent" if self.state is State.READY else "the eBPF agent"

    def _awaited(self, do: str, arguments: Mapping[str, int]) -> str:
        """What an answer that takes long waits for."""
        parks = arguments.get("parked") or arguments.get("window") in self._at_parked
        if do in ("open", "close", "lap") and parks:
            return f"the services to come to rest: the agent looks at their parked goroutines ({do!r})"
        return f"the agent to answer {do!r}"

    def _send(self, message: Mapping[str, object]) -> None:
        self._transport.send(json.dumps(message).encode() + b"\n")

    def _wait_ready(self) -> None:
        if self.failed is not None:
            raise self.failed
        if self.state is State.READY:
            return
        spent = time.monotonic() - self._started
        waits = "the eBPF agent to start; it compiles the BPF program unless that is cached"
        first = self._receive(max(1.0, START_DEADLINE - spent), "start", waits)
        if "failed" in first:
            raise self._fail(**complaint(first["failed"]), detail=self._transport.said())
        ready = first.get("ready")
        if not isinstance(ready, dict) or ready.get("protocol") != PROTOCOL:
            raise self._fail("the eBPF agent speaks another protocol", why=f"{first!r:.200}")
        strange = wrong(ready, Ready, "ready")
        if strange is not None:
            raise self._fail(INVALID, why=strange, fix=INVALID_FIX)
        self.environment = ready
        self.state = State.READY

    def _receive(self, seconds: float, what: str, awaited: str) -> dict[str, Any]:
        """what: the agent has to do. awaited: for people, if that takes long."""
        try:
            line = self._next_line(seconds, awaited)
        except queue.Empty:
            raise self._fail(
                f"{self._who} did not {what} within {seconds:.3g} s",
                why="it hangs, or the machine is overloaded",
                fix=f"try it by hand: {shlex.join(self._argv)}",
                detail=self._transport.said(),
            ) from None
        if line is None:
            raise self._ended()
        try:
            message = json.loads(line, parse_int=_int64)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._fail(INVALID, why=f"{line!r:.200}", fix=INVALID_FIX)
        return message

    def _next_line(self, seconds: float, awaited: str) -> bytes | None:
        """The next line; None at the end of the output. Raises queue.Empty after this many seconds."""
        if self._say is not None and seconds > QUIET_SECONDS:
            with contextlib.suppress(queue.Empty):
                return self._transport.receive(QUIET_SECONDS)
            self._say(f"waiting for {awaited}")
            seconds -= QUIET_SECONDS
        return self._transport.receive(seconds)

    def _ended(self) -> UnmeasuredError:
        status = self._transport.status()
        said = self._transport.said()
        refused = why_sudo_refused(self._argv, self._installed, said) if self._argv[0] == "sudo" else None
        if refused is not None:
            return self._fail(refused.what, why=refused.why, fix=refused.fix)
        return self._fail(f"{self._who} ended", why=f"exit status {status}", detail=said)

    def _fail(
        self, what: str, *, why: str | None = None, fix: str | None = None, detail: str | None = None
    ) -> UnmeasuredError:
        """Records that this agent can't be used any longer."""
        # If the message has no fix, the machine is the cause: run the checks.
        self.failed = UnmeasuredError(what, why=why, fix=fix or checks.likely_fix(), detail=detail)
        self.state = State.DIED if self.state is State.READY else State.NEVER_READY
        self._transport.kill()
        return self.failed


def _let_go(agent: weakref.ref[Agent]) -> None:
    """Called in a process forked without exec: it must not keep the agent alive when pytest is killed."""
    if (alive := agent()) is not None:
        alive._transport.hang_up()
        # And it couldn't read an answer.
        alive.state = State.NOT_OURS
        alive.failed = UnmeasuredError(
            "a test in a forked pytest process can't be measured",
            why="the agent only answers the process that started it",
            fix="run it without --forked",
        )


def _int64(text: str) -> int:
    """A number that fits into 64 bits, as any count of the kernel does."""
    number = int(text)
    if not -1 << 63 <= number < 1 << 64:
        raise ValueError(f"{text:.30} is beyond 64 bits")
    return number


def complaint(said: object) -> dict[str, str]:
    """The agent's error and its fix, as arguments for an exception."""
    if not isinstance(said, dict) or not isinstance(said.get("what"), str):
        return {"what": "the agent failed", "why": f"{said!r:.200}"}
    fix = said.get("fix")
    return {"what": said["what"]} | ({"fix": fix} if isinstance(fix, str) else {})
