"""Properties of test cases in JUnit XML: a test's main numbers."""

from __future__ import annotations

from pytest_netpoll.clean import lines
from pytest_netpoll.model.metrics import in_report
from pytest_netpoll.report.record import TestRecord
from pytest_netpoll.report.wording import one_line, trusted


def properties(record: TestRecord) -> list[tuple[str, str]]:
    """(name, value) pairs: ("netpoll.outcome", "passed"), ("netpoll.server.latency_p99", "12300000").

    Only the numbers that CI servers may plot; the others are in the JSON report. Times are in ns unless the
    name says otherwise; unmeasured numbers are absent. In report mode "netpoll.gate" is the outcome of gate
    mode, if that differs. "netpoll.server.rules" has the codes of the rules that are broken.
    """
    found: list[tuple[str, str]] = [("netpoll.outcome", record["outcome"])]
    gate = record.get("gate", record["outcome"])
    if gate != record["outcome"]:
        found.append(("netpoll.gate", gate))
    for service in record["services"]:
        prefix = f"netpoll.{one_line(service['name'])}"
        for metric in in_report("junit") if trusted(service) else ():
            value = service["metrics"].get(metric.name)
            if value is not None:
                # The middle of a latency bucket is a float, but nobody wants "12300000.0".
                found.append((f"{prefix}.{metric.name}", str(int(value) if value == int(value) else value)))
        rules = [rule["code"] for rule in service.get("rules", [])]
        if rules:
            found.append((f"{prefix}.rules", " ".join(rules)))
        unmeasured = service.get("unmeasured")
        if unmeasured is not None:
            found.append((f"{prefix}.unmeasured", lines(unmeasured)))
    return found
