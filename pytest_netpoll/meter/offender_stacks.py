"""Makes offenders from the agent's raw stacks: resolves, trims and merges them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, get_args

from pytest_netpoll.gobinary.symbols import PLUMBING, Frame, Symbolizer, trim
from pytest_netpoll.meter.messages import in_files
from pytest_netpoll.model.evidence import Cause, Offence, Offender

_OFFENCES = get_args(Offence)
# The fields of an entry that are str or None.
_OPTIONAL_TEXTS = ("syscall", "fd_type", "local", "peer", "outcome")

# With a connection per client, the place in the code matters, not each of a thousand peers.
Place = tuple[Any, ...]

# The innermost frames of every ready call; the closure's name differs between versions of Go.
_IN_COMMON = re.compile(
    r"runtime\.(ready|goready|netpollgoready|readyWithTime|systemstack)"
    r"|(runtime|_|sync|internal/\S+)\.(\S+\.)?goready\.func1"
)

# The GC (which goroutines may have to assist), its sweeper and scavenger, and the finalizer goroutine.
_BACKGROUND = re.compile(
    r"runtime\.(gc[A-Z]|bgsweep|bgscavenge|forcegchelper|runfinq|runFinalizers|runCleanups|suspendG|resumeG|sysmon)"
)

# The functions that only check, called by a loop of the program: for a select with one case and a default, or
# TryLock.
_NOT_BLOCKING = re.compile(r"runtime\.(selectnbrecv|selectnbsend)|sync\.\(\*(RW)?Mutex\)\.Try\w*Lock")
# Where such a call is if it finds nothing. One that succeeds spends its time deeper: it wakes or copies.
# Gosched never finds anything.
_FINDS_NOTHING = re.compile(
    r"runtime\.(selectnb(recv|send)|chan(recv|send)|empty|full)"
    r"|(internal/)?sync\.\(\*(RW)?Mutex\)\.Try\w*Lock"
)
# Where a mutex is unlocked: the innermost frames of such a call that the user's code didn't make.
_UNLOCK = re.compile(r"(internal/)?sync\.\(\*(RW)?Mutex\)\.(RUnlock|rUnlockSlow|Unlock|unlockSlow)")
# If the probe comes before the frame pointer is set (Go 1.19), the caller, findRunnable, is missing.
_FINDERS = ("runtime.findRunnable", "runtime.schedule")
_TIMER = re.compile(r"runtime\.(runOneTimer|\(\*timer\)\.unlockAndRun)$")

# Stands for the runtime if it doesn't work for a particular goroutine.
_SCHEDULING = Frame("runtime.schedule", "runtime/proc.go", 0)

# Two windows' offenders at the same place have these fields, and their stacks, in common.
_PLACE = ("offence", "direction", "syscall", "outcome", "cause", "locked", "unlocks", "lock", "collects")

# offence -> the counter of all of them, kept or not. Sampled offences aren't here.
_COUNTERS = {"spurious": "spurious_wakeups", "stale": "stale_retries", "unclaimed": "unclaimed_events"}


def collect(
    raw: Sequence[Mapping[str, Any]], symbolizer: Symbolizer, counters: Mapping[str, int]
) -> tuple[Offender, ...]:
    """The offenders, the worst first.

    raw: messages.Offender over all processes of a service. counters: the service's. share: of all spurious
    wakeups (retries, unclaimed events) counted, so shares add up to less than 1 if the kernel's table was
    full; for sampled offences, of the sample. Raises ValueError, KeyError or TypeError if `raw` is malformed.
    """
    places: dict[Place, list[Mapping[str, Any]]] = defaultdict(list)
    # Samples show a loop on each of its lines: treat it as one place, with the line seen most often.
    lines: dict[Place, Counter[tuple[Frame, ...]]] = defaultdict(Counter)
    looked: Counter[Place] = Counter()
    totals: dict[str, int] = defaultdict(int)
    for entry in raw:
        _check(entry)
        frames = symbolizer.stack(in_files(entry["stack"]))
        ready = entry["offence"] == "ready"
        stack = trim(_callers(frames) if ready else frames)
        where: tuple[Any, ...] = stack
        if entry["offence"] == "cpu":
            stack = _running(frames, stack)
            # A call of runtime.GC is a place of its own: its line matters.
            collects = any(frame.function == "runtime.GC" for frame in frames)
            where = (collects, *(frame.function for frame in stack))
            lines[where][stack] += entry["count"]
            looked[where] += entry["count"] * _only_looks(frames)
        woken = symbolizer.stack(in_files(entry["woken_stack"]))
        kind = tuple(
            entry[name] for name in ("offence", "direction", "syscall", "outcome", "fd_type", "locked")
        )
        unlocks = ready and any(_UNLOCK.fullmatch(frame.function) for frame in _callers(frames))
        runtime = ready and (by_the_runtime(frames) or by_the_runtime(woken))
        places[(*kind, cause_of(entry), runtime, unlocks, where, trim(woken))].append(entry)
        totals[entry["offence"]] += entry["count"]
    totals = _all(totals, counters)
    merged = []
    for (
        offence,
        direction,
        syscall,
        outcome,
        fd_type,
        locked,
        cause,
        runtime,
        unlocks,
        where,
        woken,
    ), entries in places.items():
        count = sum(entry["count"] for entry in entries)
        stack = lines[where].most_common(1)[0][0] if offence == "cpu" else where
        merged.append(
            Offender(
                offence=offence,
                count=count,
                share=count / totals[offence],
                direction=direction,
                syscall=syscall,
                outcome=outcome,
                runtime=runtime,
                fd_type=fd_type,
                local=_common(entry["local"] for entry in entries),
                peer=_common(entry["peer"] for entry in entries),
                cause=cause,
                bytes=_sum(entries, "bytes"),
                filled=sum(entry["count"] for entry in entries if entry["filled"]),
                locked=locked,
                held_ns=_sum(entries, "held_ns"),
                unlocks=unlocks,
                not_blocking=looked[where] if offence == "cpu" else 0,
                collects=offence == "cpu" and where[0],
                stack=stack,
                woken_stack=woken,
            )
        )
    return tuple(sorted(merged, key=lambda offender: (offender.stack == (_SCHEDULING,), -offender.count)))


def cause_of(entry: Mapping[str, Any]) -> Cause | None:
    """The cause of a message's offender."""
    events = entry["events"]
    if entry["fd_type"] == "unixgram" and entry["direction"] == "write":
        return "full queue" if "EPOLLOUT" in events else None
    if entry["direction"] != "read" or entry["registered_twice"] is None:
        return None
    if "EPOLLIN" in events:
        return "registered twice" if entry["registered_twice"] else "data"
    if "EPOLLERR" in events:
        return "error queue" if entry["error_queue"] else "socket error"
    return None


def _sum(entries: Iterable[Mapping[str, Any]], name: str) -> int | None:
    known = [entry[name] for entry in entries if entry[name] is not None]
    return sum(known) if known else None


def _only_looks(frames: Sequence[Frame]) -> bool:
    """Whether a CPU sample was taken in a call by the user's code that checks without waiting, and finds
    nothing.
    """
    inner = ""
    for frame in frames:
        if frame.is_own:
            if inner == "runtime.Gosched":
                return True
            found = _FINDS_NOTHING.fullmatch(frames[0].function) is None
            return _NOT_BLOCKING.fullmatch(inner) is not None and not found
        inner = frame.function
    return False


def _running(frames: Sequence[Frame], trimmed: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The part of a CPU sample's stack that identifies its place. frames: all of it. trimmed: as users see
    it.

    The scheduler runs on a stack of its own. The call that led there matters only if it yields: a goroutine
    that parks isn't the reason why the scheduler searches.
    """
    # If the stack ends within a function, the frame that seems to come next is unreliable.
    known = [frame for frame in frames if frame.function != "?"]
    if known and known[0].function == "runtime.gopark":
        return (_SCHEDULING,)
    for frame in known:
        if frame.package_root not in PLUMBING:
            return trimmed
        if _BACKGROUND.match(frame.function):
            return (frame,)
    return (_SCHEDULING,) if known else trimmed


def _all(kept: Mapping[str, int], counters: Mapping[str, int]) -> dict[str, int]:
    """Offence -> how many there were. kept: how many were recorded."""
    # A wakeup resolved while the counters are read may be missing there but be among the offenders.
    return {
        offence: max(count, counters.get(_COUNTERS.get(offence, ""), 0)) for offence, count in kept.items()
    }


def _callers(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The part of a ready call's stack that identifies its place. If the scheduler finds an expired timer, it
    has no caller: the frames below belong to a goroutine that happened to park before.
    """
    names = [frame.function for frame in frames]
    if "runtime.schedule" in names:
        frames = frames[: names.index("runtime.schedule")]
    return [frame for frame in frames if not _IN_COMMON.fullmatch(frame.function)] or frames


def by_the_runtime(frames: Sequence[Frame]) -> bool:
    """Whether a ready call was made by the runtime's own background work, or for it. frames: of the waker, or
    of the woken goroutine, innermost first.

    A finalizer's own calls count as the program's, although the runtime runs it.
    """
    for inner, frame in zip((None, *frames), frames, strict=False):
        if _TIMER.match(frame.function):
            return False  # the timer belongs to another goroutine, whichever one finds it expired
        if _BACKGROUND.match(frame.function):
            return True
        if frame.function in _FINDERS and inner is not None and inner.function == "runtime.ready":
            return True  # it wakes the goroutine that runs finalizers
        if frame.package_root not in PLUMBING:
            return False
    return False


def runtime_ready_calls(offenders: Iterable[Offender], ready_calls: int) -> int:
    """How many ready calls the runtime made. offenders: from `collect`, for all callers."""
    callers = [offender for offender in offenders if offender.offence == "ready"]
    recorded = sum(offender.count for offender in callers)
    runtimes = sum(offender.count for offender in callers if offender.runtime)
    return round(ready_calls * runtimes / recorded) if recorded else 0


def _check(entry: Mapping[str, Any]) -> None:
    count = entry["count"]
    texts = [entry["direction"], *(entry[name] for name in _OPTIONAL_TEXTS if entry[name] is not None)]
    whole = isinstance(count, int) and count > 0 and all(isinstance(text, str) for text in texts)
    whole = (
        whole
        and isinstance(entry["events"], list)
        and all(isinstance(entry[name], bool) for name in ("locked", "filled"))
    )
    whole = whole and all(isinstance(entry[name], int | None) for name in ("bytes", "held_ns"))
    if not whole or entry["offence"] not in _OFFENCES:
        raise ValueError(f"offender {dict(entry)!r:.200}")


def total(laps: Iterable[Sequence[Offender]], counters: Mapping[str, int]) -> tuple[Offender, ...]:
    """Merges the offenders of several windows. counters: their sums."""
    merged: dict[Place, Offender] = {}
    totals: dict[str, int] = defaultdict(int)
    for offender in chain.from_iterable(laps):
        totals[offender.offence] += _weight(offender)
        place = (*(getattr(offender, name) for name in _PLACE), offender.stack, offender.woken_stack)
        known = merged.get(place)
        merged[place] = offender if known is None else _together(known, offender)
    totals = _all(totals, counters)
    found = [
        dataclasses.replace(known, share=_weight(known) / max(totals[known.offence], 1))
        for known in merged.values()
    ]
    return tuple(sorted(found, key=lambda offender: -offender.count))


def _weight(offender: Offender) -> int:
    """What shares are of: for mutexes the time, else the count."""
    return offender.waited_ns or 0 if offender.offence == "mutex" else offender.count


def _together(one: Offender, other: Offender) -> Offender:
    """Merges two windows' offenders at the same place; leaves the share as it was."""
    return dataclasses.replace(
        one,
        count=one.count + other.count,
        not_blocking=one.not_blocking + other.not_blocking,
        filled=one.filled + other.filled,
        bytes=None if one.bytes is None or other.bytes is None else one.bytes + other.bytes,
        held_ns=None if one.held_ns is None or other.held_ns is None else one.held_ns + other.held_ns,
        waited_ns=one.waited_ns
        if one.waited_ns is None or other.waited_ns is None
        else one.waited_ns + other.waited_ns,
        # The kind of a connection that was closed before anybody looked is unknown.
        fd_type=_common({one.fd_type, other.fd_type} - {"closed"} or {"closed"}),
        local=_common((one.local, other.local)),
        peer=_common((one.peer, other.peer)),
    )


def _common(values: Any) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
