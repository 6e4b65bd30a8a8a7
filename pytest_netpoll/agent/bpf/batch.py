"""Reads many entries of a hash map at once (Linux 5.6); BCC 0.18 can't."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import struct
from collections.abc import Iterator
from typing import Any

from bpf import syscall

_LOOKUP_BATCH = 24
_ATTR = struct.Struct("=QQQQIIQQ")  # union bpf_attr, for batches
_CURSOR = 4  # bytes; for a hash table, a bucket's number
_AT_ONCE = 1024


def items(table: Any) -> Iterator[tuple[Any, Any]]:
    """Each (key, value) of a table. Entries added or removed meanwhile may be missed or come twice."""
    room = _AT_ONCE
    before = ctypes.create_string_buffer(_CURSOR)
    after = ctypes.create_string_buffer(_CURSOR)
    first = True
    while True:
        keys, values = (table.Key * room)(), (table.Leaf * room)()
        attr = ctypes.create_string_buffer(
            _ATTR.pack(
                0 if first else ctypes.addressof(before),
                ctypes.addressof(after),
                ctypes.addressof(keys),
                ctypes.addressof(values),
                room,
                table.map_fd,
                0,
                0,
            ),
            _ATTR.size,
        )
        last = False
        try:
            syscall.call(syscall.BPF, _LOOKUP_BATCH, attr, _ATTR.size)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # a bucket holds more than one batch
                room *= 2
                continue
            if error.errno != errno.ENOENT:
                raise
            last = True
        count = _ATTR.unpack(attr.raw)[4]
        yield from ((keys[i], values[i]) for i in range(count))
        if last:
            return
        before.raw, first = after.raw, False


def delete(table: Any, key: Any) -> None:
    with contextlib.suppress(KeyError):
        del table[key if isinstance(key, ctypes._SimpleCData) else table.Key(key)]
