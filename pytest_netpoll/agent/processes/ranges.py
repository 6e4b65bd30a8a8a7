"""Reads many parts of a process's memory with few calls: a call for each takes most of the time."""

from __future__ import annotations

import array
import bisect
import ctypes
import errno
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from processes import proc

_IOV_MAX = 1024  # linux/uio.h


_WORD = 8  # of a struct iovec: an address, and a size

_readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong]


class Ranges:
    """Parts of a process's memory, to be read once or again and again, in this order. ranges: the address and
    the size of each, one after another.
    """

    def __init__(self, pid: int, ranges: Iterable[int]) -> None:
        self._pid = pid
        self._theirs = array.array("Q", ranges)
        # Where each of them begins in the buffer, and the end of the last one.
        self._starts = [0, *itertools.accumulate(self._theirs[1::2])]
        self._buffer = bytearray(self._starts[-1])
        self._refused = False  # by a sandbox

    def __len__(self) -> int:
        return len(self._buffer)

    def read(self, memory: proc.Memory) -> bytearray | None:
        """The parts, joined, until the next call; None if one of them isn't mapped."""
        return None if any(True for _ in self._unmapped(memory)) else self._buffer

    def read_mapped(self, memory: proc.Memory) -> bytearray:
        """As `read`, with zeros for the parts that aren't mapped."""
        for number in self._unmapped(memory):
            start, end = self._starts[number : number + 2]
            self._buffer[start:end] = bytes(end - start)
        return self._buffer

    def _unmapped(self, memory: proc.Memory) -> Iterator[int]:
        """Reads the parts; the numbers of those that aren't mapped."""
        starts, count, first = self._starts, len(self._starts) - 1, 0
        buffer, ranges = _address(self._buffer), self._theirs.buffer_info()[0]
        while first < count and not self._refused:
            behind = min(first + _IOV_MAX, count)
            ours = array.array("Q", (buffer + starts[first], starts[behind] - starts[first]))
            theirs = ranges + 2 * _WORD * first
            read = _readv(self._pid, ours.buffer_info()[0], 1, theirs, behind - first, 0)
            if read < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
                self._refused = True
            elif read == ours[1]:
                first = behind
            else:  # it ended within a part, or before it
                first = bisect.bisect_right(starts, starts[first] + max(0, read))
                yield first - 1
        for number in range(first, count):
            start, end = starts[number : number + 2]
            data = memory.read(self._theirs[2 * number], end - start)
            if data is None:
                yield number
            else:
                self._buffer[start:end] = data


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer else 0
