"""Reads a Go process's actual GOMAXPROCS, whatever was requested."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import psutil

from pytest_netpoll.gobinary.elf import key_of, read_elf
from pytest_netpoll.gobinary.symtab import addresses

_VARIABLE = "runtime.gomaxprocs"
_MOST = 1 << 20


def gomaxprocs_of(pid: int) -> int | None:
    """GOMAXPROCS from the runtime's variable; for a stripped program, derived from its environment.

    None if neither can be read, as for another user's process.
    """
    # OverflowError: a damaged program's address.
    with contextlib.suppress(OSError, ValueError, OverflowError):
        place = _place_by_key(*key_of(f"/proc/{pid}/exe"))
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


# Every window asks for it.
@functools.lru_cache(maxsize=64)
def _place_by_key(path: str, _inode: int, _time: int) -> tuple[int, bool] | None:
    return place_of(path)


def place_of(path: str) -> tuple[int, bool] | None:
    """The variable's address, and whether it is relative to where the program was loaded. None if the program
    is stripped, damaged, unreadable or not Go's.
    """
    try:
        with open(path, "rb") as file:
            elf = read_elf(file)
            address = addresses(elf, (_VARIABLE,))[_VARIABLE]
            if elf["e_type"] != "ET_DYN":
                return address, False
            # Go links these at 4 MiB as well, so use the distance from the start.
            return address - min(segment["p_vaddr"] for segment in elf.iter_segments("PT_LOAD")), True
    except Exception:  # a damaged file may raise anything
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
