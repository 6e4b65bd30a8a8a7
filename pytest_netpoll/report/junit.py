"""What goes into a JUnit XML report: the main numbers as properties of the test case."""

from __future__ import annotations

from pytest_netpoll.report.record import TestRecord
from pytest_netpoll.report.words import trusted

# Those that CI servers are asked to plot; the others are in the JSON report. In canonical units.
MAIN = (
    "wakeups",
    "spurious_wakeups",
    "spurious",
    "stale_retries",
    "events",
    "polls",
    "polls_per_event",
    "latency_p50",
    "latency_p99",
    "latency_max",
    "cpu_seconds",
    "lost",
)


def properties(record: TestRecord) -> list[tuple[str, str]]:
    """(name, value) pairs: ("netpoll.outcome", "passed"), ("netpoll.server.latency_p99", "12300000").

    Times are in ns unless the name says otherwise; what was not measured is absent.
    """
    found: list[tuple[str, str]] = [("netpoll.outcome", record["outcome"])]
    for service in record["services"]:
        prefix = f"netpoll.{service['name']}"
        for name in MAIN if trusted(service) else ():
            value = service["metrics"].get(name)
            if value is not None:
                # The middle of a latency bucket is a float, but no reader wants "12300000.0".
                found.append((f"{prefix}.{name}", str(int(value) if value == int(value) else value)))
        unmeasured = service.get("unmeasured")
        if unmeasured is not None:
            found.append((f"{prefix}.unmeasured", unmeasured))
    return found
