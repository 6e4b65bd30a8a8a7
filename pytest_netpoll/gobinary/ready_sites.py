"""Finds where a Go program makes goroutines runnable, and where a probe there is cheap.

The kernel emulates some instructions at a uprobe and single-steps the others, which costs several times as
much. A Go function begins with a comparison, which is single-stepped. Then come a jump and usually a `push`,
which are both emulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from pytest_netpoll.agent.bpf.prologue import LONGEST, cheap_place
from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.gobinary.elf import read_elf
from pytest_netpoll.gobinary.pclntab import PcLineTable, load_segments
from pytest_netpoll.gobinary.symtab import addresses

READY = "runtime.ready"
DEADLINE = "runtime.netpollgoready"
_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}  # pyelftools' names, and uname's


@dataclass(frozen=True)
class Sites:
    """Offsets in the program's file. deadline: None if that function does not exist."""

    ready: int
    deadline: int | None


def find_sites(path: str) -> Sites:
    """Finds the places. UnmeasuredError if there is no cheap place, or the program can't be read."""
    try:
        with open(path, "rb") as file:
            machine = _MACHINES.get(read_elf(file)["e_machine"], "")
            segments = load_segments(file)
            entries = _entries(path, file)
            sites: dict[str, int] = {}
            for name, address in entries.items():
                segment = next(s for s in segments if s.address <= address < s.address + s.size)
                offset = address - segment.address + segment.offset
                file.seek(offset)
                place = cheap_place(file.read(LONGEST), machine)
                if place is not None:
                    sites[name] = offset + place
    except UnmeasuredError:
        raise
    except Exception as error:  # a damaged file may raise anything in pyelftools
        raise UnmeasuredError(
            f"ready calls of {path} cannot be counted", why=f"its program cannot be read: {error}"
        ) from None
    if READY not in sites:
        why = "no instruction at its beginning is cheap to probe" if READY in entries else "it is not there"
        raise UnmeasuredError(f"ready calls of {path} cannot be counted", why=f"{READY}: {why}")
    return Sites(sites[READY], sites.get(DEADLINE))


def _entries(path: str, file: IO[bytes]) -> dict[str, int]:
    """Function -> link-time address of its entry; without functions that were inlined everywhere."""
    try:
        # Works for stripped programs, too, and is faster than the symbols.
        return PcLineTable(path).entries((READY, DEADLINE))
    except ValueError:
        return addresses(read_elf(file), (READY, DEADLINE))
