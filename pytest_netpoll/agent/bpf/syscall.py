"""System calls that Python has no function for."""

import ctypes
import os
import platform


def call(numbers, *arguments):
    """What it returns. Raises OSError.

    numbers: machine -> the call's number there, of the kernel's tables.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(numbers[platform.machine()], *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
