"""How long goroutines waited for mutexes, and where: adds up what the agent saw, and resolves its stacks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame, Symbolizer, trim
from pytest_netpoll.meter.messages import Measured, in_files
from pytest_netpoll.meter.processes import runs_goroutines
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offender

# Looks that are further apart than this, and than this share of the window, prove too little.
_LONGEST_GAP = 1e9  # ns
_LARGEST_GAP = 0.1
# So do fewer looks than this, unless they are close together.
_FEWEST_LOOKS = 10
_SHORT_GAP = 1e8  # ns

_LOCK = re.compile(r"sync\.\(\*((?:RW)?Mutex)\)\.(R?Lock)")


class Found(NamedTuple):
    """waited_ns: None if it is unknown, because of `absent`. offenders: the places, the longest wait
    first."""

    waited_ns: int | None
    absent: Reason | None
    offenders: tuple[Offender, ...]


def collect(
    processes: Sequence[Measured],
    symbolizer: Symbolizer,
    window_ns: int,
    why_unknown: Callable[[Measured], Reason],
) -> Found:
    """What the service's processes waited, in a window that requested it. why_unknown: why one of them could
    not be looked at.
    """
    processes = [process for process in processes if runs_goroutines(process)]
    if not processes:
        return Found(None, None, ())
    total = 0
    places: dict[tuple[str | None, tuple[Frame, ...]], list[int]] = defaultdict(lambda: [0, 0])
    for process in processes:
        mutexes = process["mutexes"]
        waited = mutexes and mutexes["waited_ns"]
        if mutexes is None or waited is None:
            return Found(None, why_unknown(process), ())
        gap = mutexes["gap_ns"]
        few = mutexes["looks"] < _FEWEST_LOOKS and gap > _SHORT_GAP
        if few or gap > max(_LONGEST_GAP, _LARGEST_GAP * window_ns):
            return Found(None, _too_seldom(process["pid"], mutexes["gap_ns"]), ())
        total += waited
        for seen, ns, raw in mutexes["stacks"]:
            frames = symbolizer.stack(in_files(raw))
            if frames:
                place = places[_lock(frames), trim(frames)]
                place[0] += int(seen)
                place[1] += int(ns)
    everywhere = max(sum(ns for _, ns in places.values()), 1)
    found = [
        Offender(
            offence="mutex",
            count=seen,
            share=ns / everywhere,
            direction="",
            syscall=None,
            fd_type=None,
            lock=lock,
            # The same shares of the waits that have no stack: those goroutines were woken before it was read.
            waited_ns=round(total * ns / everywhere),
            stack=stack,
        )
        for (lock, stack), (seen, ns) in places.items()
        if seen > 0
    ]
    return Found(total, None, tuple(sorted(found, key=lambda offender: -(offender.waited_ns or 0))))


def _lock(frames: Sequence[Frame]) -> str | None:
    """What the user's code called: RWMutex.Lock waits for a Mutex first."""
    called = None
    for frame in frames:
        match = _LOCK.fullmatch(frame.function)
        if match is not None:
            called = f"sync.{match[1]}.{match[2]}"
        elif called is not None:
            break
    return called


def _too_seldom(pid: int, gap_ns: int) -> Reason:
    return Reason(
        f"the goroutines of process {pid} were not looked at for {units.show(gap_ns, 'ns')}",
        why="the machine is overloaded, or there are too many of them",
        fix="run fewer tests at once, or make the window longer",
    )
