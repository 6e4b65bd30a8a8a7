"""Below how many bytes a socket of another process isn't readable: SO_RCVLOWAT, which /proc does not show."""

from __future__ import annotations

import ctypes
import os
import socket

_PIDFD_GETFD = 438  # on every machine


def low_water(pid: int, fd: int, inode: int) -> int | None:
    """None where this process may not know, or the descriptor is another socket by now.

    For that it has a descriptor of the socket for a moment; nothing is read from it.
    """
    try:
        process = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    if copy < 0:
        return None
    try:
        if os.fstat(copy).st_ino != inode:
            return None
        with socket.socket(fileno=os.dup(copy)) as found:
            return found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    except OSError:
        return None
    finally:
        os.close(copy)
