"""What was attached during the tests: latencies under uprobes can't be compared with others. Reports don't
show what that cost, because it was not measured; docs/overhead.md has measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from pytest_netpoll.report import wording
from pytest_netpoll.report.record import ServiceRecord, TestRecord

_COST = "not measured in this run; see docs/overhead.md of pytest-netpoll"


class Attached(TypedDict):
    """An element of "attached" in the JSON report's environment. services: those that it slows down. cost:
    where it is documented.
    """

    probe: str
    services: list[str]
    cost: str


def attached(records: Iterable[TestRecord]) -> list[Attached]:
    """What was attached; empty if no service was measured."""
    counted = wording.all_services(records)
    services = [service for service in counted if service["metrics"].get("polls") is not None]
    probes = {
        "raw tracepoint sys_exit": services,
        "uprobes on runtime.ready": list(filter(under_uprobes, services)),
    }
    return [
        {"probe": probe, "services": sorted({service["name"] for service in slowed}), "cost": _COST}
        for probe, slowed in probes.items()
        if slowed
    ]


def under_uprobes(service: ServiceRecord) -> bool:
    return service["metrics"].get("ready_calls") is not None


def line(environment: Mapping[str, Any]) -> str:
    """ "attached: raw tracepoint sys_exit; uprobes on runtime.ready of server"."""
    found: Sequence[Attached] = environment.get("attached") or ()
    parts = [
        f"{probe['probe']}{_of(probe) if probe['probe'].startswith('uprobes') else ''}" for probe in found
    ]
    return wording.one_line(f"attached: {'; '.join(parts)}") if parts else ""


def _of(probe: Attached) -> str:
    names = probe["services"]
    return f" of {', '.join(names)}" if len(names) <= 3 else f" of {len(names)} services"


def caution(record: TestRecord, service: ServiceRecord) -> str | None:
    """A caution for a broken limit on a time that the uprobes lengthen; None if there is none."""
    timed = any(
        breach["service"] == service["name"]
        and breach["metric"].startswith(("latency_", "cpu_", "run_delay_"))
        for breach in record["breaches"]
    )
    if not timed or not under_uprobes(service):
        return None
    return (
        "measured under uprobes on runtime.ready, which make each ready call longer; "
        "--netpoll-goready=off measures without"
    )
