"""Timers for a process that otherwise waits for the next line on stdin."""

from __future__ import annotations

import os
import random
import select
import time
from collections.abc import Callable, Iterator

# A timer takes at most this share of the time, unless said otherwise; it is called less often if it has to
# be.
MOST_TIME = 1 / 20

# Bytes. No message is nearly as long; an endless line must not fill the memory.
LONGEST_LINE = 64 << 10

_CHUNK = 64 << 10


class Timer:
    """A repeated call, made by Timers.every."""

    def __init__(self, period: float, call: Callable[[], object], most_time: float, uneven: bool) -> None:
        self.due = time.monotonic() + period
        self._period = period
        self._call = call
        self._most_time = most_time
        self._uneven = uneven

    def run(self) -> None:
        begun = time.monotonic()
        self._call()
        ended = time.monotonic()
        # Counted from when it was due, so that periods don't stretch; missed calls aren't made up for.
        period = self._period * random.uniform(0.5, 1.5) if self._uneven else self._period
        self.due = max(self.due + period, ended, begun + (ended - begun) / self._most_time)


class Timers:
    """Calls functions periodically, all in one thread, while that waits in `lines`."""

    def __init__(self) -> None:
        self._timers: list[Timer] = []

    def every(
        self, period: float, call: Callable[[], object], most_time: float = MOST_TIME, uneven: bool = False
    ) -> Timer:
        """Calls the function every `period` seconds until the returned Timer is cancelled. most_time: the
        share of the time that it takes at most. uneven: `period` is the mean, so that the calls don't fall
        into step with what they look at.
        """
        timer = Timer(period, call, most_time, uneven)
        self._timers.append(timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        self._timers.remove(timer)

    def lines(self, fd: int) -> Iterator[str | None]:
        """The lines that arrive on the file descriptor, as text, until its end. A line longer than
        LONGEST_LINE is dropped and replaced by None.
        """
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        rest, dropping = b"", False
        while True:
            if not poller.poll(self._milliseconds_left()):
                self._run_due()
                continue
            data = os.read(fd, _CHUNK)
            if not data:
                return
            *ended, rest = (rest + data).split(b"\n")
            for line in ended:
                too_long = dropping or len(line) > LONGEST_LINE
                dropping = False
                yield None if too_long else line.decode(errors="replace")
            if len(rest) > LONGEST_LINE:
                rest, dropping = b"", True

    def _milliseconds_left(self) -> int | None:
        if not self._timers:
            return None
        # Rounded up: if it woke too early it would have to wait again.
        return max(0, int((min(timer.due for timer in self._timers) - time.monotonic()) * 1000) + 1)

    def _run_due(self) -> None:
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer.due <= now]:
            timer.run()
