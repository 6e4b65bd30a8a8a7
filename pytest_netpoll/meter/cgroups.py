"""The CPU quotas of a service in a window, from the agent's counters of its processes' cgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pytest_netpoll.errors import Reason
from pytest_netpoll.meter.messages import Throttled
from pytest_netpoll.model.evidence import CpuQuota


class Quotas(NamedTuple):
    """ns, throttled: for how long and in how many periods quotas stopped the service; None if unknown. They
    are those of one cgroup, the one that was stopped longest: a sum over nested cgroups could count the same
    time twice.
    """

    ns: int | None
    throttled: int | None
    cgroups: tuple[CpuQuota, ...]
    absent: Mapping[str, Reason]


NOTHING = Quotas(None, None, (), {})


def collect(services: Sequence[Throttled]) -> Quotas:
    """The quotas, from the agent's answer for each root process. Several may be in one cgroup. Raises
    ValueError.
    """
    for service in services:
        if service["unknown"] is not None:
            why = Reason("whether a CPU quota stops the service is unknown", why=service["unknown"])
            return Quotas(None, None, (), dict.fromkeys(("throttled_seconds", "throttled_periods"), why))
    rows: dict[str, list[list[Any]]] = {}
    for service in services:
        for name, *row in service["cgroups"]:
            rows.setdefault(name, []).append(row)
    found = sorted(
        (_cgroup(name, of) for name, of in rows.items()), key=lambda c: c.throttled_ns, reverse=True
    )
    if not found:
        return Quotas(0, 0, (), {})
    return Quotas(found[0].throttled_ns, found[0].throttled_periods, tuple(found), {})


def _cgroup(name: object, rows: Sequence[Sequence[Any]]) -> CpuQuota:
    """A cgroup's growth from the earliest look at its counters to the latest."""
    for *counters, _, _ in rows:
        if len(counters) != 6 or not all(isinstance(n, int) and n >= 0 for n in counters):
            raise ValueError(f"cgroup {name!r:.100}: {rows!r:.200}")
    first = min(tuple(row[:3]) for row in rows)
    last = max(tuple(row[3:6]) for row in rows)
    periods, throttled, ns = (max(0, new - old) for old, new in zip(first, last, strict=True))
    quota, period = rows[-1][6:]
    known = isinstance(quota, int) and isinstance(period, int) and quota > 0 < period
    return CpuQuota(
        name=str(name),
        quota_us=quota if known else None,
        period_us=period if known else None,
        periods=periods,
        throttled_periods=throttled,
        throttled_ns=ns,
    )
