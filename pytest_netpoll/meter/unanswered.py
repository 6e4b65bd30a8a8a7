"""Explains why queue delays and responses are unknown."""

from __future__ import annotations

from pytest_netpoll.agent.constants import DELAY_NAMES
from pytest_netpoll.errors import Reason
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.model.snapshot import Snapshot

_OLDER_SOCKETS = Reason(
    "the service has sockets from before it was watched",
    why="this kernel doesn't let the agent look them up (bpf_iter/task_file), so arrivals there are unknown",
    fix="let go_service start it, or connect and listen after it is watched",
)
_NOT_ASKED = Reason("answers were not timed", fix="--netpoll-response=on")


def are_timed(metric: str) -> bool:
    """Whether the metric is one of these times, which take a larger program in the kernel."""
    return metric in METRICS and METRICS[metric].family in DELAY_NAMES


def reasons(
    snapshot: Snapshot, no_arrivals: str | None, asked: bool = True, older_sockets: bool = False
) -> dict[str, Reason]:
    """Metric -> why it is unknown. no_arrivals: why arrivals of data aren't recorded, or None. asked: whether
    they should be. older_sockets: whether they aren't on sockets from before the service was watched.
    """
    if no_arrivals is not None or not asked or older_sockets:
        reason = _OLDER_SOCKETS if older_sockets else _NOT_ASKED
        if no_arrivals is not None and asked:
            reason = Reason("it isn't recorded when data arrives", why=no_arrivals)
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
            why="the program makes its syscalls in another way than Go's own compiler",
        )
    return Reason(
        f"{answered:,} of {requests:,} reads were answered by a write of the same goroutine",
        why="the others are answered by other goroutines or not at all, as in HTTP/2, gRPC or pub/sub, or a "
        "request took many reads",
    )
