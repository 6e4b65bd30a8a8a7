"""Conditions for tests to wait for, instead of fixed times."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# s. Usually long enough for a goroutine to park again: a message that comes sooner may find it running.
SPACED = 0.001
# s of CPU that a process may use before it counts as one that never sleeps.
OWN_WORK = 0.1
DEADLINE = 60  # s
NAP = 0.01  # s
MOST_FAILED = 3
_failed_each_time: list[str] = []


def patiently(condition: Callable[[], T], seconds: float = 60, step: float = 0.01) -> T:
    """The condition's result as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(step)
    return result


def attempts(seconds: float = 60, least: int = 3) -> Iterator[int]:
    """Numbers of attempts at something that a busy machine may prevent, until that time is over."""
    deadline = time.monotonic() + seconds
    number = 0
    while number < least or time.monotonic() < deadline:
        yield number
        number += 1


class Disturbed(UserWarning):
    """A test passed only when it was repeated. pytest lists these at the end."""


def undisturbed(test: Callable[..., None]) -> Callable[..., None]:
    """Repeats a test that fails, in case a busy machine disturbed its numbers. Not for what must never be.

    A busy machine may leave a number unknown, which is then compared (TypeError), or something unrecorded
    that is then looked up (LookupError) or unpacked (ValueError). A test that is repeated starts services,
    and makes files, of its own each time. Once some tests have failed each time, it is the code: then none is
    repeated any more.
    """
    # Not at the top, because programs without pytest import this module.
    import pytest

    @functools.wraps(test)
    def repeated(*args: Any, **options: Any) -> None:
        failed: list[BaseException] = []
        for _ in attempts() if len(_failed_each_time) < MOST_FAILED else range(1):
            try:
                test(*args, **options)
            # pytest.fail.Exception: of fnmatch_lines().
            except (AssertionError, TypeError, LookupError, ValueError, pytest.fail.Exception) as error:
                failed.append(error)
            else:
                if failed:
                    why = f"{test.__name__} failed {len(failed)} times before it passed; first: {failed[0]!r}"
                    warnings.warn(Disturbed(why), stacklevel=2)
                return
        _failed_each_time.append(test.__name__)
        raise failed[-1]

    return repeated


def suspend(pid: int) -> None:
    """Stops the process, and returns when all its threads have stopped, which kill() does not wait for."""
    os.kill(pid, signal.SIGSTOP)
    patiently(lambda: _look_at(pid)[0] == {"T"})


def survivors(pids: Iterable[int], seconds: float = 3) -> list[int]:
    """The processes that still run after `seconds`, scaled to this machine: after that many naps of 10 ms.

    If CPUs are busy or stall, a nap takes longer, and so does the work that a process has to do to end.
    """
    left = list(pids)
    for _ in range(round(seconds / NAP)):
        if not (left := [pid for pid in left if _runs(pid)]):
            break
        time.sleep(NAP)
    return [pid for pid in left if _runs(pid)]


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _stat(Path(f"/proc/{pid}"))[0] not in "ZX"
    return False


def fall_asleep(*pids: int) -> None:
    """Returns when all threads of the processes and their children sleep, so that goroutines that were about
    to park have parked.

    On a busy machine a fixed time isn't enough: a thread that was about to park may wait for a CPU. A service
    with work of its own never sleeps for long, so it isn't awaited.
    """
    time.sleep(SPACED)
    deadline = time.monotonic() + DEADLINE
    for pid in pids:
        states, began = _look_at(pid)
        used = began
        asleep = 0
        # Twice, because a goroutine may have moved from a thread that was not yet looked at to one that was.
        while used - began < OWN_WORK:
            asleep = 0 if states & {"R", "D"} else asleep + 1
            if asleep == 2:
                break
            assert time.monotonic() < deadline, f"{pid} gets no CPU"
            states, used = _look_at(pid)


def _look_at(pid: int) -> tuple[set[str], float]:
    """The states of the threads of the process and its descendants, and the CPU seconds that they used."""
    states, used = set(), 0.0
    with contextlib.suppress(OSError):
        used = sum(map(int, _stat(Path(f"/proc/{pid}"))[11:15])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            states.add(_stat(task)[0])
            for child in (task / "children").read_text().split():
                of_child, by_child = _look_at(int(child))
                states |= of_child
                used += by_child
    return states, used


def _stat(directory: Path) -> list[str]:
    """The fields in /proc of the process or thread, from its state on, because its name may contain
    anything."""
    return (directory / "stat").read_text().rpartition(")")[2].split()
