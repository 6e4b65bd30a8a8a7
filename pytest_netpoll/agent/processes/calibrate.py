"""Proves on a live process which epoll instance is the Go runtime's and how it packs its pollDescs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bpf import layouts
from processes import proc


class Calibration(NamedTuple):
    """layout: None if no registration proves one. registered: how many pollDescs proved it. candidates:
    {epfd: registration of the wake-up fd} of the instances that may be the runtime's. strange: describes
    registrations like Go's that no layout decodes, or None. others: if nothing is proven, the number of
    registrations besides those wake-up fds. more: pollDescs that prove another runtime in the same process.
    """

    epfd: int
    layout: layouts.Layout | None
    break_data: int
    registered: int
    candidates: dict[int, proc.Registration]
    strange: str | None
    others: int
    more: int


class Unreadable(Exception):
    """The process's memory cannot be read; the message says why."""


def calibrate(pid: int, signed: bool) -> Calibration:
    """Calibrates the process. Raises Unreadable."""
    try:
        memory = proc.Memory(pid)
    except OSError as error:
        raise Unreadable(f"its memory cannot be read: {error.strerror or error}") from error
    with memory:
        candidates: dict[int, proc.Registration] = {}
        strange: list[str] = []
        proven: list[Calibration] = []
        others = 0
        for epfd, registrations in proc.epoll_instances(pid).items():
            wakeup = _own_wakeup(memory, registrations)
            if wakeup is None:
                others += len(registrations)
                continue
            others += len(registrations) - 1
            descriptors = [r for r in registrations if r.events == layouts.GO_EVENTS]
            layout = _layout(memory, descriptors, signed) if descriptors else None
            if layout is not None:
                count = len(descriptors)
                proven.append(Calibration(epfd, layout, wakeup.data, count, candidates, None, 0, 0))
                continue
            candidates[epfd] = wakeup
            if descriptors:
                strange.append(f"{len(descriptors)} descriptors on epoll fd {epfd}")
    if proven:
        return proven[0]._replace(more=sum(other.registered for other in proven[1:]))
    seen = None
    if strange:
        seen = (
            f"no known layout of pollDesc fits {' and '.join(strange)}; a newer pytest-netpoll may "
            "support it "
            "(pip install --upgrade pytest-netpoll)"
        )
    return Calibration(-1, None, 0, 0, candidates, seen, others, 0)


def _layout(
    memory: proc.Memory, descriptors: Sequence[proc.Registration], signed: bool
) -> layouts.Layout | None:
    """The layout that all registrations prove, or None."""
    for layout in layouts.LAYOUTS:
        if all(_proves(memory, layout, r, signed) for r in descriptors):
            return layout
    return None


def _own_wakeup(memory: proc.Memory, registrations: Sequence[proc.Registration]) -> proc.Registration | None:
    """The entry of the runtime's own wake-up fd: its data is 0 or the address of a variable that holds it."""
    for r in registrations:
        if r.events != layouts.BREAK_EVENTS:
            continue
        if r.data == 0:
            return r
        value = memory.read(r.data, 8)
        if value is not None and int.from_bytes(value, "little") == r.fd:
            return r
    return None


def _proves(
    memory: proc.Memory, layout: layouts.Layout, registration: proc.Registration, signed: bool
) -> bool:
    words = memory.read(layouts.address(layout, registration.data, signed), layouts.POLLDESC.size)
    if words is None:
        return False
    return layouts.holds(layout, registration.data, registration.fd, layouts.POLLDESC.unpack(words))
