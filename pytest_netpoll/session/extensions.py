"""What users' hooks add to a test: broken limits and columns. What hooks return is checked here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.metrics import Measurement
from pytest_netpoll.model.verdict import Breach, distrust

Columns = Mapping[str, int | float | str | None]


def breaches(item: pytest.Item, measurements: Sequence[Measurement], limits: Limits) -> list[Breach]:
    """Of all hooks, for all measurements that can be trusted. UsageError for what is no proper Breach."""
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
                        fix="return [Breach(...), ...] or None; from pytest_netpoll import Breach",
                    )
                complaint = _complaint(breach)
                if complaint is not None:
                    raise UsageError(
                        "pytest_netpoll_breaches must return Breaches that can be read",
                        why=f"{complaint} in {breach!r:.200}",
                        fix='return Breach(service, metric, "max" or "min", measured, limit), or None where '
                        "nothing was measured",
                    )
                found.append(breach)
    return found


def _complaint(breach: Breach) -> str | None:
    """What no report could show of it; anything may be in it, for hooks are seldom type-checked."""
    fields: Mapping[str, object] = vars(breach)
    for name in ("service", "metric", "detail"):
        if not isinstance(fields[name], str):
            return f"{name} is no text"
    if fields["kind"] not in ("max", "min"):
        return 'kind is neither "max" nor "min"'
    for name in ("measured", "limit"):
        value = fields[name]
        # NaN is less than nothing.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            return f"{name} is no finite number"
    return None


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
