"""Opens ELF files, which may be damaged, and identifies them."""

from __future__ import annotations

import os
from typing import IO

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

Key = tuple[str, int, int]


def key_of(path: str) -> Key:
    """Identifies a file by path, inode and time, since programs are rebuilt under the same name. Zeros if it
    is gone.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - a path from the kernel, asked for with every window and frame
    except (OSError, ValueError):  # ValueError: it isn't a path at all
        return path, 0, 0
    return path, status.st_ino, status.st_mtime_ns


def read_elf(file: IO[bytes]) -> ELFFile:
    """Opens the file after checking that its tables lie inside it. ValueError says what is wrong.

    Reading more may still raise anything (struct.error, KeyError, zlib.error …): pyelftools trusts the file.
    Sizes must be checked, or it could loop for hours.
    """
    try:
        elf = ELFFile(file)
        size = os.fstat(file.fileno()).st_size
        tables = (
            ("sections", elf["e_shoff"], elf.num_sections(), elf["e_shentsize"]),
            ("segments", elf["e_phoff"], elf.num_segments(), elf["e_phentsize"]),
        )
        for what, start, count, each in tables:
            if count and (each == 0 or start + count * each > size):
                raise ValueError(f"there is no room for {count} {what}")
        for number, section in enumerate(elf.iter_sections()):
            if section["sh_type"] != "SHT_NOBITS" and section["sh_offset"] + section["sh_size"] > size:
                raise ValueError(f"there is no room for section {number}")
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"not an ELF file: {error!r}") from error
    return elf


def build_id_of(path: str) -> str:
    """The GNU build id in hex; "" if there is none, as with Go's own linker before 1.24."""
    try:
        with open(path, "rb") as file:
            section = read_elf(file).get_section_by_name(".note.gnu.build-id")
            notes = section.iter_notes() if isinstance(section, NoteSection) else ()
            return next((str(note["n_desc"]) for note in notes), "")
    except Exception:  # a damaged file may raise anything
        return ""
