"""Who was woken in vain or late, as the kernel kept it: places in the program, and the connections."""

import endpoint
import machine
from kernel import slot_of

OFFENCES = ("spurious", "stale", "ready", "unclaimed")  # bpf/netpoll.h: enum offence


def kept(kernel, process, window, offences):
    """JSON of what was kept of the process in the window; the counts of "ready" are estimates."""
    found = [
        (key, blame.count, endpoint.copy(blame.end))
        for key, blame in kernel.offenders.items()
        if slot_of(key.owner) == process.slot
        and window.first <= key.epoch < window.end
        and OFFENCES[key.offence] in offences
    ]
    ends = endpoint.words(process.pid, {(key.fd, end) for key, _, end in found})
    offenders = []
    for key, count, end in found:
        offence = OFFENCES[key.offence]
        entry = {"offence": offence, "count": count, **_place(kernel, process, key, ends[key.fd, end])}
        if offence == "ready":
            entry.update(direction="", syscall=None, fd_type=None)
        elif offence == "unclaimed":
            entry.update(syscall=None)
        offenders.append(entry)
    return offenders


def slowest(kernel, process, found, window):
    """JSON of windows.SlowWakeups."""
    ends = endpoint.words(process.pid, {(wakeup.fd, wakeup.end) for wakeup in found})
    return [
        {
            "latency_ns": wakeup.latency,
            "at_ns": max(0, wakeup.at - window.opened),
            "goid": wakeup.goid,
            **_place(kernel, process, wakeup, ends[wakeup.fd, wakeup.end]),
        }
        for wakeup in found
    ]


def _place(kernel, process, entry, end):
    kind, local, peer = end
    return {
        "direction": "write" if entry.direction else "read",
        "syscall": machine.names(machine.current()).get(entry.syscall, str(entry.syscall)),
        "fd_type": kind,
        "local": local,
        "peer": peer,
        "stack": _stack(kernel, process, entry.stack),
    }


def _stack(kernel, process, number):
    """[[file, offset in the file]], innermost first: what addr2line can be asked on any machine."""
    frames = []
    for address in kernel.stack(number):
        for start, stop, offset, path in process.mappings:
            if start <= address < stop:
                frames.append([path, address - start + offset])
                break
    return frames


def forget(kernel, end):
    """Those of the epochs before `end`. Their stacks stay while there is room: later ones may be the same."""
    kept = list(kernel.offenders.keys())
    for key in kept:
        if key.epoch < end:
            del kernel.offenders[key]
    kernel.make_room_for_stacks({key.stack for key in kept if key.epoch >= end})
