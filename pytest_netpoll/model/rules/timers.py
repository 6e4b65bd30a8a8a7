"""NP3: timers and deadlines that keep the poller busy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.rules.rule import (
    Proof,
    Rule,
    count,
    counted,
    cpu_samples,
    number,
    offenders,
    rate,
)

# Polls a second that a timer ended, and how many of them per event.
TIMER_RATE = 200
TIMERS_PER_EVENT = 5

# Deadlines that expired a second.
DEADLINE_RATE = 50

# Fewer polls, or deadlines, in all prove no rate: a window may be as short as a few timers.
LEAST_ENDED = 100
LEAST_EXPIRED = 25
# Each read or write that is repeated after its deadline begins with a call that finds nothing: the share of
# the expired deadlines that have one. A connection that is closed at its deadline (an idle timeout) has none.
RETRIED_SHARE = 0.5
# The share of the polls that timers ended that must have woken a goroutine, but not for a deadline. The
# runtime ends up to two polls for each timer.
TICKED_SHARE = 0.25
# CPU s of the goroutines that timers wake, for each poll that a timer ended: more is work, not a look at
# something.
TICK_WORK = 0.0002
# Since then, a channel's timer only ends a poll if a goroutine waits for that channel.
NO_FORGOTTEN_TIMERS = (1, 23)

# The first part of the names of functions that wake goroutines for a timer, and for an expired deadline.
_TIMERS = ("time.", "runtime.")
_DEADLINES = "runtime.netpoll"


def _ended(m: Measurement) -> float:
    """Polls that a timer ended: by their timeout, or by the runtime, because of an earlier timer."""
    return number(m, "timeout_polls") + number(m, "break_polls")


def _churn(m: Measurement, least_rate: float) -> bool:
    ended, events = _ended(m), number(m, "events")
    waiting = number(m, "blocking_polls") + number(m, "timed_polls")
    often = ended >= max(LEAST_ENDED, least_rate * m.window_seconds)
    return often and ended >= TIMERS_PER_EVENT * events and ended >= waiting / 2


def _works(m: Measurement) -> bool:
    """Whether the timers are there for work: I/O at half of them or more, as of a streamer that sends at each
    tick, or a computation, as of a simulation.
    """
    # Also calls that fail, such as those that dial again after a pause. But not those that find nothing.
    outcomes = m.snapshot.io_outcomes
    made = sum(outcomes.values()) - outcomes.get("EAGAIN", 0)
    made -= sum(n for (_, outcome), n in m.snapshot.futile.items() if outcome != "EAGAIN")
    # To end a poll, the runtime writes to a descriptor of its own, and reads that again.
    if made - 2 * number(m, "break_polls") >= _ended(m) / 2:
        return True
    # A goroutine is known by its first function.
    ticking = {o.woken_stack[-1].function for o in _made(m, *_TIMERS) if o.woken_stack}
    computing = [o for o in cpu_samples(m) if o.stack and o.stack[-1].function in ticking]
    return sum(o.share for o in computing) * (m.cpu_seconds or 0) >= TICK_WORK * _ended(m)


def _expired(m: Measurement) -> float:
    return m.deadline_wakeups or 0


def _repeated(m: Measurement, expired: float) -> bool:
    """Whether reads or writes were repeated after that many deadlines."""
    return m.snapshot.io_outcomes.get("EAGAIN", 0) >= RETRIED_SHARE * expired


def _ticks(m: Measurement) -> bool:
    """Whether the timers woke goroutines that wait for them, as tickers and sleeps do. A callback
    (time.AfterFunc) starts one of its own, and most callbacks come once, such as those that remove an entry
    of a cache.
    """
    if m.ready_calls is None:
        return True  # unknown
    enough = TICKED_SHARE * _ended(m)
    expired = _expired(m)
    if m.deadline_wakeups is None:  # Go 1.19: only the sampled callers show them
        expired = sum(o.count for o in _made(m, _DEADLINES))
        if _repeated(m, expired):
            return True  # NP302 can't be checked there
    if m.ready_calls - expired >= enough:
        return True
    version = re.match(r"go(\d+)\.(\d+)", m.go_version or "")
    forgotten = version is not None and (int(version[1]), int(version[2])) < NO_FORGOTTEN_TIMERS
    return forgotten and expired < enough


def _seen(m: Measurement) -> str:
    waiting = number(m, "blocking_polls") + number(m, "timed_polls")
    ended, a_second = count(_ended(m)), rate(_ended(m), m)
    return f"{ended} of {counted(waiting, 'poll')} that waited were ended by a timer, {a_second} a second"


def _made(m: Measurement, *wakers: str) -> list[Offender]:
    """The program's ready calls by functions whose names begin with one of `wakers`."""
    found = [o for o in offenders(m, "ready") if not o.runtime]
    return [o for o in found if o.stack and o.stack[0].function.startswith(wakers)]


def _woken(found: Sequence[Offender]) -> tuple[Frame, ...]:
    """Where the goroutines that are woken most were parked."""
    return next((o.woken_stack for o in found if o.woken_stack), ())


def _timer_churn(m: Measurement) -> Proof | None:
    if not _churn(m, TIMER_RATE) or _works(m) or not _ticks(m) or _deadline_churn(m) is not None:
        return None
    found = _made(m, *_TIMERS)
    which = "tickers or deadlines keep" if m.deadline_wakeups is None else "tickers or sleeps keep"
    return Proof(
        _ended(m),
        f"{_seen(m)}, for {counted(number(m, 'events'), 'event')}: {which} the poller busy. Typically a "
        "ticker of a few milliseconds, many components that each look for changes, or a loop that reads with "
        "a short deadline.",
        _woken(found),
        evidence=tuple(found),
    )


def _deadline_churn(m: Measurement) -> Proof | None:
    expired = _expired(m)
    often = expired >= max(LEAST_EXPIRED, DEADLINE_RATE * m.window_seconds)
    if not often or not _churn(m, DEADLINE_RATE) or expired <= _ended(m) / 4 or not _repeated(m, expired):
        return None
    found = _made(m, _DEADLINES)
    timed_out, events = counted(expired, "deadline"), counted(number(m, "events"), "event")
    return Proof(
        expired,
        f"{_seen(m)}, with {timed_out} expired and {events}: "
        "reads or writes that time out again and again keep the poller busy. Typically a loop sets a short "
        "deadline to look at a flag.",
        _woken(found),
        evidence=tuple(found),
    )


def _no_deadlines(m: Measurement) -> Reason | None:
    if m.deadline_wakeups is not None:
        return None
    return m.absent.get("deadline_wakeups") or Reason(
        "deadline wakeups were not counted", fix="--netpoll-goready=on"
    )


RULES = (
    Rule(
        "NP301",
        "timer-churn",
        "Timers keep ending the poller's waits while the network is quiet.",
        f"A timer ended at least {TIMER_RATE} polls a second, and {LEAST_ENDED} in all: half or more of the "
        f"polls that waited, and at least {TIMERS_PER_EVENT} for each event. I/O calls that found something "
        "were fewer than half as many, and the goroutines that timers wake used less than "
        f"{TICK_WORK * 1000:g} ms of CPU for each. If ready calls are counted: at least one for every four of "
        "these polls, not for a deadline (before Go 1.23, timers that nobody waits for end polls, too).",
        "notify on change, share one slow ticker, or read without a deadline.",
        "Deadlines (NP302) end polls in the same way; counting deadline wakeups tells them apart. A service "
        "that sends or computes something at each tick, such as a simulation, needs its timers. Callbacks "
        "(time.AfterFunc) don't count, such as those that remove a cache's entries, each at its time.",
        "A single time.NewTicker(time.Millisecond), or fifty components that each check every few "
        "milliseconds whether something changed (example_project: -fault tickers).",
        _timer_churn,
        offences=("ready", "cpu"),
    ),
    Rule(
        "NP302",
        "deadline-churn",
        "Reads or writes keep timing out and are repeated.",
        f"At least {DEADLINE_RATE} expired deadlines a second, and {LEAST_EXPIRED} in all, and polls that "
        "timers ended, as in NP301; and a call that ended in EAGAIN for each two of the deadlines, because a "
        "read or write that is repeated begins with one. Needs uprobes.",
        "read without a deadline, and to stop call SetReadDeadline(time.Now()) once.",
        "Tickers and sleeps (NP301) end as many polls, but no deadline expires. Idle timeouts expire, but "
        "their connections are closed instead of read again.",
        "A handler that interrupts its Read every millisecond to check a flag (example_project: -fault "
        "busy-poll).",
        _deadline_churn,
        _no_deadlines,
        ("ready",),
    ),
)
