"""Reads the tables of Go's own tracebacks: address → functions, including inlined ones, file and line.

They are in every Go binary, stripped or not. `go tool addr2line` doesn't know inlined calls: it prints the
innermost call's line with the outermost function. Formats: Go 1.18 and 1.19, and 1.20 or newer
(runtime/symtab.go, runtime/symtabinl.go).
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

from pytest_netpoll.gobinary.elf import read_elf

# magic, two zeros; then the size of an instruction and that of a pointer.
_MAGIC_118 = b"\xf0\xff\xff\xff\0\0"
_MAGIC_120 = b"\xf1\xff\xff\xff\0\0"

# runtime.moduledata, in words of 8 bytes.
_FUNCNAMETAB = 1
_TEXT = 22
_GOFUNC = range(36, 52)  # its place differs between versions; proven by what it points to

_PCDATA_INLINE_INDEX = 2
_FUNCDATA_INLINE_TREE = 3
_ABSENT = 0xFFFFFFFF
_PROOFS = 200  # how many functions with inlined calls must decode
_DEEPEST = 100
_LONGEST_CODE = 1 << 20


class Line(NamedTuple):
    """A call. file: as the compiler recorded it."""

    function: str
    file: str
    line: int


class Segment(NamedTuple):
    """A loaded part of the file, and its link-time address."""

    offset: int
    size: int
    address: int
    writable: bool


class _Function(NamedTuple):
    start: int  # from the start of the text
    end: int
    name: int
    files: int
    lines: int
    unit: int
    inline_index: int  # 0: no call was inlined
    inline_tree: int


class PcLineTable:
    """The tables of one executable. ValueError if it has none in a known format."""

    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as f:
                self.segments = load_segments(f)
                self._relocated = _relocated(f)
                self._data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            self._find()
        except Exception as error:  # a damaged file may raise anything
            raise ValueError(f"{path}: {error}") from error

    def lines(self, address: int) -> tuple[Line, ...]:
        """The calls at a link-time address, the innermost first; empty if there is no Go code.

        address: the instruction's own; for a return address, that of the call before it.
        """
        target = address - self._text
        try:
            function = self._function(target)
            return () if function is None else tuple(self._unwind(function, target))
        except (struct.error, LookupError, ValueError, ArithmeticError):
            return ()

    def entries(self, names: Iterable[str]) -> dict[str, int]:
        """The link-time addresses of functions, by name; without missing ones."""
        wanted = {}
        for name in names:
            at = self._data.find(b"\0" + name.encode() + b"\0", self._names, self._units)
            if at >= 0:
                wanted[at + 1 - self._names] = name
        found = {}
        for start, place in struct.iter_unpack("<II", self._table()):
            at = struct.unpack_from("<i", self._data, self._functions + place + 4)[0]
            if at in wanted:
                found[wanted[at]] = self._text + start
        return found

    def code(self, entry: int) -> bytes:
        """The machine code of the function with that entry, up to the next function."""
        target = entry - self._text
        at = self._offset_of(entry)
        following = bisect_right(self._starts, target)
        if at is None or following == len(self._starts):
            return b""
        return self._data[at : at + min(self._starts[following] - target, _LONGEST_CODE)]

    def _find(self) -> None:
        for magic in (_MAGIC_120, _MAGIC_118):
            at = self._data.find(magic)
            while at >= 0:
                if self._data[at + 6] in (1, 2, 4) and self._data[at + 7] == 8 and self._adopt(at):
                    return
                at = self._data.find(magic, at + 1)
        raise ValueError("no line table of a known format")

    def _adopt(self, at: int) -> bool:
        """Whether this is the header of the tables: a module's data must point to it."""
        self._step = self._data[at + 6]
        self._modern = self._data[at : at + 6] == _MAGIC_120
        self._count = self._u64(at + 8)
        names, units, files, values, functions = struct.unpack_from("<5Q", self._data, at + 32)
        size = len(self._data)
        if not all(0 < part < size - at for part in (names, units, files, values, functions)):
            return False
        self._names, self._units, self._files = at + names, at + units, at + files
        self._values, self._functions = at + values, at + functions
        header = self._address_of(at)
        for module in self._pointers_to(header) if header is not None else ():
            if self._word(module + 8 * _FUNCNAMETAB) != header + names:
                continue
            text = self._word(module + 8 * _TEXT)
            if text is not None:
                self._text = text
                self._starts = [start for start, _ in struct.iter_unpack("<II", self._table())]
                self._trees = self._find_gofunc(module)
                return True
        return False

    def _table(self) -> bytes:
        return self._data[self._functions : self._functions + 8 * self._count]

    def _find_gofunc(self, module: int) -> int:
        """The place in the file from which the trees of inlined calls are counted."""
        samples = []
        for index in range(self._count):
            function = self._nth(index)
            if function.inline_index and function.inline_tree != _ABSENT:
                samples.append(function)
                if len(samples) == _PROOFS:
                    break
        for number in _GOFUNC:
            address = self._word(module + 8 * number)
            at = None if address is None else self._offset_of(address)
            if at is None:
                continue
            # Not all of them: a few inlined functions have no name.
            if sum(self._decodes(function, at) for function in samples) > 0.9 * len(samples):
                return at
        raise ValueError("the trees of inlined calls were not found")

    def _decodes(self, function: _Function, base: int) -> bool:
        """Whether the tree begins with a function's name, called from inside this function."""
        try:
            name, parent = self._inlined(base + function.inline_tree, 0)
        except (struct.error, ArithmeticError):
            return False
        at = self._names + name
        return (
            0 <= parent < function.end - function.start
            and 0 < name < self._units - self._names
            and self._data[at - 1] == 0
            and self._data[at] != 0
        )

    def _unwind(self, function: _Function, target: int) -> Iterator[Line]:
        for _ in range(_DEEPEST):
            file, line = self._place(function, target)
            index = (
                self._value(function.inline_index, function.start, target) if function.inline_index else -1
            )
            if index < 0:
                yield Line(self._name(function.name), file, line)
                return
            name, parent = self._inlined(self._trees + function.inline_tree, index)
            yield Line(self._name(name), file, line)
            target = function.start + parent

    def _inlined(self, tree: int, index: int) -> tuple[int, int]:
        """(name, offset in the function of an instruction of the calling line)."""
        name, parent = struct.unpack_from(
            "<ii", self._data, tree + (16 * index + 4 if self._modern else 20 * index + 12)
        )
        return name, parent

    def _place(self, function: _Function, target: int) -> tuple[str, int]:
        line = self._value(function.lines, function.start, target)
        number = self._value(function.files, function.start, target)
        if number < 0:
            return "", max(line, 0)
        at = struct.unpack_from("<I", self._data, self._units + 4 * (function.unit + number))[0]
        return "" if at == _ABSENT else self._string(self._files + at), max(line, 0)

    def _function(self, target: int) -> _Function | None:
        index = bisect_right(self._starts, target) - 1
        if index < 0:
            return None
        function = self._nth(index)
        return function if target < function.end else None

    def _nth(self, index: int) -> _Function:
        at = self._functions + 8 * index
        start, place, end = struct.unpack_from("<III", self._data, at)
        at = self._functions + place
        name = struct.unpack_from("<i", self._data, at + 4)[0]
        files, lines, pcdata, unit = struct.unpack_from("<4I", self._data, at + 20)
        size = 44 if self._modern else 40
        funcdata = self._data[at + size - 1]
        index_table, tree = 0, _ABSENT
        if pcdata > _PCDATA_INLINE_INDEX and funcdata > _FUNCDATA_INLINE_TREE:
            index_table = self._u32(at + size + 4 * _PCDATA_INLINE_INDEX)
            tree = self._u32(at + size + 4 * (pcdata + _FUNCDATA_INLINE_TREE))
        if tree == _ABSENT:
            index_table = 0
        return _Function(start, end, name, files, lines, unit, index_table, tree)

    def _value(self, table: int, pc: int, target: int) -> int:
        """The value at the target, in a table of (change of the value, length in code) pairs."""
        at, value, first = self._values + table, -1, True
        while True:
            change, at = self._varint(at)
            if change == 0 and not first:
                return -1
            first = False
            value += -(change >> 1) - 1 if change & 1 else change >> 1
            length, at = self._varint(at)
            if length == 0:
                raise ValueError("a pair that covers no code")
            pc += length * self._step
            if target < pc:
                return value

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while shift < 35:  # they have 32 bits
            byte = self._data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise ValueError("a number without an end")

    def _name(self, at: int) -> str:
        """The name as in Go's tracebacks: main.twice[...], whatever the types were."""
        head, bracket, rest = self._string(self._names + at).partition("[")
        return head + "[...]" + rest.rpartition("]")[2] if bracket else head or "?"

    def _string(self, at: int) -> str:
        return self._data[at : self._data.find(b"\0", at)].decode(errors="replace")

    def _u32(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._data, at)[0])

    def _u64(self, at: int) -> int:
        return int(struct.unpack_from("<Q", self._data, at)[0])

    def _address_of(self, offset: int) -> int | None:
        for s in self.segments:
            if s.offset <= offset < s.offset + s.size:
                return offset - s.offset + s.address
        return None

    def _offset_of(self, address: int) -> int | None:
        for s in self.segments:
            if s.address <= address < s.address + s.size:
                return address - s.address + s.offset
        return None

    def _word(self, address: int) -> int | None:
        """The pointer stored at a link-time address, as the loader would leave it."""
        if address in self._relocated:
            return self._relocated[address]
        at = self._offset_of(address)
        return None if at is None else self._u64(at)

    def _pointers_to(self, address: int) -> Iterator[int]:
        """The places where pointers to the address are stored."""
        yield from (place for place, value in self._relocated.items() if value == address)
        wanted = struct.pack("<Q", address)
        for s in self.segments:
            if not s.writable:
                continue
            at = self._data.find(wanted, s.offset, s.offset + s.size)
            while at >= 0:
                yield at - s.offset + s.address
                at = self._data.find(wanted, at + 1, s.offset + s.size)


def load_segments(file: IO[bytes]) -> list[Segment]:
    """The program's loaded segments. ValueError if the file is not ELF, or damaged."""
    return [
        Segment(s["p_offset"], s["p_filesz"], s["p_vaddr"], bool(s["p_flags"] & 2))
        for s in read_elf(file).iter_segments("PT_LOAD")
    ]


def _relocated(file: IO[bytes]) -> dict[int, int]:
    """{address: pointer} for the pointers that the loader fills in: the file of a position-independent
    program has zeros.
    """
    elf = read_elf(file)
    if elf.elfclass != 64 or not elf.little_endian:
        raise ValueError("not a 64-bit little-endian program")
    if elf["e_type"] != "ET_DYN":
        return {}
    tables: Iterable[bytes] = (s.data() for s in elf.iter_sections("SHT_RELA"))
    return {place: addend for table in tables for place, _, addend in struct.iter_unpack("<QQQ", table)}
