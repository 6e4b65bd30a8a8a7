"""What was attached while the tests were measured, and what that is known to cost: nobody should read a
latency measured under uprobes without knowing.

The costs are those of tests/bench/README.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from pytest_netpoll.report.record import ServiceRecord, TestRecord

_SYS_EXIT_COST = "a saturated service keeps 93 to 94 % of its throughput"
_READY_COST = "about 0.6 µs a ready call"


class Attached(TypedDict):
    """An element of "attached" in the JSON report's environment. services: whom it slows down."""

    probe: str
    services: list[str]
    cost: str


def attached(records: Iterable[TestRecord]) -> list[Attached]:
    """Nothing where no service was measured."""
    counted = (service for record in records for service in record["services"])
    services = [service for service in counted if service["metrics"].get("polls") is not None]
    probes = {
        "raw tracepoint sys_exit": (services, _SYS_EXIT_COST),
        "uprobes on runtime.ready": (list(filter(under_uprobes, services)), _READY_COST),
    }
    return [
        {"probe": probe, "services": sorted({service["name"] for service in slowed}), "cost": cost}
        for probe, (slowed, cost) in probes.items()
        if slowed
    ]


def under_uprobes(service: ServiceRecord) -> bool:
    return service["metrics"].get("ready_calls") is not None


def line(environment: Mapping[str, Any]) -> str:
    """ "attached: raw tracepoint sys_exit (a saturated …); uprobes on runtime.ready of server (about …)"."""
    found: Sequence[Attached] = environment.get("attached") or ()
    parts = [
        f"{probe['probe']}{_of(probe) if probe['probe'].startswith('uprobes') else ''} ({probe['cost']})"
        for probe in found
    ]
    return f"attached: {'; '.join(parts)}" if parts else ""


def _of(probe: Attached) -> str:
    names = probe["services"]
    return f" of {', '.join(names)}" if len(names) <= 3 else f" of {len(names)} services"


def caution(record: TestRecord, service: ServiceRecord) -> str | None:
    """For a broken limit on a time that the uprobes lengthen; None where there is none."""
    timed = any(
        breach["service"] == service["name"]
        and breach["metric"].startswith(("latency_", "cpu_", "run_delay_"))
        for breach in record["breaches"]
    )
    if not timed or not under_uprobes(service):
        return None
    return f"measured under uprobes on runtime.ready ({_READY_COST}); --netpoll-goready=off measures without"
