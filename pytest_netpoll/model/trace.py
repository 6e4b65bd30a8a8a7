"""What a service did in one window, event by event. Times are in ns since the window opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pytest_netpoll.gobinary.symbols import Frame

Stack = tuple[Frame, ...]


class Poll(NamedTuple):
    """began: None where that was before anybody looked. kind: "blocking", "timed" or "nonblocking".

    returned: how many events, or a negative error.
    """

    at: int
    began: int | None
    pid: int
    tid: int
    kind: str
    returned: int


class Event(NamedTuple):
    """One that the poll of that thread brought which returned at that time, but the runtime's own wake-ups.

    fd: None where the runtime drops the event. bits: epoll's. reader, writer: the goroutines that it wakes.
    """

    at: int
    pid: int
    tid: int
    fd: int | None
    bits: int
    reader: int | None
    writer: int | None


class Call(NamedTuple):
    """The I/O call that followed the wakeup of a goroutine. returned: bytes, or a negative error.

    woken_at: when the poll returned that woke it.
    """

    at: int
    began: int | None
    pid: int
    tid: int
    fd: int
    direction: str
    syscall: str
    returned: int
    goroutine: int
    woken_at: int
    stack: Stack


class Ready(NamedTuple):
    """A ready call. goroutine: whom it made runnable. stack: the waker's. parked: where the other one was."""

    at: int
    pid: int
    tid: int
    goroutine: int
    stack: Stack
    parked: Stack


class Look(NamedTuple):
    """At a process's scheduler. runnable: goroutines in run queues. running: Ps that run Go code."""

    at: int
    pid: int
    runnable: int
    running: int


@dataclass(frozen=True)
class Trace:
    """dropped: how many records found no room, from some moment on, of all services that were watched."""

    polls: Sequence[Poll] = ()
    events: Sequence[Event] = ()
    calls: Sequence[Call] = ()
    readies: Sequence[Ready] = ()
    looks: Sequence[Look] = ()
    dropped: int = 0

    @property
    def in_threads(self) -> list[Poll | Call | Ready]:
        """What has a place in a thread."""
        return [*self.polls, *self.calls, *self.readies]

    @property
    def counts(self) -> Mapping[str, int]:
        """By the names of metrics, which they equal where nothing was dropped."""
        return {
            "polls": len(self.polls),
            "events": len(self.events),
            "wakeups": sum((event.reader is not None) + (event.writer is not None) for event in self.events),
            "spurious_wakeups": sum(call.returned == SPURIOUS for call in self.calls),
            "productive_wakeups": sum(call.returned != SPURIOUS for call in self.calls),
            "ready_calls": len(self.readies),
        }


SPURIOUS = -11  # EAGAIN
