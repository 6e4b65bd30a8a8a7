"""Gives services the CPU time that their faults need to be measured, or takes it from them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

GIVE_UP = 30  # s


def until_fed(pid: int, share: float, act: Callable[[], object]) -> None:
    """Acts until the process has used that share of a CPU meanwhile, at least once, and not for ever. The
    process then goes before most others, as far as this user may have that.
    """
    began, before = time.monotonic(), _used(pid)
    with before_others(pid):
        while True:
            act()
            took = time.monotonic() - began
            if _used(pid) - before >= share * took or took > GIVE_UP:
                return


@contextlib.contextmanager
def before_others(*pids: int) -> Iterator[None]:
    """In the block, these processes go before most others, as far as this user may have that."""
    for pid in pids:
        _renice(pid, -20)
    try:
        yield
    finally:
        for pid in pids:
            _renice(pid, 0)


def _renice(pid: int, niceness: int) -> None:
    with contextlib.suppress(OSError):  # the scheduler may share the CPU out by sessions
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)


@contextlib.contextmanager
def burners(n: int, prefix: Sequence[str] = ()) -> Iterator[None]:
    """n processes that use a CPU each. The scheduler may share CPUs out by sessions: each has its own."""
    loop = [*prefix, sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(loop, start_new_session=True) for _ in range(n)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _used(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
