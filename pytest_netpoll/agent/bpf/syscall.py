"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping

# machine -> number, from the kernel's tables.
BPF = {"x86_64": 321, "aarch64": 280}


def call(numbers: Mapping[str, int], *arguments: object) -> int:
    """Makes a system call and returns its result. Raises OSError. numbers: machine -> the call's number."""
    result: int = _libc().syscall(numbers[_machine()], *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_uint32]) -> int:
    """bpf(2). attr: its union bpf_attr. Raises OSError."""
    return call(BPF, command, attr, len(attr))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _machine() -> str:
    return os.uname().machine
