"""The online CPUs, and all possible ones."""

from __future__ import annotations

from collections.abc import Iterator

_ONLINE = "/sys/devices/system/cpu/online"
_POSSIBLE = "/sys/devices/system/cpu/possible"


def online() -> list[int]:
    """The numbers of the online CPUs. Raises OSError, ValueError."""
    return list(_numbers(_ONLINE))


def possible() -> int:
    """The number of possible CPUs: per-CPU maps have a value for each. Raises OSError, ValueError."""
    return len(list(_numbers(_POSSIBLE)))


def _numbers(path: str) -> Iterator[int]:
    """The numbers in a list such as "0-3,5"."""
    with open(path) as f:
        for part in f.read().strip().split(","):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)
