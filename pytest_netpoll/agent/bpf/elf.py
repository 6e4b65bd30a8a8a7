"""Reads from an ELF file where it is loaded."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

_HEADER = struct.Struct("<16xHHIQQQIHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1


class Segment(NamedTuple):
    """A loaded part of the file: its offset, its size and its link-time address."""

    offset: int
    size: int
    address: int


def segments(file: BinaryIO) -> list[Segment]:
    """The file's loaded segments. Raises ValueError if it isn't 64-bit ELF."""
    try:
        head = os.pread(file.fileno(), _HEADER.size, 0)
        if head[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        _, _, _, _, table, _, _, _, size, count = _HEADER.unpack(head)
        found = []
        for i in range(count):
            kind, _, offset, address, _, length, _, _ = _SEGMENT.unpack(
                os.pread(file.fileno(), _SEGMENT.size, table + i * size)
            )
            if kind == _PT_LOAD:
                found.append(Segment(offset, length, address))
        return found
    except struct.error as error:
        raise ValueError("a broken ELF file") from error


def address_of(file: BinaryIO, offset: int) -> int | None:
    """The link-time address of an offset in the file; None if that is not loaded."""
    for start, size, address in segments(file):
        if start <= offset < start + size:
            return offset - start + address
    return None
