"""Why queue delays and responses are not known, where they are not."""

from __future__ import annotations

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.model.snapshot import Snapshot

ARRIVALS = ("queue_delay", "poll_delay", "handling", "response")


def reasons(snapshot: Snapshot, no_arrivals: str | None) -> dict[str, Reason]:
    """Metric -> why it is not known. no_arrivals: why it is not known when data arrives, None where it is."""
    if no_arrivals is not None:
        reason = Reason("it is not known when data arrives", why=no_arrivals)
        return {metric.name: reason for metric in METRICS.values() if metric.family in ARRIVALS}
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
            why="the program makes its system calls in a way that Go's own compiler does not",
        )
    return Reason(
        f"{answered:,} of {requests:,} reads were answered by a write of the same goroutine",
        why="the others are answered by other goroutines or not at all, as in HTTP/2, gRPC or pub/sub, or a "
        "request took many reads",
    )
