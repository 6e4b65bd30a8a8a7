"""Adds the broken limits and columns of users' hooks to a test, and checks their return values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.verdict import Breach, distrust
from pytest_netpoll.session.outcome import plain_failures

Columns = Mapping[str, int | float | str | None]


class Added(NamedTuple):
    """What users' hooks add to a test.

    columns: of each measurement, none if it isn't exact. error: what the first hook that failed
    raised, or what is wrong with the value that it returned.
    """

    breaches: Sequence[Breach]
    columns: Sequence[Columns]
    error: BaseException | None


def ask(item: pytest.Item, measurements: Sequence[Measurement], limits: Limits) -> Added:
    """Calls all hooks for all measurements, even if one fails, before the test is judged."""
    __tracebackhide__ = True
    errors: list[BaseException] = []
    for measurement in measurements:
        with _kept(errors):
            item.ihook.pytest_netpoll_measured(item=item, measurement=measurement)
    breaches: list[Breach] = []
    columns: list[dict[str, int | float | str | None]] = [{} for _ in measurements]
    exact = [number for number, made in enumerate(measurements) if distrust(made) is None]
    for number in exact:
        with _kept(errors), plain_failures():
            breaches += _breaches(item, measurements[number], limits)
    for number in exact:
        with _kept(errors), plain_failures():
            columns[number] = _columns(item, measurements[number])
    return Added(breaches, columns, errors[0] if errors else None)


@contextlib.contextmanager
def _kept(errors: list[BaseException]) -> Iterator[None]:
    """Collects the exception of the hook in the block, unless it ends the session."""
    __tracebackhide__ = True
    try:
        yield
    except pytest.exit.Exception:
        raise
    except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
        errors.append(error)


def _breaches(item: pytest.Item, measurement: Measurement, limits: Limits) -> list[Breach]:
    __tracebackhide__ = True
    found: list[Breach] = []
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
    """Why no report can show the value; it may be anything, since hooks are seldom type-checked."""
    fields: Mapping[str, object] = vars(breach)
    for name in ("service", "metric", "detail"):
        if not isinstance(fields[name], str):
            return f"{name} is not a string"
    if fields["kind"] not in ("max", "min"):
        return 'kind is neither "max" nor "min"'
    for name in ("measured", "limit"):
        value = fields[name]
        # NaN can't be compared.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            return f"{name} is not a finite number"
    return None


def _columns(item: pytest.Item, measurement: Measurement) -> dict[str, int | float | str | None]:
    __tracebackhide__ = True
    added: dict[str, int | float | str | None] = {}
    # pluggy calls the hook registered last first; its value wins.
    for result in reversed(item.ihook.pytest_netpoll_columns(item=item, measurement=measurement)):
        if not isinstance(result, Mapping) or not all(map(_fits, result.items())):
            raise UsageError(
                "pytest_netpoll_columns must return headings and values",
                why=f"one returned {result!r:.100}",
                fix='return {"heading": number, text or None, ...}',
            )
        added.update(result)
    return added


def _fits(cell: tuple[object, object]) -> bool:
    heading, value = cell
    return isinstance(heading, str) and (value is None or isinstance(value, int | float | str))
