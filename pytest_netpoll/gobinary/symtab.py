"""A program's symbols by name. pyelftools would make an object of each, which takes a second."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from elftools.elf.elffile import ELFFile

_SYMBOL = struct.Struct("<IBBHQQ")


def addresses(elf: ELFFile, names: Iterable[str]) -> dict[str, int]:
    """Link-time address of each symbol; without those that are not there. ValueError: stripped.

    Of a damaged file struct.error and others, as from read_elf's.
    """
    if elf.elfclass != 64 or not elf.little_endian:
        raise ValueError("not a 64-bit little-endian program")
    section = elf.get_section_by_name(".symtab")
    if section is None:
        raise ValueError("it has no symbols")
    strings = elf.get_section(section["sh_link"]).data()
    places = {strings.find(b"\0" + name.encode() + b"\0") + 1: name for name in names}
    return {
        places[name]: address
        for name, _, _, _, address, _ in _SYMBOL.iter_unpack(section.data())
        if name in places and name
    }
