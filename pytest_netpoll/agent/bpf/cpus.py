"""The CPUs that there are, and those that there may ever be."""

from __future__ import annotations

from collections.abc import Iterator

_ONLINE = "/sys/devices/system/cpu/online"
_POSSIBLE = "/sys/devices/system/cpu/possible"


def online() -> list[int]:
    """Their numbers. Raises OSError, ValueError."""
    return list(_numbers(_ONLINE))


def possible() -> int:
    """How many values the kernel keeps where it keeps one for each. Raises OSError, ValueError."""
    return len(list(_numbers(_POSSIBLE)))


def _numbers(path: str) -> Iterator[int]:
    """Those of "0-3,5"."""
    with open(path) as f:
        for part in f.read().strip().split(","):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)
