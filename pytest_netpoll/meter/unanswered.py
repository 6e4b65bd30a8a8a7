"""Explains why queue delays and responses are unknown."""

from __future__ import annotations

from pytest_netpoll.agent.constants import DELAY_NAMES
from pytest_netpoll.errors import Reason
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.model.snapshot import Snapshot

_NOT_ASKED = Reason("answers were not timed", fix="--netpoll-response=on")


def are_timed(metric: str) -> bool:
    """Whether the metric is one of these times, which take a larger program in the kernel."""
    return metric in METRICS and METRICS[metric].family in DELAY_NAMES


def reasons(snapshot: Snapshot, no_arrivals: str | None, asked: bool = True) -> dict[str, Reason]:
    """Metric -> why it is unknown. no_arrivals: why arrivals of data aren't recorded, or None. asked: whether
    they should be.
    """
    if no_arrivals is not None or not asked:
        reason = Reason("it isn't recorded when data arrives", why=no_arrivals) if asked else _NOT_ASKED
        return {metric.name: reason for metric in METRICS.values() if metric.family in DELAY_NAMES}
    unanswered = _no_response(snapshot)
    if unanswered is None:
        return {}
    families = ("response",) if snapshot.answered else ("handling", "response")
    return {metric.name: unanswered for metric in METRICS.values() if metric.family in families}


def _no_response(snapshot: Snapshot) -> Reason | None:
    requests, answered = snapshot.requests, snapshot.answered
    if not requests:
        return Reason("no read of an accepted stream connection took data")
    if answered * 2 >= requests and answered:
        return None
    if snapshot.strangers * 2 > requests:
        return Reason(
            "the goroutines that read could not be recognized",
            why="the program makes its system calls in another way than Go's own compiler",
        )
    return Reason(
        f"{answered:,} of {requests:,} reads were answered by a write of the same goroutine",
        why="the others are answered by other goroutines or not at all, as in HTTP/2, gRPC or pub/sub, or a "
        "request took many reads",
    )
