"""Whether a socket of another process is readable, as a poll would report it. Unread bytes in /proc don't
mean that: they include messages in a UDP socket's error queue, and a TCP socket isn't readable below its
low-water mark (SO_RCVLOWAT).
"""

from __future__ import annotations

import ctypes
import os
import select

_PIDFD_GETFD = 438  # on every machine


def is_readable(pid: int, fd: int, inode: int) -> bool | None:
    """None if this process may not look, or the descriptor is another socket by now. It holds a duplicate of
    the descriptor for a moment; nothing is read from it.
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
        poll = select.poll()
        poll.register(copy, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))
    except OSError:
        return None
    finally:
        os.close(copy)
