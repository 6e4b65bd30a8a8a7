"""Who is parked on descriptors at a window's two ends, and whose peers are gone, if a limit asks for it.

A goroutine that is about to leave must not count as one that stays: if there are more at the end than at the
start, the agent looks again once the process rests. So a connection that a client has just closed isn't
reported.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from counters import endpoint, offenders
from processes import goroutines, proc, rest, sockets

if TYPE_CHECKING:
    from bpf.program import Kernel
    from processes.goroutines import Parked
    from processes.sockets import Socket
    from processes.watched import Process

    _Place = tuple[bool, tuple[int, ...]]  # whether to write, and the stack

BEFORE, AFTER = 0.25, 1.0  # s to wait until the process rests
STUCK = 0.02  # s that data must be unread, at least
LEAVING = 0.5  # s that a resting process gets to close connections whose peers are gone
EXAMPLES = 5  # of goroutines parked at one place
_UNDECIDED = 1.0  # s after which it stays unknown who is stuck


class Look(NamedTuple):
    """A look at one process. inodes: of its sockets, by descriptor. sockets: by inode."""

    goroutines: list[Parked]
    inodes: dict[int, int]
    sockets: dict[int, Socket]

    def abandoned(self) -> dict[int, int]:
        """{inode: descriptor} of the sockets whose peers are gone."""
        return {inode: fd for fd, inode in self.inodes.items() if self.sockets[inode].gone}

    def unread(self, goroutine: Parked) -> int:
        """How much waits to be read on the goroutine's descriptor, as in sockets.Socket.unread."""
        known = self.sockets.get(self.inodes.get(goroutine.fd, 0))
        return known.unread if known is not None and not goroutine.write else 0


NOBODY = Look([], {}, {})


class Parking:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        # window -> {owner: Look, or None if nothing could be read}
        self._at_open: dict[int, dict[int, Look | None]] = {}

    def before(self, processes: Iterable[Process]) -> dict[int, Look | None]:
        """{owner: Look} for a window that is about to open. May wait for the processes to rest."""
        found = {}
        for process in processes:
            if not process.exited:
                rest.wait(process.pid, BEFORE)
                found[process.owner] = self._try(process)
        return found

    def open(self, window: int, before: dict[int, Look | None]) -> None:
        self._at_open[window] = before

    def close(self, window: int) -> None:
        self._at_open.pop(window, None)

    def lap(self, window: int, processes: Iterable[Process]) -> dict[int, dict[str, Any]]:
        """{owner: JSON} of the window, which begins again. Empty if the window didn't ask for it."""
        before = self._at_open.get(window)
        if before is None:
            return {}
        told: dict[int, dict[str, Any]] = {}
        now: dict[int, Look | None] = {}
        for process in processes:
            # A process that is new since the window opened had nobody parked.
            earlier = before.get(process.owner, NOBODY)
            try:
                if earlier is None:
                    raise goroutines.Unreadable("its memory could not be read when the window opened")
                told[process.owner], now[process.owner] = self._end(process, earlier)
            except goroutines.Unreadable as error:
                told[process.owner], now[process.owner] = _nothing(str(error)), None
        self._at_open[window] = now
        return told

    def now(self, process: Process) -> dict[str, Any]:
        """Who is parked now, each goroutine; JSON as from `lap`. Raises goroutines.Unreadable."""
        return _Report(process, self._look(process)).everybody()

    def _end(self, process: Process, before: Look) -> tuple[dict[str, Any], Look]:
        if process.exited:
            return _Report(process, NOBODY).of(before, {}, set(), 0), NOBODY
        after = self._look(process)
        abandoned, rested = _new(before, after), True
        if abandoned or _grew(before, after):
            rested = rest.wait(process.pid, AFTER)
            after, abandoned = self._stay(process, before, abandoned)
        stuck, undecided = self._stuck(process, after)
        told = _Report(process, after).of(before, abandoned, stuck, undecided)
        return {**told, "rested": rested}, after

    def _stay(self, process: Process, before: Look, abandoned: dict[int, int]) -> tuple[Look, dict[int, int]]:
        """A later look at who stays parked, and which abandoned sockets are still open by then. For instance,
        a proxy closes its client's connection only once the server behind it has answered.
        """
        deadline = time.monotonic() + LEAVING
        while True:
            after = self._look(process)
            abandoned = {inode: fd for inode, fd in _new(before, after).items() if inode in abandoned}
            if not abandoned or time.monotonic() >= deadline:
                return after, abandoned
            time.sleep(LEAVING / 10)

    def _stuck(self, process: Process, look: Look) -> tuple[set[tuple[int, int]], int]:
        """((g, fd) of goroutines parked although a poll has reported data to read; how many are undecided).
        It is decided once the process rests while one of its threads polls: then every event has been
        reported, and the goroutines woken for it have run. Throttled and starved threads do not rest.
        """
        suspects = _suspects(look)
        began = time.monotonic()
        since: float | None = None
        while suspects and time.monotonic() - began < _UNDECIDED:
            if rest.rests(process.pid, process.epfd):
                look = self._look(process)
                if rest.rests(process.pid, process.epfd):
                    suspects &= _suspects(look)
                    now = time.monotonic()
                    since = now if since is None else since
                    if now - since >= STUCK:
                        return suspects, 0
            else:
                suspects &= _suspects(self._look(process))
            time.sleep(STUCK / 8)
        return set(), len(suspects)

    def _try(self, process: Process) -> Look | None:
        try:
            return self._look(process)
        except goroutines.Unreadable:
            return None

    def _look(self, process: Process) -> Look:
        """Raises goroutines.Unreadable; not for a process that has ended meanwhile, and has nobody parked."""
        # A child that hasn't exec'ed yet shows its parent's goroutines.
        if process.exited or process.foreign or proc.may_exec_soon(process.pid):
            return NOBODY
        try:
            look = self._read(process)
        except goroutines.Unreadable:
            if self._has_ended(process):
                return NOBODY
            raise
        if self._kernel.is_current(process):
            return look
        # What was read may belong to another program. Without a poller, as children have that exec soon after
        # they were forked, nobody was parked.
        if process.layout is None or self._has_ended(process):
            return NOBODY
        raise goroutines.Unreadable("it ran another program while it was looked at")

    def _has_ended(self, process: Process) -> bool:
        return self._kernel.has_ended(process) or not proc.alive(process.pid)

    def _read(self, process: Process) -> Look:
        found: list[Parked] = []
        registrations: list[proc.Registration] = []
        if process.layout is not None:
            registrations = proc.registrations(process.pid, process.epfd)
            found = goroutines.parked(
                process.pid, registrations, process.layout, self._kernel.signed, process.mappings
            )
        inodes = sockets.inodes(process.pid, registrations)
        return Look(found, inodes, sockets.sockets(process.pid, inodes))


def _suspects(look: Look) -> set[tuple[int, int]]:
    return {(p.g, p.fd) for p in look.goroutines if look.unread(p)}


def _new(before: Look, after: Look) -> dict[int, int]:
    earlier = before.abandoned()
    return {inode: fd for inode, fd in after.abandoned().items() if inode not in earlier}


def _by_stack(look: Look) -> Counter[_Place]:
    return Counter((p.write, p.stack) for p in look.goroutines)


def _grew(before: Look, after: Look) -> bool:
    return bool(_by_stack(after) - _by_stack(before))


class _Report:
    """The JSON of messages.Parked."""

    def __init__(self, process: Process, look: Look) -> None:
        self._process = process
        self._look = look
        self._stacks: dict[tuple[int, ...], int] = {}

    def everybody(self) -> dict[str, Any]:
        """Each goroutine, without the counts, which follow from that."""
        gone = self._look.abandoned()
        rows = [self._row(p, False, gone) for p in self._look.goroutines]
        return {**_nothing(None), "goroutines": rows, "stacks": self._frames()}

    def of(
        self, before: Look, abandoned: dict[int, int], stuck: set[tuple[int, int]], undecided: int
    ) -> dict[str, Any]:
        """Those that stand out and some examples, and the counts. before: the look when the window opened."""
        look, process = self._look, self._process
        earlier = {(p.g, p.write, p.stack) for p in before.goroutines}
        gone = look.abandoned()
        told: list[Parked] = []
        rows: list[list[Any]] = []
        examples: Counter[_Place] = Counter()
        for p in look.goroutines:
            new, inode = (p.g, p.write, p.stack) not in earlier, look.inodes.get(p.fd)
            examples[p.write, p.stack] += 1
            example = examples[p.write, p.stack] <= EXAMPLES
            if example or new or inode in abandoned or (p.g, p.fd) in stuck:
                told.append(p)
                rows.append(self._row(p, new, gone))
        waiting = {p.fd: index for index, p in reversed(list(enumerate(told)))}
        closed = sockets.closed(process.pid, (look.sockets[inode] for inode in abandoned))
        counts = {"before": self._counts(before), "after": self._counts(look)}
        return {
            "why_not": None,
            "goroutines": rows,
            **counts,
            "stacks": self._frames(),
            "abandoned": [
                [*self._words(fd), waiting.get(fd), look.sockets[inode] in closed]
                for inode, fd in abandoned.items()
            ],
            "stuck": [
                [index, p.fd, look.inodes.get(p.fd, 0), look.unread(p)]
                for index, p in enumerate(told)
                if (p.g, p.fd) in stuck and not p.write
            ],
            "undecided": undecided,
            "rested": True,
        }

    def _row(self, p: Parked, new: bool, gone: Container[int]) -> list[Any]:
        """gone: the sockets whose peers are."""
        is_gone = self._look.inodes.get(p.fd) in gone
        return [p.goid, _direction(p.write), *self._words(p.fd), self._number(p.stack), new, is_gone]

    def _frames(self) -> list[list[list[Any]]]:
        mappings = self._process.lives.get(self._process.owner, self._process.mappings)
        return [offenders.frames(mappings, stack) for stack in self._stacks]

    def _counts(self, look: Look) -> list[list[Any]]:
        """[direction, number of the stack, how many, their type and local end; None if those differ]."""
        ends: defaultdict[_Place, Counter[tuple[str, str | None]]] = defaultdict(Counter)
        for p in look.goroutines:
            known = look.sockets.get(look.inodes.get(p.fd, 0))
            ends[p.write, p.stack][(known.kind, known.local) if known else ("", None)] += 1
        counts = []
        for (write, stack), found in ends.items():
            kinds = {kind for kind, _ in found}
            kind = kinds.pop() or None if len(kinds) == 1 else None
            local = sockets.address(*next(iter(found))) if len(found) == 1 else None
            counts.append([_direction(write), self._number(stack), sum(found.values()), kind, local])
        return counts

    def _number(self, stack: tuple[int, ...]) -> int:
        return self._stacks.setdefault(stack, len(self._stacks))

    def _words(self, fd: int) -> tuple[str, str | None, str | None]:
        """(type, local, peer) of a descriptor."""
        inode = self._look.inodes.get(fd)
        if inode is None:
            return (*endpoint.by_link(self._process.pid, fd), None)
        known = self._look.sockets[inode]
        return known.kind, sockets.address(known.kind, known.local), sockets.address(known.kind, known.peer)


def _direction(write: bool) -> str:
    return "write" if write else "read"


def _nothing(why_not: str | None) -> dict[str, Any]:
    return {
        "why_not": why_not,
        "goroutines": [],
        "before": [],
        "after": [],
        "stacks": [],
        "abandoned": [],
        "stuck": [],
        "undecided": 0,
        "rested": True,
    }
