"""Where in a Go program goroutines are made runnable, and where a probe there is cheap.

The kernel emulates some instructions at a uprobe and single-steps the others, which is several times
dearer. A Go function begins with a comparison, which is single-stepped; after it come a jump that is
emulated and mostly a `push` that is, too.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import IO

from pytest_netpoll.elf import read_elf
from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.pclntab import PcLineTable, load_segments
from pytest_netpoll.symtab import addresses

READY = "runtime.ready"
DEADLINE = "runtime.netpollgoready"

# cmp 0x10(%r14),%rsp, in large frames of lea -x(%rsp),%r12; then jbe, to where the stack grows; then mostly
# push %rbp. That is better than the jump: it is not run a second time after the stack has grown.
_X86_64 = re.compile(
    rb"(?:\x49\x3b\x66\x10|\x4c\x8d(?:\x64\x24.|\xa4\x24.{4})\x4d\x3b\x66\x10)"
    rb"(?P<jump>\x76.|\x0f\x86.{4})(?P<push>\x55)?",
    re.DOTALL,
)
_LONGEST_PROLOGUE = 32
_ARM64_SEARCHED = 6  # instructions


@dataclass(frozen=True)
class Sites:
    """Offsets in the program's file. deadline: None where that function does not exist."""

    ready: int
    deadline: int | None


def find_sites(path: str) -> Sites:
    """UnmeasuredError where there is no cheap place, or where the program cannot be read."""
    try:
        with open(path, "rb") as file:
            machine = read_elf(file)["e_machine"]
            segments = load_segments(file)
            entries = _entries(path, file)
            sites: dict[str, int] = {}
            for name, address in entries.items():
                segment = next(s for s in segments if s.address <= address < s.address + s.size)
                offset = address - segment.address + segment.offset
                file.seek(offset)
                place = cheap_place(file.read(_LONGEST_PROLOGUE), machine)
                if place is not None:
                    sites[name] = offset + place
    except UnmeasuredError:
        raise
    except Exception as error:  # a damaged file breaks pyelftools in any way
        raise UnmeasuredError(
            f"ready calls of {path} cannot be counted", why=f"its program cannot be read: {error}"
        ) from None
    if READY not in sites:
        why = "no instruction at its beginning is cheap to probe" if READY in entries else "it is not there"
        raise UnmeasuredError(f"ready calls of {path} cannot be counted", why=f"{READY}: {why}")
    return Sites(sites[READY], sites.get(DEADLINE))


def cheap_place(code: bytes, machine: str) -> int | None:
    """How far behind a function's entry the kernel emulates an instruction that is run once a call.

    code: what the function begins with. machine: as pyelftools calls it. None: nowhere near.
    """
    if machine == "EM_AARCH64":
        for at, (word,) in enumerate(struct.iter_unpack("<I", code[: 4 * _ARM64_SEARCHED])):
            if word & 0xFF000010 == 0x54000000:  # b.ls, to where the stack grows
                return 4 * at
        return None
    if code[:1] == b"\x55":  # push %rbp: a function without a check
        return 0
    match = _X86_64.match(code)
    if machine != "EM_X86_64" or match is None:
        return None
    return match.start("push" if match["push"] else "jump")


def _entries(path: str, file: IO[bytes]) -> dict[str, int]:
    """Function -> link-time address of its entry; absent where it was inlined everywhere."""
    try:
        # Also in stripped programs, and faster than the symbols.
        return PcLineTable(path).entries((READY, DEADLINE))
    except ValueError:
        return addresses(read_elf(file), (READY, DEADLINE))
