"""What a service did in one window, event by event. Times are in ns since the window opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pytest_netpoll.gobinary.symbols import Frame

Stack = tuple[Frame, ...]


class Poll(NamedTuple):
    """One poll. began: None if it began before the recording. kind: "blocking", "timed" or "nonblocking".

    returned: the number of events, or a negative errno.
    """

    at: int
    began: int | None
    pid: int
    tid: int
    kind: str
    returned: int


class Event(NamedTuple):
    """An event that a poll returned: the thread's poll that ended `at`. Without the runtime's own wake-ups.

    fd: None if the runtime drops the event. bits: epoll's. reader, writer: the goroutines that it wakes.
    """

    at: int
    pid: int
    tid: int
    fd: int | None
    bits: int
    reader: int | None
    writer: int | None

    @property
    def wakeups(self) -> int:
        return (self.reader is not None) + (self.writer is not None)


class Call(NamedTuple):
    """The first I/O call of a goroutine after its wakeup. returned: bytes, or a negative errno.

    woken_at: when the poll that woke it returned.
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
    """A ready call. goroutine: the one it made runnable. stack: the waker's. parked: the wakee's."""

    at: int
    pid: int
    tid: int
    goroutine: int
    stack: Stack
    parked: Stack


class Look(NamedTuple):
    """A look at a process's scheduler. runnable: goroutines in run queues. running: Ps that run Go code."""

    at: int
    pid: int
    runnable: int
    running: int


@dataclass(frozen=True)
class Trace:
    """One window's records. dropped: how many found no room at the end, over all watched services.
    missed_looks: how many looks at run queues found none.
    """

    polls: Sequence[Poll] = ()
    events: Sequence[Event] = ()
    calls: Sequence[Call] = ()
    readies: Sequence[Ready] = ()
    looks: Sequence[Look] = ()
    dropped: int = 0
    missed_looks: int = 0

    @property
    def in_threads(self) -> list[Poll | Call | Ready]:
        """The records shown on a thread's track."""
        return [*self.polls, *self.calls, *self.readies]

    @property
    def counts(self) -> Mapping[str, int]:
        """The counts, by metric name; they equal the metrics if nothing was dropped."""
        return {
            "polls": len(self.polls),
            "events": len(self.events),
            "wakeups": sum(event.wakeups for event in self.events),
            "spurious_wakeups": sum(call.returned == SPURIOUS for call in self.calls),
            "productive_wakeups": sum(call.returned != SPURIOUS for call in self.calls),
            "ready_calls": len(self.readies),
        }


SPURIOUS = -11  # EAGAIN
