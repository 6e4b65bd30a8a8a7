"""Loads BPF programs with bpf(2), and attaches them to tracepoints.

BCC doesn't know tracepoints with types (tp_btf). With types, a program can read what the arguments point to
without calling a helper, which would be most of the cost of a watched syscall.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from bpf import syscall

# From include/uapi/linux/bpf.h.
_PROG_LOAD = 5
_PROG_GET_NEXT_ID = 11
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
_RAW_TRACEPOINT_OPEN = 17
_LINK_CREATE = 28
_ITER_CREATE = 33
_PROG_TYPE_SOCKET_FILTER = 1
KPROBE = 2
PERF_EVENT = 7
RAW_TRACEPOINT = 17
_PROG_TYPE_TRACING = 26
_TRACE_RAW_TP = 23
_TRACE_ITER = 28
# union bpf_attr: for a load up to attach_btf_id, for an attachment all of it
_LOAD = struct.Struct("=IIQQIIQII16sIIIIQIIQII")
_OPEN = struct.Struct("=QII")
_LINK = struct.Struct("=IIIIQI")  # up to the iterator's own
_OF_PROCESS = struct.Struct("=III")  # union bpf_iter_link_info: a thread, a process, or a pidfd
_ITER = struct.Struct("=II")
_INFO = struct.Struct("=II8x24xQIIQ16s")  # struct bpf_prog_info, up to the name
_INFO_BY_FD = struct.Struct("=IIQ")
_COMPILED_SIZE = slice(16, 20)  # in struct bpf_prog_info
_NOTHING = struct.pack("<QQ", 0xB7, 0x95)  # r0 = 0; return
_LOG = 1 << 24  # bytes: before Linux 5.2 the kernel accepts no more
_LOG_PRINTED = 64 << 10

LICENSE = b"Dual MIT/GPL"


class Program(NamedTuple):
    """A loaded BPF program. uid: of the user who loaded it. name: 16 bytes."""

    number: int
    uid: int
    name: bytes


def load(kind: int, name: bytes, code: bytes) -> int:
    """Loads a program and returns its file descriptor. Raises OSError, and prints why the verifier refused.

    kind: of enum bpf_prog_type. code: its instructions.
    """
    try:
        return _load(kind, name, code)
    except OSError:
        log = ctypes.create_string_buffer(_LOG)
        with contextlib.suppress(OSError):
            return _load(kind, name, code, log=log)
        print(log.value[-_LOG_PRINTED:].decode(errors="replace"), file=sys.stderr)
        raise


def load_typed(name: bytes, code: bytes, tracepoint: int) -> int:
    """As `load`, for a tracepoint with types; doesn't print why. tracepoint: its typedef's number."""
    return _load(_PROG_TYPE_TRACING, name, code, _TRACE_RAW_TP, tracepoint)


def load_iterator(name: bytes, code: bytes, iterator: int) -> int:
    """As `load`, for an iterator. iterator: the number of its function."""
    return _load(_PROG_TYPE_TRACING, name, code, _TRACE_ITER, iterator)


def walk(program: int, pid: int) -> None:
    """Runs an iterator program over a process's files. Raises OSError."""
    info = ctypes.create_string_buffer(_OF_PROCESS.pack(0, pid, 0), _OF_PROCESS.size)
    attr = _LINK.pack(program, 0, _TRACE_ITER, 0, ctypes.addressof(info), len(info))
    link = syscall.bpf(_LINK_CREATE, attr)
    try:
        iterator = syscall.bpf(_ITER_CREATE, _ITER.pack(link, 0))
    finally:
        os.close(link)
    try:
        while os.read(iterator, 4096):
            pass
    finally:
        os.close(iterator)


def works(name: bytes, code: bytes) -> bool:
    """Whether the kernel accepts the program for a raw tracepoint and compiles it to machine code."""
    info = ctypes.create_string_buffer(128)
    try:
        program = _load(RAW_TRACEPOINT, name, code)
        try:
            syscall.bpf(_OBJ_GET_INFO_BY_FD, _INFO_BY_FD.pack(program, len(info), ctypes.addressof(info)))
        finally:
            os.close(program)
    except OSError:
        return False
    return any(info.raw[_COMPILED_SIZE])


def lift_memory_limit() -> None:
    """Before Linux 5.11 maps and programs are charged to this limit, summed over the user's processes: with a
    second agent even the smallest program is refused.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def load_nothing(name: bytes) -> int:
    """Loads a program that does nothing; returns its file descriptor. Raises OSError."""
    lift_memory_limit()
    return _load(_PROG_TYPE_SOCKET_FILTER, name, _NOTHING)


def _load(
    kind: int,
    name: bytes,
    code: bytes,
    attach_type: int = 0,
    tracepoint: int = 0,
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> int:
    text = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(LICENSE)
    attr = _LOAD.pack(
        kind,
        len(code) // 8,
        ctypes.addressof(text),
        ctypes.addressof(licence),
        *((0, 0, 0) if log is None else (1, len(log), ctypes.addressof(log))),
        *(0, 0),  # no version of the kernel, no flags
        name[:15],
        0,
        attach_type,
        *(0, 0, 0, 0, 0, 0, 0),  # no BTF of its own
        tracepoint,
    )
    return syscall.bpf(_PROG_LOAD, attr)


def attach(program: int) -> int:
    """Attaches a program with types; returns the file descriptor that keeps it attached. Raises OSError."""
    return syscall.bpf(_RAW_TRACEPOINT_OPEN, _OPEN.pack(0, program, 0))


def attach_to(tracepoint: bytes, program: int) -> int:
    """Attaches a program to a tracepoint; returns the descriptor that keeps it attached. Raises OSError."""
    name = ctypes.create_string_buffer(tracepoint)
    return syscall.bpf(_RAW_TRACEPOINT_OPEN, _OPEN.pack(ctypes.addressof(name), program, 0))


def numbers() -> Iterator[int]:
    """The ids of all loaded programs. Raises OSError."""
    attr = (ctypes.c_uint32 * 3)()
    while True:
        try:
            syscall.bpf(_PROG_GET_NEXT_ID, attr)
        except FileNotFoundError:
            return
        yield attr[1]
        attr[0] = attr[1]


def open_number(number: int) -> int:
    """Opens a program by id; returns its file descriptor. Raises OSError."""
    return syscall.bpf(_PROG_GET_FD_BY_ID, (ctypes.c_uint32 * 3)(number))


def describe(program: int) -> Program:
    """The Program behind the file descriptor. Raises OSError."""
    info = ctypes.create_string_buffer(_INFO.size)
    syscall.bpf(_OBJ_GET_INFO_BY_FD, _INFO_BY_FD.pack(program, _INFO.size, ctypes.addressof(info)))
    _, number, _, uid, _, _, name = _INFO.unpack(info.raw)
    return Program(number, uid, name)
