"""Everything measured of one service, over many consecutive windows."""

from __future__ import annotations

import dataclasses

from pytest_netpoll.errors import Reason
from pytest_netpoll.meter import offender_stacks
from pytest_netpoll.model.measurement import Measurement


class Accumulated:
    """The sum over windows. An unmeasured window adds nothing to it, not even its time. missed_seconds: how
    long those windows were together. missed: why the last of them was unmeasured.
    """

    def __init__(self) -> None:
        self._total: Measurement | None = None
        self.missed_seconds = 0.0
        self.missed: Reason | None = None

    @property
    def total(self) -> Measurement:
        """The sum so far. unmeasured: the last window's reason, as long as no window could be measured."""
        assert self._total is not None, "no window was added"
        return self._total

    def add(self, measurement: Measurement) -> None:
        if measurement.unmeasured is not None:
            self.missed_seconds += measurement.window_seconds
            self.missed = measurement.unmeasured
        before = self._total
        if before is None or before.unmeasured is not None:
            self._total = measurement
        elif measurement.unmeasured is None:
            snapshot = before.snapshot + measurement.snapshot
            self._total = dataclasses.replace(
                measurement,
                window_seconds=before.window_seconds + measurement.window_seconds,
                snapshot=snapshot,
                offenders=offender_stacks.total([before.offenders, measurement.offenders], snapshot.counters),
                absent={**before.absent, **measurement.absent},
            )
