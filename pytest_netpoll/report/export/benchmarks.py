"""github-action-benchmark's customSmallerIsBetter, and Bencher's metric format: numbers to draw over commits.

Both hold the numbers in the table of tests, and those that a test limits or compares, if they were measured
and less is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_netpoll.model.metrics import METRICS, base_of
from pytest_netpoll.report import wording
from pytest_netpoll.report.record import TestRecord

_UNITS = {"share": "share", "ratio": "ratio", "count": "", "ns": "ns", "s": "s"}


class _Number(NamedTuple):
    """A metric's number. runs: one for each of several runs."""

    name: str
    metric: str
    value: int | float
    runs: list[int | float]


def github_action_benchmark(
    records: Sequence[TestRecord], environment: Mapping[str, Any]
) -> list[dict[str, Any]]:
    about = ", ".join(f"{key} {environment[key]}" for key in ("commit", "kernel") if environment.get(key))
    entries = []
    for number in _numbers(records):
        metric = METRICS[number.metric]
        entry: dict[str, Any] = {
            "name": f"{number.name}: {number.metric}",
            "unit": _UNITS[metric.unit] or number.metric,
            "value": number.value,
        }
        if number.runs:
            entry["range"] = f"{metric.format(min(number.runs))} to {metric.format(max(number.runs))}"
        if about:
            entry["extra"] = about
        entries.append(entry)
    return entries


def bencher(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    found: dict[str, dict[str, dict[str, int | float]]] = {}
    for number in _numbers(records):
        entry: dict[str, int | float] = {"value": number.value}
        if number.runs:
            entry |= {"lower_value": min(number.runs), "upper_value": max(number.runs)}
        # Bencher's slugs have no underscores.
        found.setdefault(number.name, {})[number.metric.replace("_", "-")] = entry
    return found


def _numbers(records: Sequence[TestRecord]) -> Iterator[_Number]:
    for record in records:
        if record.get("error") is not None:
            continue  # the test stopped half-way
        for service in filter(wording.trusted, record["services"]):
            judged = {base_of(name) for name in wording.judged(record, service)}
            judged |= {regression["metric"] for regression in wording.regressions(record)}
            for name, metric in METRICS.items():
                value = service["metrics"].get(name)
                wanted = name in wording.COLUMNS or name in judged
                if wanted and value is not None and metric.more_is_worse:
                    runs = [run for run in service.get("runs", {}).get(name, []) if run is not None]
                    label = wording.one_line(f"{record['nodeid']} {service['name']}")
                    yield _Number(label, name, value, runs)
