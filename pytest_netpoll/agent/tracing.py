"""Loads BPF programs for a raw tracepoint whose arguments have types (tp_btf), and attaches them.

By the kernel's own syscall, for BCC has no such programs. What an argument points to is read there without a
call, which else is most of what a watched syscall costs.
"""

import ctypes
import os
import struct

import syscall

_BPF = {"x86_64": 321, "aarch64": 280}  # from the kernel's tables of syscalls

# From include/uapi/linux/bpf.h.
_PROG_LOAD = 5
_RAW_TRACEPOINT_OPEN = 17
_GET_INFO = 15
_PROG_TYPE_RAW_TRACEPOINT = 17
_PROG_TYPE_TRACING = 26
_TRACE_RAW_TP = 23
# union bpf_attr: of a load up to attach_btf_id, of an attachment the whole.
_LOAD = struct.Struct("=IIQQIIQII16sIIIIQIIQII")
_OPEN = struct.Struct("=QII")
_INFO = struct.Struct("=IIQ")
_COMPILED_SIZE = slice(16, 20)  # in struct bpf_prog_info

LICENSE = b"Dual MIT/GPL"


def load(name, code, tracepoint):
    """The file descriptor of the loaded program. Raises OSError.

    name: bytes. code: its instructions. tracepoint: the number of its typedef, btf_trace_NAME.
    """
    return _load(name, code, _PROG_TYPE_TRACING, _TRACE_RAW_TP, tracepoint)


def works(name, code):
    """Whether the kernel takes the program, for a raw tracepoint, and compiles it to machine code."""
    info = ctypes.create_string_buffer(128)
    try:
        program = _load(name, code, _PROG_TYPE_RAW_TRACEPOINT, 0, 0)
        try:
            _bpf(_GET_INFO, _INFO.pack(program, len(info), ctypes.addressof(info)))
        finally:
            os.close(program)
    except OSError:
        return False
    return any(info.raw[_COMPILED_SIZE])


def _load(name, code, kind, attachment, tracepoint):
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
        attachment,
        *(0, 0, 0, 0, 0, 0, 0),  # no BTF of its own
        tracepoint,
    )
    return _bpf(_PROG_LOAD, attr)


def attach(program):
    """The file descriptor that keeps it attached. Raises OSError."""
    return _bpf(_RAW_TRACEPOINT_OPEN, _OPEN.pack(0, program, 0))


def _bpf(command, attr):
    return syscall.call(_BPF, command, attr, len(attr))
