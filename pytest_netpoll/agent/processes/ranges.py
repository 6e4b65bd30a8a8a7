"""Reads many parts of a process's memory with few calls: a call for each takes most of the time."""

from __future__ import annotations

import ctypes
import errno
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from processes import proc

_IOV_MAX = 1024  # linux/uio.h


class _IoVec(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


_readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong]


class Ranges:
    """Parts of a process's memory, to be read again and again. ranges: [(start, size)]."""

    def __init__(self, pid: int, ranges: Sequence[tuple[int, int]]) -> None:
        self._pid = pid
        self._ranges = ranges
        starts = list(itertools.accumulate((size for _, size in ranges), initial=0))
        self._buffer = bytearray(starts[-1])
        self._theirs = (_IoVec * len(ranges))(*itertools.starmap(_IoVec, ranges))
        here = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer)) if ranges else 0
        self._ours = [
            _IoVec(here + starts[first], starts[min(first + _IOV_MAX, len(ranges))] - starts[first])
            for first in range(0, len(ranges), _IOV_MAX)
        ]
        self._refused = False  # by a sandbox

    def __len__(self) -> int:
        return len(self._buffer)

    def read(self, memory: proc.Memory) -> bytes | bytearray | None:
        """The parts, joined, until the next call; None if one of them isn't mapped."""
        for number, ours in enumerate(self._ours):
            if self._refused:
                break
            first = number * _IOV_MAX
            theirs = ctypes.byref(self._theirs, first * ctypes.sizeof(_IoVec))
            count = min(_IOV_MAX, len(self._ranges) - first)
            read = _readv(self._pid, ctypes.byref(ours), 1, theirs, count, 0)
            if read < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
                self._refused = True
            elif read != ours.size:
                return None
        if not self._refused:
            return self._buffer
        parts = [memory.read(start, size) for start, size in self._ranges]
        return None if None in parts else b"".join(part for part in parts if part is not None)
