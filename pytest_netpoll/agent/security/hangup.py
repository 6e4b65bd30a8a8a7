"""Ends a process that is too busy to notice that its parent is gone."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator

STATUS = 3


@contextlib.contextmanager
def ends_with(fd: int) -> Iterator[None]:
    """During the block, exits with STATUS as soon as nobody has the other end of the pipe open.

    The thread that does this ends with the block, because dropping privileges affects only one thread.
    """
    reader, writer = os.pipe()

    def watch() -> None:
        poller = select.poll()
        for end in (fd, reader):
            poller.register(end, 0)  # a hang-up is always reported
        if fd in dict(poller.poll()):
            os._exit(STATUS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
