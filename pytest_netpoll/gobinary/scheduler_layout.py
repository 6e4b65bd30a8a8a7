"""Where a Go program keeps its scheduler's counters, as its debug information tells.

p.schedtick of each runtime.p counts the time slices it gave; the lengths of the run queues are beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.gobinary.elf import read_elf
from pytest_netpoll.gobinary.symtab import addresses

_FIX = "build the service with its debug information: without -ldflags=-s or -w"


def find_layout(path: str) -> Mapping[str, int]:
    """What probe.Probe.learn takes. UnmeasuredError where the program does not tell."""
    what = f"the scheduler of {path} is unknown"
    try:
        with open(path, "rb") as file:
            elf = read_elf(file)
            if elf.get_section_by_name(".symtab") is None or not elf.has_dwarf_info():
                raise UnmeasuredError(what, why="the program is stripped", fix=_FIX)
            structs, symbols = _structs(elf), addresses(elf, ("runtime.allp", "runtime.sched"))
            p, schedt = structs["runtime.p"], structs["runtime.schedt"]
            if "runqsize" in schedt:
                queue = schedt["runqsize"]
            else:  # newer: the queue itself knows its length
                queue = schedt["runq"] + structs["runtime.gQueue"]["size"]
            if p["runqtail"] != p["runqhead"] + 4 or p["runqhead"] < p["schedtick"]:
                raise UnmeasuredError(what, why="runtime.p is laid out as in no known version of Go")
            return {
                "allp": symbols["runtime.allp"],
                "runqsize": symbols["runtime.sched"] + queue,
                "number": p["id"],
                **{name: p[name] for name in ("status", "schedtick", "runqhead")},
            }
    except UnmeasuredError:
        raise
    except KeyError as error:
        raise UnmeasuredError(what, why=f"its debug information has no {error.args[0]}", fix=_FIX) from None
    except Exception as error:  # a damaged file breaks pyelftools in any way
        raise UnmeasuredError(what, why=f"its program cannot be read: {error}") from None


def _structs(elf: Any) -> dict[str, dict[str, int]]:
    """{struct: {member: offset}}.

    Found by their names' bytes: to read all of the debug information would take seconds.
    """
    dwarf = elf.get_dwarf_info()
    data = dwarf.debug_info_sec.stream.getvalue()
    found: dict[str, dict[str, int]] = {}
    for name in ("runtime.p", "runtime.schedt", "runtime.gQueue"):
        wanted = name.encode() + b"\0"
        at = data.find(wanted)
        while at >= 0 and name not in found:
            # Before the name stands the number of the entry's kind, in one byte or two.
            for start in (at - 1, at - 2):
                members = _members(dwarf, start, wanted[:-1])
                if members:
                    found[name] = members
                    break
            at = data.find(wanted, at + 1)
    return found


def _members(dwarf: Any, offset: int, name: bytes) -> dict[str, int]:
    """Of the struct whose entry is at the offset; empty if there is none of that name."""
    try:
        entry = dwarf.get_DIE_from_refaddr(offset)
        if entry.tag != "DW_TAG_structure_type" or entry.attributes["DW_AT_name"].value != name:
            return {}
        return {
            member.attributes["DW_AT_name"].value.decode(): member.attributes[
                "DW_AT_data_member_location"
            ].value
            for member in entry.iter_children()
        }
    except Exception:  # what is no entry may break pyelftools in any way
        return {}
