"""Makes one measurement of several windows of the same test: each metric becomes its median."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.measurement import Measurement


def median_of(windows: Sequence[Sequence[Measurement]]) -> list[Measurement]:
    """One measurement for each service, from windows that should each hold one of every service. An
    unmeasured window makes the service unmeasured. The snapshot sums over all windows; stacks, which have no
    median, are those of the window with the middle number of spurious wakeups.
    """
    if len(windows) == 1:
        return list(windows[0])
    found: dict[str, list[Measurement]] = {}
    for window in windows:
        for measurement in window:
            found.setdefault(measurement.service, []).append(measurement)
    return [_merge(runs, len(windows)) for runs in found.values()]


def middle(runs: Sequence[Measurement]) -> Measurement:
    """The run with the middle number of spurious wakeups."""
    by_waste = sorted(runs, key=lambda run: run.snapshot.counters.get("spurious_wakeups", 0))
    return by_waste[(len(runs) - 1) // 2]


def _merge(runs: Sequence[Measurement], expected: int) -> Measurement:
    return replace(
        middle(runs),
        pid=runs[-1].pid,
        snapshot=reduce(operator.add, (run.snapshot for run in runs)),
        unmeasured=_distrust(runs, expected),
        runs=tuple(runs),
    )


def _distrust(runs: Sequence[Measurement], expected: int) -> Reason | None:
    for number, run in enumerate(runs, 1):
        if run.unmeasured is not None:
            return Reason.of(run.unmeasured).about(f"run {number} of {expected}")
    if len(runs) < expected:
        return Reason(
            f"it ran in only {len(runs)} of {expected} runs of the test",
            fix="start it in a fixture, not in the test",
        )
    return None
