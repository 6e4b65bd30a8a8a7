"""Finds where a Go program keeps its scheduler's counters, from its debug information. For a stripped
program, the machine code gives the address of one of them, the histogram sched.timeToRun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_netpoll.agent.constants import (
    MUTEX_REASONS,
    SCHEDULER_LATENCY,
    SCHEDULER_LOCKS,
    SCHEDULER_MUTEXES,
    SCHEDULER_QUEUES,
    SCHEDULER_WAITERS,
)
from pytest_netpoll.errors import Reason, UnmeasuredError
from pytest_netpoll.gobinary import time_to_run
from pytest_netpoll.gobinary.elf import read_elf
from pytest_netpoll.gobinary.symtab import addresses

_FIX = "build the service with its debug information: without -ldflags=-s or -w"


@dataclass(frozen=True)
class SchedulerLayout:
    """places: link-time addresses and offsets, by the names in agent/constants.py: SCHEDULER_…; each group is
    known as a whole or all 0. lacks: the first name of a group -> why it is unknown.
    """

    places: Mapping[str, int]
    lacks: Mapping[str, Reason] = field(default_factory=dict)


def find_layout(path: str) -> SchedulerLayout:
    """Finds the layout. UnmeasuredError if the program has no information."""
    what = f"the scheduler of {path} is unknown"
    try:
        with open(path, "rb") as file:
            elf = read_elf(file)
            if elf.get_section_by_name(".symtab") is None or not elf.has_dwarf_info():
                return _stripped(path, Reason(what, why="the program is stripped", fix=_FIX))
            return _described(elf, what)
    except UnmeasuredError:
        raise
    except KeyError as error:
        raise UnmeasuredError(what, why=f"its debug information has no {error.args[0]}", fix=_FIX) from None
    except Exception as error:  # a damaged file may raise anything in pyelftools
        raise UnmeasuredError(what, why=f"its program cannot be read: {error}") from None


def _stripped(path: str, stripped: Reason) -> SchedulerLayout:
    try:
        address = time_to_run.find(path)
    except ValueError as error:
        why = f"{stripped.why}, and its machine code does not show where they are: {error}"
        raise UnmeasuredError(stripped.what, why=why, fix=_FIX) from None
    groups = (SCHEDULER_QUEUES, SCHEDULER_MUTEXES, SCHEDULER_LOCKS, SCHEDULER_WAITERS)
    unknown = {name: 0 for group in groups for name in group}
    return SchedulerLayout(
        {**unknown, "time_to_run": address, "time_to_run_size": time_to_run.COUNTERS},
        {group[0]: stripped for group in groups},
    )


def _described(elf: Any, what: str) -> SchedulerLayout:
    structs = _structs(elf)
    names = ("runtime.allp", "runtime.sched", "runtime.allm", "runtime.allglen", "runtime.allgptr")
    symbols = addresses(elf, names)
    sched, p, m, schedt = symbols["runtime.sched"], *map(structs.__getitem__, _WANTED[:3])
    queue = schedt.get("runqsize")
    if queue is None:  # newer: the queue has its own length
        queue = schedt["runq"] + structs["runtime.gQueue"]["size"]
    if p["runqtail"] != p["runqhead"] + 4 or p["runqhead"] < p["schedtick"]:
        raise UnmeasuredError(what, why="the layout of runtime.p is unlike that of any known version of Go")
    places = {
        "allp": symbols["runtime.allp"],
        "runqsize": sched + queue,
        "nmspinning": sched + schedt["nmspinning"],
        "number": p["id"],
        **{name: p[name] for name in ("status", "schedtick", "runqhead", "m")},
        "curg": m["curg"],
        "gstatus": structs["runtime.g"]["atomicstatus"],
        **dict.fromkeys((*SCHEDULER_LATENCY, *SCHEDULER_MUTEXES, *SCHEDULER_LOCKS, *SCHEDULER_WAITERS), 0),
    }
    lacks: dict[str, Reason] = {}
    size = structs["runtime.timeHistogram"]["underflow"]  # it is behind the counters
    if size in time_to_run.SIZES:
        places |= {"time_to_run": sched + schedt["timeToRun"], "time_to_run_size": size}
    else:
        lacks[SCHEDULER_LATENCY[0]] = Reason(
            what, why="the layout of runtime.timeHistogram is unlike that of any known version of Go"
        )
    if "totalMutexWaitTime" in schedt:
        places["mutex_wait"] = sched + schedt["totalMutexWaitTime"]
    else:
        lacks[SCHEDULER_MUTEXES[0]] = Reason("the Go runtime doesn't record waits for mutexes before Go 1.20")
    if "totalRuntimeLockWaitTime" in schedt:
        places |= {
            "lock_wait": sched + schedt["totalRuntimeLockWaitTime"],
            "allm": symbols["runtime.allm"],
            "alllink": m["alllink"],
            "m_lock_wait": m["mLockProfile"] + structs["runtime.mLockProfile"]["waitTime"],
        }
    else:
        lacks[SCHEDULER_LOCKS[0]] = Reason(
            "the Go runtime doesn't record waits for its own locks before Go 1.22"
        )
    waiters = {
        **{
            name: symbols[f"runtime.{name}"]
            for name in ("allglen", "allgptr")
            if f"runtime.{name}" in symbols
        },
        "waitreason": structs["runtime.g"]["waitreason"],
        **_constants(elf),
    }
    if waiters.keys() == set(SCHEDULER_WAITERS):
        places |= waiters
    elif "totalMutexWaitTime" not in schedt:  # which came with the reasons
        lacks[SCHEDULER_WAITERS[0]] = Reason(
            "which goroutines wait for a mutex can't be seen before Go 1.20",
            why="only since then does the runtime tell them from those that wait for other semaphores",
        )
    else:
        lacks[SCHEDULER_WAITERS[0]] = Reason(
            what, why=f"its debug information has no {min(set(SCHEDULER_WAITERS) - waiters.keys())}"
        )
    return SchedulerLayout(places, lacks)


_WANTED = (
    "runtime.p",
    "runtime.m",
    "runtime.schedt",
    "runtime.g",
    "runtime.gQueue",
    "runtime.timeHistogram",
    "runtime.mLockProfile",
)


def _structs(elf: Any) -> dict[str, dict[str, int]]:
    """{struct: {member: offset}}"""
    found = _entries(elf, "DW_TAG_structure_type", _WANTED)
    return {name: members for name, entry in found.items() if (members := _members(entry))}


def _constants(elf: Any) -> dict[str, int]:
    """{name: value} of MUTEX_REASONS, without missing ones."""
    entries = _entries(elf, "DW_TAG_constant", [f"runtime.{name}" for name in MUTEX_REASONS.values()])
    found = {}
    for name, constant in MUTEX_REASONS.items():
        entry = entries.get(f"runtime.{constant}")
        value = entry.attributes["DW_AT_const_value"].value if entry is not None else 0
        if isinstance(value, int) and 0 < value < 256:
            found[name] = value
    return found


def _entries(elf: Any, tag: str, names: Iterable[str]) -> dict[str, Any]:
    """{name: its entry}, without missing ones. Searches for the bytes of the names: reading all debug
    information would take seconds.
    """
    dwarf = elf.get_dwarf_info()
    data = dwarf.debug_info_sec.stream.getvalue()
    found: dict[str, Any] = {}
    for name in names:
        wanted = name.encode() + b"\0"
        at = data.find(wanted)
        while at >= 0 and name not in found:
            # The name follows the number of the entry's kind, which takes one byte or two.
            for start in (at - 1, at - 2):
                with contextlib.suppress(Exception):  # if it is no entry, pyelftools may raise anything
                    entry = dwarf.get_DIE_from_refaddr(start)
                    if entry.tag == tag and entry.attributes["DW_AT_name"].value == wanted[:-1]:
                        found[name] = entry
                        break
            at = data.find(wanted, at + 1)
    return found


def _members(entry: Any) -> dict[str, int]:
    """{member: offset} of a struct; empty if it is damaged."""
    try:
        return {
            member.attributes["DW_AT_name"].value.decode(): member.attributes[
                "DW_AT_data_member_location"
            ].value
            for member in entry.iter_children()
        }
    except Exception:  # if it isn't an entry, pyelftools may raise anything
        return {}
