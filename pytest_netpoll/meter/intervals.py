"""The intervals of a window, put together over the processes that were the service in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pytest_netpoll.agent.counters.timeline import COLUMNS


def collect(services: Iterable[Sequence[Sequence[Any]]]) -> tuple[dict[str, Any], ...]:
    """TimelinePoints of report/record.py, from the agent's rows (its timeline.py) of each root process.

    All are sampled at the same moments; a service that was restarted has two of them.
    """
    points: dict[float, list[Any]] = {}
    for rows in services:
        for t_ms, *values in rows:
            before = points.get(t_ms, [0] * len(COLUMNS))
            points[t_ms] = [a + b for a, b in zip(before, values, strict=True)]
    return tuple({"t_ms": t_ms, **dict(zip(COLUMNS, points[t_ms], strict=True))} for t_ms in sorted(points))
