"""Reads the version of Go that built a program, which the program carries, stripped or not."""

from __future__ import annotations

import functools
from typing import Literal

from elftools.elf.elffile import ELFFile

from pytest_netpoll.gobinary.elf import key_of, read_elf


def go_version_of_program(path: str) -> str | None:
    """go_version_of with a cache: every window asks for it."""
    return _version_by_key(*key_of(path))


@functools.lru_cache(maxsize=64)
def _version_by_key(path: str, _inode: int, _time: int) -> str | None:
    return go_version_of(path)


def go_version_of(path: str) -> str | None:
    """The version of Go that built the executable ("go1.26.8"); None if it isn't Go's or is unreadable."""
    try:
        with open(path, "rb") as file:
            version = _embedded_version(read_elf(file))
    except Exception:  # a damaged file may raise anything
        return None
    # Enabled experiments follow the version: "go1.26.8 X:greenteagc".
    return version.partition(" X:")[0] or None if version.isprintable() else None


def _embedded_version(elf: ELFFile) -> str:
    """Reads the format of Go's debug/buildinfo. Raises ValueError or IndexError if it isn't there."""
    section = elf.get_section_by_name(".go.buildinfo")
    data = b"" if section is None else section.data()
    if not data.startswith(b"\xff Go buildinf:"):
        raise ValueError("no build info")
    pointer_size, flags = data[14], data[15]
    if flags & 2:  # since Go 1.18: the string itself, after its length as a varint
        length, offset, shift = 0, 32, 0
        while True:
            byte = data[offset]
            length |= (byte & 0x7F) << shift
            offset, shift = offset + 1, shift + 7
            if byte < 0x80:
                return str(data[offset : offset + length], "ascii")
    order: Literal["big", "little"] = "big" if flags & 1 else "little"

    def read(address: int, size: int) -> bytes:
        for start in elf.address_offsets(address, size):
            elf.stream.seek(start)
            return bytes(elf.stream.read(size))
        raise ValueError(f"address {address:#x} is not in the file")

    # Before 1.18: the address of a Go string, which consists of the bytes' address and number.
    header = read(int.from_bytes(data[16 : 16 + pointer_size], order), 2 * pointer_size)
    address = int.from_bytes(header[:pointer_size], order)
    return str(read(address, int.from_bytes(header[pointer_size:], order)), "ascii")
