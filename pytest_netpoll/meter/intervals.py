"""The intervals of a window, put together over the processes that were the service in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pytest_netpoll.agent.counters.timeline import COLUMNS
from pytest_netpoll.model.evidence import TimelinePoint


def collect(services: Iterable[Sequence[Sequence[Any]]]) -> tuple[TimelinePoint, ...]:
    """The points, from the agent's rows (its timeline.py) of each root process.

    All are sampled at the same moments; a service that was restarted has two of them. Raises ValueError where
    a row has other columns, or a count is no integer.
    """
    points: dict[float, list[Any]] = {}
    for rows in services:
        for t_ms, *values in rows:
            if not all(isinstance(count, int) for count in values[:-1]):  # the last one is a mean
                raise ValueError(f"timeline {values!r:.200}")
            before = points.get(t_ms, [0] * len(COLUMNS))
            points[t_ms] = [a + b for a, b in zip(before, values, strict=True)]
    return tuple(
        TimelinePoint(t_ms=t_ms, **dict(zip(COLUMNS, points[t_ms], strict=True))) for t_ms in sorted(points)
    )
