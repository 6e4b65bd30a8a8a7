"""Whether a process rests: none of its threads runs or waits for a CPU."""

from __future__ import annotations

import os
import time

from bpf import machine
from processes import proc

_STEP = 0.002  # s
_POLLS = {number for number, role in machine.roles(machine.current()).items() if role & machine.POLL}


def rests(pid: int, epfd: int | None = None) -> bool:
    """Whether it rests now. epfd: the runtime's; if given, a thread has to wait there, which proves that no
    event is left to report.
    """
    used = proc.cpu_time(pid)
    try:
        tids = os.listdir(f"/proc/{pid}/task")
        if not all(_sleeps(pid, tid) for tid in tids):
            return False
        if epfd is not None and not any(_polls(pid, tid, epfd) for tid in tids):
            return False
    except (OSError, ValueError, IndexError):
        return False  # a thread has ended, so one was running
    # A thread may have handed its work to one that was looked at before.
    return used is not None and proc.cpu_time(pid) == used


def wait(pid: int, seconds: float) -> bool:
    """Waits until the process rests; returns False if it doesn't within this many seconds."""
    deadline = time.monotonic() + seconds
    while not rests(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_STEP)
    return True


def _sleeps(pid: int, tid: str) -> bool:
    with open(f"/proc/{pid}/task/{tid}/stat", "rb") as f:
        text = f.read()
    return text[text.rindex(b")") + 2 : text.rindex(b")") + 3] == b"S"


def _polls(pid: int, tid: str, epfd: int) -> bool:
    with open(f"/proc/{pid}/task/{tid}/syscall") as f:
        number, *arguments = f.read().split()
    return number.isdigit() and int(number) in _POLLS and int(arguments[0], 16) == epfd
