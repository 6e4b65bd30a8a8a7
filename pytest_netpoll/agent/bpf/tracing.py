"""Loads BPF programs for a raw tracepoint whose arguments have types (tp_btf), and attaches them.

By the kernel's own syscall, for BCC has no such programs. What an argument points to is read there without a
call, which else is most of what a watched syscall costs.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from bpf import syscall

# From include/uapi/linux/bpf.h.
_PROG_LOAD = 5
_PROG_GET_NEXT_ID = 11
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
_RAW_TRACEPOINT_OPEN = 17
_PROG_TYPE_SOCKET_FILTER = 1
_PROG_TYPE_RAW_TRACEPOINT = 17
_PROG_TYPE_TRACING = 26
_TRACE_RAW_TP = 23
# union bpf_attr: of a load up to attach_btf_id, of an attachment the whole.
_LOAD = struct.Struct("=IIQQIIQII16sIIIIQIIQII")
_OPEN = struct.Struct("=QII")
_INFO = struct.Struct("=II8x24xQIIQ16s")  # struct bpf_prog_info, up to the name
_INFO_BY_FD = struct.Struct("=IIQ")
_COMPILED_SIZE = slice(16, 20)  # in struct bpf_prog_info
_NOTHING = struct.pack("<QQ", 0xB7, 0x95)  # r0 = 0; return

LICENSE = b"Dual MIT/GPL"


class Program(NamedTuple):
    """uid: of whoever loaded it. name: 16 bytes."""

    number: int
    uid: int
    name: bytes


def load(name: bytes, code: bytes, tracepoint: int) -> int:
    """The file descriptor of the loaded program. Raises OSError.

    code: its instructions. tracepoint: the number of its typedef, btf_trace_NAME.
    """
    return _load(_PROG_TYPE_TRACING, name, code, _TRACE_RAW_TP, tracepoint)


def works(name: bytes, code: bytes) -> bool:
    """Whether the kernel takes the program, for a raw tracepoint, and compiles it to machine code."""
    info = ctypes.create_string_buffer(128)
    try:
        program = _load(_PROG_TYPE_RAW_TRACEPOINT, name, code, 0, 0)
        try:
            _bpf(_OBJ_GET_INFO_BY_FD, _INFO_BY_FD.pack(program, len(info), ctypes.addressof(info)))
        finally:
            os.close(program)
    except OSError:
        return False
    return any(info.raw[_COMPILED_SIZE])


def load_nothing(name: bytes) -> int:
    """The file descriptor of a program that is there and does nothing. Raises OSError."""
    return _load(_PROG_TYPE_SOCKET_FILTER, name, _NOTHING, 0, 0)


def _load(kind: int, name: bytes, code: bytes, attach_type: int, tracepoint: int) -> int:
    text = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(LICENSE)
    attr = _LOAD.pack(
        kind,
        len(code) // 8,
        ctypes.addressof(text),
        ctypes.addressof(licence),
        *(0, 0, 0, 0, 0),  # no log, no version of the kernel, no flags
        name[:15],
        0,
        attach_type,
        *(0, 0, 0, 0, 0, 0, 0),  # no BTF of its own
        tracepoint,
    )
    return _bpf(_PROG_LOAD, attr)


def attach(program: int) -> int:
    """The file descriptor that keeps it attached. Raises OSError."""
    return _bpf(_RAW_TRACEPOINT_OPEN, _OPEN.pack(0, program, 0))


def numbers() -> Iterator[int]:
    """Of all programs that there are. Raises OSError."""
    attr = (ctypes.c_uint32 * 3)()
    while True:
        try:
            _bpf(_PROG_GET_NEXT_ID, attr)
        except FileNotFoundError:
            return
        yield attr[1]
        attr[0] = attr[1]


def open_number(number: int) -> int:
    """The program's file descriptor. Raises OSError."""
    return _bpf(_PROG_GET_FD_BY_ID, (ctypes.c_uint32 * 3)(number))


def describe(program: int) -> Program:
    """The Program behind the file descriptor. Raises OSError."""
    info = ctypes.create_string_buffer(_INFO.size)
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, _INFO.size, ctypes.addressof(info)))
    _, number, _, uid, _, _, name = _INFO.unpack(info.raw)
    return Program(number, uid, name)


def _bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_uint32]) -> int:
    return syscall.call(syscall.BPF, command, attr, len(attr))
