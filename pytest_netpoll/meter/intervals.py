"""Merges the intervals of a window over a service's processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pytest_netpoll.agent.counters.timeline import COLUMNS, Runtime
from pytest_netpoll.model.evidence import TimelinePoint


def collect(services: Iterable[Sequence[Sequence[Any]]]) -> tuple[TimelinePoint, ...]:
    """The points, from the agent's rows (its timeline.py) of each root process.

    All are sampled at the same moments; a restarted service has two root processes. Raises ValueError if a
    row has other columns, a count isn't an integer, or a required value is None.
    """
    points: dict[float, list[Any]] = {}
    for rows in services:
        for t_ms, *values in rows:
            for column, value in zip(COLUMNS, values, strict=True):
                unknown = value is None and column in Runtime._fields
                mean = value is not None and column in _MEANS
                if not (isinstance(value, int) or unknown or mean):
                    raise ValueError(f"timeline {values!r:.200}")
            before = points.get(t_ms, values)
            points[t_ms] = values if before is values else list(map(_together, COLUMNS, before, values))
    return tuple(
        TimelinePoint(t_ms=t_ms, **dict(zip(COLUMNS, points[t_ms], strict=True))) for t_ms in sorted(points)
    )


_MEANS = ("threads_running", "ps_running", "spinning")
# Not added up: several processes may be in one cgroup, and the metric is the longest run queue.
_MOST = ("throttled_ns", "runq_max")


def _together(column: str, a: float | None, b: float | None) -> float | None:
    """Merges the points of two processes of the service; unknown values don't count."""
    if a is None or b is None:
        return a if b is None else b
    return max(a, b) if column in _MOST else a + b
