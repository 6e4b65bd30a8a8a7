"""Finds the histogram sched.timeToRun in a stripped Go program, and proves it by the machine code.

runtime.casgstatus is its only writer: it calls (*timeHistogram).record with the histogram's address, which it
loads in the instruction before. If both are as expected, the address can't belong to another variable.
"""

from __future__ import annotations

import re
import struct

from pytest_netpoll.gobinary.elf import read_elf
from pytest_netpoll.gobinary.pclntab import PcLineTable

# Bytes of its counters: since Go 1.20, and before.
COUNTERS = 1280
SIZES = (COUNTERS, 5760)

_WRITER, _RECORD = "runtime.casgstatus", "runtime.(*timeHistogram).record"
_WHOLE = COUNTERS + 16  # with underflow and overflow, which record counts behind them

# lea disp32(%rip), %rax; call rel32
_CALL_AMD64 = re.compile(rb"\x48\x8d\x05(.{4})\xe8(.{4})", re.DOTALL)


def find(path: str) -> int:
    """Its link-time address. ValueError says what is missing; a damaged file may raise anything."""
    with open(path, "rb") as file:
        elf = read_elf(file)
        machine = elf["e_machine"]
        if machine not in ("EM_X86_64", "EM_AARCH64"):
            raise ValueError(f"it is {machine}'s")
        table = PcLineTable(path)
        record, code = _function(table, _RECORD)
        counts = _amd64_counts if machine == "EM_X86_64" else _arm64_counts
        if not all(counts(code, place) for place in (COUNTERS, COUNTERS + 8)):
            raise ValueError(f"{_RECORD} counts in an unknown histogram")
        calls = _amd64_calls if machine == "EM_X86_64" else _arm64_calls
        found = calls(*_function(table, _WRITER), record)
        if len(found) != 1:
            raise ValueError(f"{_WRITER} calls {_RECORD} with {len(found)} addresses")
        (address,) = found
        for segment in elf.iter_segments("PT_LOAD"):
            start, writable = segment["p_vaddr"], segment["p_flags"] & 2
            if writable and start <= address <= start + segment["p_memsz"] - _WHOLE and address % 8 == 0:
                return address
        raise ValueError(f"{address:#x} is no variable's address")


def _function(table: PcLineTable, name: str) -> tuple[int, bytes]:
    """(link-time address, machine code)"""
    address = table.entries((name,)).get(name)
    if address is None:
        raise ValueError(f"{name} is inlined or absent")
    return address, table.code(address)


def _amd64_counts(code: bytes, place: int) -> bool:
    """Whether the code adds atomically to that place in its argument: lock xadd %rcx, place(%rax)."""
    return b"\xf0\x48\x0f\xc1\x88" + struct.pack("<i", place) in code


def _arm64_counts(code: bytes, place: int) -> bool:
    """add x0, x0, #place"""
    return 0x91000000 | place << 10 in _words(code)


def _amd64_calls(start: int, code: bytes, callee: int) -> set[int]:
    """The addresses that the callee is called with."""
    found = set()
    for call in _CALL_AMD64.finditer(code):
        (argument,), (distance,) = (struct.unpack("<i", part) for part in call.groups())
        if start + call.end() + distance == callee:
            found.add(start + call.end(1) + argument)
    return found


def _arm64_calls(start: int, code: bytes, callee: int) -> set[int]:
    """adrp x0, page; add x0, x0, #offset; bl callee"""
    found = set()
    words = _words(code)
    for index in range(2, len(words)):
        adrp, add, bl = words[index - 2 : index + 1]
        pc = start + 4 * index
        if bl >> 26 != 0b100101 or pc + 4 * _signed(bl, 26) != callee:
            continue
        if adrp & 0x9F00001F != 0x90000000 or add & 0xFFC003FF != 0x91000000:
            found.add(-1)  # the register held something else
            continue
        pages = _signed((adrp >> 5 & 0x7FFFF) << 2 | adrp >> 29 & 3, 21)
        found.add((pc - 8 & ~0xFFF) + (pages << 12) + (add >> 10 & 0xFFF))
    return found


def _words(code: bytes) -> list[int]:
    return [word for (word,) in struct.iter_unpack("<I", code[: len(code) & ~3])]


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
