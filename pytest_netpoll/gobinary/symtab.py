"""Looks up a program's symbols by name. pyelftools would create an object for each, which takes a second."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from elftools.elf.elffile import ELFFile

_SYMBOL = struct.Struct("<IBBHQQ")


def addresses(elf: ELFFile, names: Iterable[str]) -> dict[str, int]:
    """The link-time address of each symbol; without missing ones. ValueError: stripped. A damaged file may
    raise anything, as with read_elf.
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
