"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

# Of the kernel's tables: machine -> number.
BPF = {"x86_64": 321, "aarch64": 280}


def call(numbers: Mapping[str, int], *arguments: object) -> int:
    """What it returns. Raises OSError.

    numbers: machine -> the call's number there, of the kernel's tables.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(numbers[platform.machine()], *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
