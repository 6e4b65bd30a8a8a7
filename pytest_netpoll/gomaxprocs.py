"""How many threads of a Go process run Go at once: its GOMAXPROCS as it is, not as it was asked for."""

from __future__ import annotations

import contextlib
import functools
import struct
from pathlib import Path

import psutil
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

_VARIABLE = b"runtime.gomaxprocs"
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_MOST = 1 << 20


def gomaxprocs_of(pid: int) -> int | None:
    """Read from the runtime's own variable; of a stripped program, what its environment lets it be.

    None where neither can be seen, as of another user's process.
    """
    with contextlib.suppress(OSError, ELFError, ValueError):
        status = Path(f"/proc/{pid}/exe").stat()
        place = _place(f"/proc/{pid}/exe", (status.st_dev, status.st_ino, status.st_mtime_ns))
        if place is not None:
            address, relocatable = place
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(address + (_base(pid) if relocatable else 0))
                value = int.from_bytes(memory.read(4), "little")
            if 0 < value <= _MOST:
                return value
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        asked = process.environ().get("GOMAXPROCS", "")
        return int(asked) if asked.isdecimal() and int(asked) else len(process.cpu_affinity() or ()) or None
    return None


# Of a running process it is asked for in every window; the identity tells one build from the next.
@functools.lru_cache(maxsize=64)
def _place(path: str, identity: tuple[int, int, int]) -> tuple[int, bool] | None:  # noqa: ARG001
    """The variable's address and whether it is relative to where the program was loaded."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        symbols, names = elf.get_section_by_name(".symtab"), elf.get_section_by_name(".strtab")
        if symbols is None or names is None or elf.elfclass != 64 or not elf.little_endian:
            return None
        name = names.data().find(b"\0" + _VARIABLE + b"\0") + 1
        # Not pyelftools' symbols: an object for each of some ten thousand takes a second.
        for found, _, _, _, address, _ in _SYMBOL.iter_unpack(symbols.data()) if name else ():
            if found == name:
                relocatable = elf["e_type"] == "ET_DYN"
                # Go links these at 4 MiB as well: what counts is how far behind the start it lies.
                start = min(segment["p_vaddr"] for segment in elf.iter_segments("PT_LOAD"))
                return address - (start if relocatable else 0), relocatable
    return None


def _base(pid: int) -> int:
    """Where the kernel loaded a position-independent program."""
    executable = str(Path(f"/proc/{pid}/exe").readlink())
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].rstrip("\n") == executable and int(fields[2], 16) == 0:
                return int(line.partition("-")[0], 16)
    raise ValueError(f"process {pid} does not map {executable}")
