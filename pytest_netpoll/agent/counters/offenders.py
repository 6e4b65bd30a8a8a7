"""Reads the offenders from the kernel: places in the program and connections, woken for nothing or late."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bpf import machine
from constants import PLACE
from counters import endpoint, windows

if TYPE_CHECKING:
    from bpf import structs
    from bpf.program import Kernel
    from processes.proc import Mapping
    from processes.watched import Process

    # By owner: the entry's key, its count, the bytes it moved, and its descriptor.
    Kept = dict[int, list[tuple[structs.Offender, int, int, endpoint.Endpoint]]]

OFFENCES = (
    "spurious",
    "stale",
    "ready",
    "unclaimed",
    "futile",
    "io",
    "cpu",
    "woken",
    "held",
)  # bpf/netpoll.h: enum offence

# bpf/netpoll.h: EVENT_BITS, SEEN_...
_EVENTS = {0x1: "EPOLLIN", 0x4: "EPOLLOUT", 0x8: "EPOLLERR", 0x10: "EPOLLHUP", 0x20: "EPOLLRDHUP"}
_SOCKET, _TWICE, _QUEUED, _LOCKED, _FILLED = 1, 2, 4, 8, 16
# Calls whose third argument is how many bytes they ask for.
_SIZED = ("read", "recvfrom")


def kept(kernel: Kernel, window: windows.Window, offences: Collection[str]) -> Kept:
    """The entries of these offences in the window."""
    found: Kept = {}
    # Walking the map takes time, so only if there is a reason.
    for key, stats in kernel.offenders.items() if offences else ():
        if window.first <= key.epoch < window.end and OFFENCES[key.offence] in offences:
            found.setdefault(key.owner, []).append((key, stats.count, stats.bytes, endpoint.copy(stats.end)))
    return found


def culprits(kernel: Kernel, process: Process, found: Kept) -> list[dict[str, Any]]:
    """The process's entries among `found` as JSON; counts of sampled offences are estimates."""
    own = [] if process.foreign else [entry for owner in process.lives for entry in found.get(owner, ())]
    ends = endpoint.words(process.pid, {(key.fd, end) for key, _, _, end in own})
    offenders = []
    for key, count, moved, end in own:
        offence = OFFENCES[key.offence]
        place = _place(kernel, process.lives[key.owner], key, ends[key.fd, end])
        entry = {"offence": offence, "count": count, "outcome": None, **_NOTHING_MORE, **place}
        # Where the woken goroutine was parked: its own stack for "woken", the other one's for "ready".
        woken = frames(process.lives[key.owner], kernel.parked_stack(key.woken)) if key.woken else []
        entry.update({"stack": woken, "woken_stack": []} if offence == "woken" else {"woken_stack": woken})
        if offence in ("ready", "cpu"):
            # These have no descriptor.
            entry.update(_NOWHERE)
        elif offence in ("unclaimed", "woken"):
            entry.update(syscall=None)
        elif offence == "held":
            entry.update(held_ns=moved)
        elif offence in ("futile", "io"):
            filled = bool(key.seen & _FILLED) and entry["syscall"] in _SIZED
            entry.update(outcome=windows.outcome(key.outcome), bytes=moved, filled=filled)
        else:
            entry.update(_behind(key))
        if offence in ("ready", "woken"):
            entry.update(locked=bool(key.seen & _LOCKED))
        offenders.append(entry)
    return offenders


# For offences without a descriptor.
_NOWHERE: dict[str, Any] = {**dict.fromkeys(PLACE), "direction": ""}
# For offences that lack these fields.
_NOTHING_MORE: dict[str, Any] = {
    "events": [],
    "bytes": None,
    "registered_twice": None,
    "error_queue": None,
    "locked": False,
    "filled": False,
    "held_ns": None,
}


def _behind(key: structs.Offender) -> dict[str, Any]:
    """What woke it, and what was seen of its socket; None if unknown."""
    known = bool(key.seen & _SOCKET)
    return {
        "events": [name for bit, name in _EVENTS.items() if key.events & bit],
        "registered_twice": bool(key.seen & _TWICE) if known else None,
        "error_queue": bool(key.seen & _QUEUED) if known else None,
    }


def switches(kernel: Kernel, process: Process, window: windows.Window) -> list[dict[str, Any]]:
    """CPU samples in the scheduler, by the call that led there; JSON as from `culprits`."""
    if process.foreign:
        return []
    return [
        {
            "offence": "cpu",
            "count": count.value,
            "outcome": None,
            **_NOTHING_MORE,
            **_NOWHERE,
            "woken_stack": [],
            # Both are return addresses; the innermost frame of a sample usually isn't.
            "stack": frames(process.lives[key.owner], (key.pc - 1, key.caller)),
        }
        for key, count in kernel.switches.items()
        if window.first <= key.epoch < window.end and key.owner in process.lives
    ]


def slowest(
    kernel: Kernel, process: Process, found: Iterable[windows.SlowWakeup], window: windows.Window
) -> list[dict[str, Any]]:
    """The slowest wakeups as JSON."""
    ends = endpoint.words(process.pid, {(wakeup.fd, wakeup.end) for wakeup in found})
    return [
        {
            "latency_ns": wakeup.latency,
            "at_ns": max(0, wakeup.at - window.opened),
            "goid": wakeup.goid,
            "parts": wakeup.parts,
            **_place(kernel, process.mappings, wakeup, ends[wakeup.fd, wakeup.end]),
        }
        for wakeup in found
    ]


def _place(
    kernel: Kernel,
    mappings: Sequence[Mapping],
    entry: structs.Offender | windows.SlowWakeup,
    end: endpoint.Words,
) -> dict[str, Any]:
    kind, local, peer = end
    return {
        "direction": "write" if entry.direction else "read",
        "syscall": machine.names(machine.current()).get(entry.syscall, str(entry.syscall)),
        "fd_type": kind,
        "local": local,
        "peer": peer,
        "stack": _stack(kernel, mappings, entry.stack),
    }


def _stack(kernel: Kernel, mappings: Sequence[Mapping], number: int) -> list[list[Any]]:
    return frames(mappings, kernel.stack(number))


def frames(mappings: Sequence[Mapping], addresses: Iterable[int]) -> list[list[Any]]:
    """[[file, offset in the file]], innermost first, which can be resolved on any machine."""
    frames: list[list[Any]] = []
    for address in addresses:
        for start, stop, offset, path in mappings:
            if start <= address < stop:
                frames.append([path, address - start + offset])
                break
    return frames


def forget(kernel: Kernel, end: int) -> None:
    """Drops the entries of epochs before `end`. Stacks stay while there is room: they may recur."""
    for key in list(kernel.switches.keys()):
        if key.epoch < end:
            del kernel.switches[key]
    kept = list(kernel.offenders.keys())
    for key in kept:
        if key.epoch < end:
            del kernel.offenders[key]
    kernel.make_room_for_stacks({key.stack for key in kept if key.epoch >= end})
    kernel.forget_parked_stacks({key.woken for key in kept if key.epoch >= end})
