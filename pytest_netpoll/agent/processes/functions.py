"""Finds the Go function at an address of a live process, from the tables that its own tracebacks read.

Every Go program has them in memory, stripped or not; gobinary/pclntab.py explains their format. The process
may have written anything there: numbers from it are used only as addresses in its memory, and every search
has a bound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from processes import proc

# magic, two zeros; then the size of an instruction and that of a pointer.
_MAGICS = (b"\xf1\xff\xff\xff\0\0", b"\xf0\xff\xff\xff\0\0")
_HEADER = struct.Struct("<6xBBQ16x5Q")  # …, functions, where the parts begin
_ENTRY = struct.Struct("<II")
# runtime.moduledata, in words of 8 bytes.
_FUNCNAMETAB, _TEXT = 1, 22

_CHUNK = 1 << 20
_MOST_BYTES = 1 << 30  # to search
_MOST_HITS = 1000  # that match the searched bytes
_LONGEST_NAME = 64


class Function(NamedTuple):
    name: str
    entry: int


class Functions:
    """The functions of a process. Raises LookupError if its memory holds no such tables. mappings: the data
    mappings of the program's file.
    """

    def __init__(self, memory: proc.Memory, mappings: Sequence[proc.Mapping]) -> None:
        self._memory = memory
        self._mappings = mappings
        self._left = _MOST_BYTES
        self._text, self._names, self._table, self._count = self._find()

    def at(self, address: int) -> Function:
        """The Function that contains the address. Raises LookupError."""
        target = address - self._text
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[0] <= target:
                low = middle + 1
            else:
                high = middle
        if not low:
            raise LookupError(f"no function is at {address:#x}")
        start, place = self._entry(low - 1)
        (name,) = struct.unpack("<i", self._read(self._table + place + 4, 4))
        # In short reads up to its end: the memory behind it may not be mapped.
        text = b""
        while b"\0" not in text and len(text) < _LONGEST_NAME:
            text += self._read(self._names + name + len(text), 8)
        return Function(text.split(b"\0")[0].decode(errors="replace"), self._text + start)

    def _entry(self, index: int) -> tuple[int, int]:
        start, place = _ENTRY.unpack(self._read(self._table + _ENTRY.size * index, _ENTRY.size))
        return start, place

    def _find(self) -> tuple[int, int, int, int]:
        for magic in _MAGICS:
            for header in self._search(magic):
                step, pointer, count, names, *_, functions = _HEADER.unpack(self._read(header, _HEADER.size))
                if step not in (1, 2, 4) or pointer != 8 or max(count, names, functions) >> 32:
                    continue
                # A module's data must point to it.
                for module in self._search(struct.pack("<Q", header)):
                    if self._word(module + 8 * _FUNCNAMETAB) == header + names:
                        return self._word(module + 8 * _TEXT), header + names, header + functions, count
        raise LookupError("no table of functions of a known format")

    def _search(self, wanted: bytes) -> Iterator[int]:
        """The addresses at which the bytes occur."""
        hits = 0
        for start, end, _, _ in self._mappings:
            at = start
            while at < end and self._left > 0:
                size = min(_CHUNK, end - at)
                data = self._memory.read(at, size) or b""
                self._left -= size
                found = data.find(wanted)
                while found >= 0 and hits < _MOST_HITS:
                    hits += 1
                    yield at + found
                    found = data.find(wanted, found + 1)
                # An occurrence across the border of two chunks is found in the second.
                at += size if at + size >= end else size - len(wanted) + 1

    def _word(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def _read(self, address: int, size: int) -> bytes:
        data = self._memory.read(address, size) if 0 <= address < 1 << 63 else None
        if data is None:
            raise LookupError(f"nothing is at {address:#x}")
        return data
