"""Splits a percentile of the responses, or of the queue delays, into its parts."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_netpoll.agent.constants import BUDGET_SHIFT
from pytest_netpoll.model.histogram import ranked
from pytest_netpoll.model.metrics import METRICS, delay_of
from pytest_netpoll.model.snapshot import Parts, Snapshot

_PERCENTILES = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True)
class Budget:
    """metric: such as "response_p99". The other fields are its parts in ns, which add up to it.

    Percentiles of parts do not add up. So these are the proportions of the parts over all times near the
    percentile, in its half octave.
    """

    metric: str
    ns: float
    poll_delay_ns: float
    wake_to_run_ns: float
    unparked_ns: float
    handling_ns: float


def budgets(snapshot: Snapshot) -> list[Budget]:
    """The budgets of the responses' median and p99; without responses, of the queue delays'."""
    family = "queue_delay" if delay_of(snapshot, "response") is None else "response"
    found = (_budget(snapshot, family, which, q) for which, q in _PERCENTILES.items())
    return [budget for budget in found if budget is not None]


def _budget(snapshot: Snapshot, family: str, which: str, q: float) -> Budget | None:
    delay, name = delay_of(snapshot, family), f"{family}_{which}"
    ns = METRICS[name].read(snapshot)
    bucket = None if delay is None else ranked(delay.histogram, q)
    if delay is None or bucket is None or ns is None:
        return None
    parts = delay.budget.get(bucket >> BUDGET_SHIFT, Parts())
    if not parts.total:
        return None
    share = ns / parts.total
    return Budget(
        name, ns, parts.poll * share, parts.run * share, parts.unparked * share, parts.handling * share
    )
