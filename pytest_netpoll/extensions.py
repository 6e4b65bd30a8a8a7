"""What users' hooks add to a test: broken limits and columns. What hooks return is checked here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.marker import Limits
from pytest_netpoll.metrics import Measurement
from pytest_netpoll.verdict import Breach, distrust

Columns = Mapping[str, int | float | str | None]


def breaches(item: pytest.Item, measurements: Sequence[Measurement], limits: Limits) -> list[Breach]:
    """Of all hooks, for all measurements that can be trusted. UsageError for anything else than a Breach."""
    __tracebackhide__ = True
    found: list[Breach] = []
    for measurement in measurements:
        if distrust(measurement) is not None:
            continue
        for result in item.ihook.pytest_netpoll_breaches(item=item, measurement=measurement, limits=limits):
            for breach in result if isinstance(result, list | tuple) else [result]:
                if not isinstance(breach, Breach):
                    raise UsageError(
                        "pytest_netpoll_breaches must return Breaches",
                        why=f"one returned {result!r:.100}",
                        fix="return [Breach(...), ...] or None; from pytest_netpoll.verdict import Breach",
                    )
                found.append(breach)
    return found


def columns(item: pytest.Item, measurements: Sequence[Measurement]) -> list[Columns]:
    """For each of the measurements, none where it cannot be trusted. UsageError for what no table shows."""
    __tracebackhide__ = True
    found: list[Columns] = []
    for measurement in measurements:
        if distrust(measurement) is not None:
            found.append({})
            continue
        added: dict[str, int | float | str | None] = {}
        # The one registered last is called first, and has the last word.
        for result in reversed(item.ihook.pytest_netpoll_columns(item=item, measurement=measurement)):
            if not isinstance(result, Mapping) or not all(map(_fits, result.items())):
                raise UsageError(
                    "pytest_netpoll_columns must return headings and values",
                    why=f"one returned {result!r:.100}",
                    fix='return {"heading": number, text or None, ...}',
                )
            added.update(result)
        found.append(added)
    return found


def _fits(cell: tuple[object, object]) -> bool:
    heading, value = cell
    return isinstance(heading, str) and (value is None or isinstance(value, int | float | str))
