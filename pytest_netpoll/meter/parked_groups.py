"""Goroutines parked on descriptors: resolves the stacks in the agent's rows and groups the rows by stack."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame, Symbolizer
from pytest_netpoll.meter.messages import Measured, Parked, ParkedIn, in_files
from pytest_netpoll.meter.readable import is_readable
from pytest_netpoll.model.evidence import Offender, ParkedGoroutine
from pytest_netpoll.model.metrics import PARKED_METRICS

MOST_PEERS = 5  # to show of a group
_ENDED = Reason(
    "the service had ended when the window closed, and its goroutines with it",
    fix="stop it after the test, or measure what comes before: with netpoll.measure()",
)
# The agent reports these for a group as a whole, other fields for each goroutine.
SOCKETS = ("tcp", "listener", "udp", "unix", "socket")

_Place = tuple[str, tuple[Frame, ...]]
_Ends = tuple[str | None, str | None]  # local, peer


class _Left(NamedTuple):
    """A descriptor whose peer has closed. reader: where who read from it had been parked, if recorded."""

    peer: str | None
    closed: bool
    reader: tuple[Frame, ...] | None


class Found(NamedTuple):
    """counters: PARKED_METRICS. absent: why one of them is unknown. groups: those that stand out first.
    unproven: why goroutines that stay might still leave, or None.
    """

    counters: dict[str, int]
    absent: dict[str, Reason]
    groups: tuple[Offender, ...]
    unproven: Reason | None = None


@dataclass
class _Group:
    """peers: some of the descriptors' other ends. new: the peers that came in the window."""

    kinds: set[str | None] = field(default_factory=set)
    locals: set[str | None] = field(default_factory=set)
    peers: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    before: int = 0
    after: int = 0
    abandoned: int = 0
    stuck: int = 0
    closed: int = 0

    def offender(self, direction: str, stack: tuple[Frame, ...], total: int) -> Offender:
        peers = tuple(dict.fromkeys([*self.new, *self.peers]))
        return Offender(
            offence="parked",
            count=self.after,
            share=self.after / total,
            direction=direction,
            syscall=None,
            fd_type=_only(self.kinds),
            local=_only(self.locals),
            peer=peers[0] if self.after == 1 and peers else None,
            stack=stack,
            growth=max(0, self.after - self.before),
            abandoned=self.abandoned,
            stuck=self.stuck,
            closed=self.closed,
            peers=peers[:MOST_PEERS],
        )


def rows(parked: Parked, symbolizer: Symbolizer) -> list[ParkedGoroutine]:
    """A row for each goroutine. Raises ValueError, LookupError or TypeError if `parked` is malformed."""
    stacks = _stacks(parked, symbolizer)
    return [
        ParkedGoroutine(
            goroutine=goid,
            direction=str(direction),
            fd_type=kind,
            local=local,
            peer=peer,
            stack=stacks[stack],
            peer_gone=bool(gone),
        )
        for goid, direction, kind, local, peer, stack, _, gone in parked["goroutines"]
    ]


def _stacks(parked: Parked, symbolizer: Symbolizer) -> list[tuple[Frame, ...]]:
    return [symbolizer.trimmed(in_files(raw)) for raw in parked["stacks"]]


def now(processes: Sequence[ParkedIn], symbolizer: Symbolizer) -> list[ParkedGoroutine]:
    return [row for process in processes for row in rows(process, symbolizer)]


def collect(processes: Sequence[Measured], symbolizer: Symbolizer) -> Found:
    """The goroutines parked in a service's processes, for a window that requested them."""
    if all(process["exited"] for process in processes):
        # That no goroutine is left doesn't prove that none leaked.
        return Found({}, dict.fromkeys(PARKED_METRICS, _ENDED), ())
    groups: dict[_Place, _Group] = defaultdict(_Group)
    abandoned: dict[tuple[str, str | None], list[_Left]] = defaultdict(list)
    absent: dict[str, Reason] = {}
    unproven: Reason | None = None
    for process in processes:
        parked = process["parked"]
        if parked is None or parked["why_not"] is not None:
            why = parked and parked["why_not"]
            reason = Reason(f"the goroutines of process {process['pid']} could not be read", why=why)
            return Found({}, dict.fromkeys(PARKED_METRICS, reason), ())
        found = rows(parked, symbolizer)
        for row, raw in zip(found, parked["goroutines"], strict=True):
            group = groups[row.direction, row.stack]
            if row.peer is not None:
                (group.new if raw[6] else group.peers).append(row.peer)
            if row.fd_type not in SOCKETS:
                group.kinds.add(row.fd_type)
                group.locals.add(row.local)
        stacks = _stacks(parked, symbolizer)
        for direction, stack, count, _, _ in parked["before"]:
            groups[direction, stacks[stack]].before += int(count)
        for direction, stack, count, kind, local in parked["after"]:
            group = groups[direction, stacks[stack]]
            group.after += int(count)
            if kind is not None:
                group.kinds.add(kind)
                group.locals.add(local)
        readers = _readers(process, symbolizer) if parked["abandoned"] else {}
        for kind, local, peer, index, closed in parked["abandoned"]:
            if index is None:
                abandoned[kind, local].append(_Left(peer, bool(closed), readers.get((local, peer))))
            else:
                groups[found[index].direction, found[index].stack].abandoned += 1
                groups[found[index].direction, found[index].stack].closed += bool(closed)
        if not parked["rested"]:
            unproven = Reason(
                f"process {process['pid']} did not rest",
                why="it may be about to close what it still holds",
                fix="let the test wait for the service's answers before it ends",
            )
        if parked["undecided"]:
            who = "goroutine is" if parked["undecided"] == 1 else "goroutines are"
            absent["stuck_goroutines"] = Reason(
                f"{parked['undecided']} {who} parked although there is unread data, and may be stuck",
                why=f"process {process['pid']} did not rest: its poller may not have reported the data yet",
                fix="let the test wait for the service's answers before it ends",
            )
        for row, readable in _stuck(process["pid"], parked, found):
            if readable is None:
                absent["stuck_goroutines"] = Reason(
                    "a goroutine is parked although there is unread data, and may or may not be stuck",
                    why=f"a socket of process {process['pid']} can't be inspected",
                    fix="run pytest as root",
                )
            elif readable:
                groups[row.direction, row.stack].stuck += 1
    total = sum(group.after for group in groups.values())
    made = [
        group.offender(direction, stack, total) for (direction, stack), group in groups.items() if group.after
    ]
    made += [
        Offender(
            offence="parked",
            count=0,
            share=0.0,
            direction="",
            syscall=None,
            fd_type=kind,
            local=local,
            peer=_only({one.peer for one in left}),
            stack=_most_common([one.reader for one in left if one.reader]),
            abandoned=len(left),
            closed=sum(one.closed for one in left),
            peers=tuple(dict.fromkeys(one.peer for one in left if one.peer))[:MOST_PEERS],
        )
        for (kind, local), left in abandoned.items()
    ]
    counters = {
        "parked_goroutines": total,
        "parked_growth": sum(offender.growth for offender in made),
        "abandoned_descriptors": sum(offender.abandoned for offender in made),
        "stuck_goroutines": sum(offender.stuck for offender in made),
    }
    for name in absent:
        del counters[name]
    made.sort(key=lambda o: (-o.stuck, -o.abandoned, -o.growth, -o.count))
    return Found(counters, absent, tuple(made), unproven)


def _readers(process: Measured, symbolizer: Symbolizer) -> dict[_Ends, tuple[Frame, ...]]:
    """Where the goroutines that the network woke for reading had been parked most often, by connection."""
    counts: dict[_Ends, Counter[tuple[Frame, ...]]] = defaultdict(Counter)
    for entry in process["offenders"]:
        if entry["offence"] == "woken" and entry["direction"] == "read" and entry["peer"] is not None:
            stack = symbolizer.trimmed(in_files(entry["stack"]))
            counts[entry["local"], entry["peer"]][stack] += entry["count"]
    return {ends: max(stacks, key=lambda stack: stacks[stack]) for ends, stacks in counts.items()}


def _most_common(stacks: Iterable[tuple[Frame, ...]]) -> tuple[Frame, ...]:
    """Empty if there is none."""
    return next((stack for stack, _ in Counter(stacks).most_common(1)), ())


def _stuck(
    pid: int, parked: Parked, found: Sequence[ParkedGoroutine]
) -> Iterator[tuple[ParkedGoroutine, bool | None]]:
    """(goroutine, whether there is something to read, None if unknown)."""
    for index, fd, inode, _ in parked["stuck"]:
        yield found[index], is_readable(pid, fd, inode)


def _only(values: set[str | None]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None
