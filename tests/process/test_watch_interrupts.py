"""Ctrl-C ends `watch`, at whatever moment it comes."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

from pytest_netpoll.cli.watch import app


def test_signals_that_interrupt_each_other_and_the_wait_are_noted() -> None:
    """A handler that takes a lock, which the interrupted wait may hold, hangs; that is rare."""
    for _ in range(20):
        with app._interruptible() as interrupted:
            flood = threading.Thread(
                target=lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(500)]
            )
            flood.start()
            deadline = time.monotonic() + 60
            while flood.is_alive():
                assert select.select([interrupted], [], [], 60)[0]
                assert time.monotonic() < deadline
            flood.join()
