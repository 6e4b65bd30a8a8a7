"""The numbers of one service below a failure: a row for each topic, with the metrics that matter for it."""

from __future__ import annotations

from collections.abc import Set

from pytest_netpoll.model.metrics import METRICS, Metric
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.report import cells, evidence_entries, evidence_text, wording
from pytest_netpoll.report.record import ServiceRecord, TestRecord

# What the parts of a row are parts of, if not the metric; they may add up to more than it.
_PARTS_OF = {"events": "directions (read, write): "}

# A rule, or its family -> the row that says most about it.
_RULE_ROWS = {
    "NP405": "wakeups",
    "NP406": "CPU",
    "NP407": "CPU",
    "NP408": "response",
    "NP1": "wakeups",
    "NP2": "I/O calls",
    "NP3": "polls",
    "NP4": "latency",
    "NP5": "parked",
}


def _row(name: str) -> tuple[str, Metric | None, list[Metric]]:
    """The name of a row, the metric that leads it, and its parts."""
    found = [metric for metric in METRICS.values() if metric.row == name]
    total = next((metric for metric in found if metric.part is None), None)
    parts = [metric for metric in found if metric.part is not None]
    return name, total, sorted(parts, key=lambda metric: not metric.ahead)


# The numbers of one service.
ROWS = [_row(name) for name in dict.fromkeys(metric.row for metric in METRICS.values() if metric.row)]


def that_matter(record: TestRecord, service: ServiceRecord, broken: Set[str]) -> frozenset[str] | None:
    """The metrics that say more about the broken limits; if none is broken, about all limits.

    None for all metrics: for a test whose own assertion failed, and for a limit of a user's hook.
    """
    names = broken
    if not names and record["outcome"] == "unmeasured":
        names = {*wording.judged(record, service), "wakeups"}
    rows = {_row_of(name) for name in names}
    if not names or None in rows:
        return None
    return frozenset(metric.name for metric in METRICS.values() if rows & {metric.row, *metric.beside}) | {
        "lost"
    }


def _row_of(name: str) -> str | None:
    """The row of a metric (or of a similar one, if it has none) or of a rule; None if unknown."""
    if name not in METRICS:
        return _RULE_ROWS.get(name, _RULE_ROWS.get(name[:3])) if name in RULES else None
    metric = METRICS[name]
    like = metric.family if metric.is_statistic or metric.row is None else name
    alike = [METRICS[name], *(m for m in METRICS.values() if m.name.startswith(like or name))]
    return next((metric.row for metric in alike if metric.row), None)


def lines(
    service: ServiceRecord,
    width: int,
    *,
    broken: Set[str] = frozenset(),
    matter: Set[str] | None = None,
    dropped: int = 0,
) -> list[str]:
    """The metrics that matter, without those shown as 0, which explain nothing. dropped: how many rows to
    leave out, the last ones without broken metrics.
    """
    metrics = service["metrics"]
    rows: list[list[str]] = []
    others: list[int] = []
    for name, total, parts in ROWS:
        shown = [m for m in parts if (matter is None or m.name in matter) and _telling(service, total, m)]
        texts = [(m.ahead, f"{m.format(metrics[m.name])} {m.part}{_remark(service, m.name)}") for m in shown]
        first = ", ".join(text for ahead, text in texts if ahead)
        rest = ", ".join(text for ahead, text in texts if not ahead)
        detail = ", ".join(filter(None, [first, rest and _PARTS_OF.get(name, "") + rest]))
        lead = total if total is not None and (matter is None or total.name in matter) else None
        if lead is not None and metrics.get(lead.name) == 0 and lead.unit == "count":
            continue  # then its ratios belong to other rows
        if detail or (lead is not None and _counted(lead, metrics.get(lead.name))):
            if not any(metric.name in broken for metric in (total, *parts) if metric is not None):
                others.append(len(rows))
            rows.append([name, lead.format(metrics.get(lead.name)) if lead else "", detail])
    left_out = others[-dropped:] if dropped else []
    rows = [row for number, row in enumerate(rows) if number not in left_out]
    # The parts of times are dropped first if no limit is about times.
    about_times = any(METRICS[name].family in evidence_entries.TIMED for name in broken & METRICS.keys())
    timed = about_times or (matter is None and not dropped)
    parts_of_times = evidence_text.budgets_of(service) if timed else []
    budgets = [line for text in parts_of_times for line in cells.wrap(text, width, "  ")]
    if not rows:
        return budgets
    used = sum(max(map(cells.width_of, column)) + 2 for column in list(zip(*rows, strict=True))[:2])
    rows = [[name, total, "\n".join(cells.wrap(detail, width - 2 - used))] for name, total, detail in rows]
    table = cells.tabulated(rows, ["left", "right", "left"])
    return [*(f"  {line}" for line in table.splitlines()), *budgets]


def _telling(service: ServiceRecord, total: Metric | None, part: Metric) -> bool:
    """Whether a part of a row is worth showing: not 0, and not that all wakeups were productive."""
    value = service["metrics"].get(part.name)
    ordinary = (
        part.name == "productive_wakeups"
        and total is not None
        and value == service["metrics"].get(total.name)
    )
    return _counted(part, value) and not ordinary


def _counted(metric: Metric, value: int | float | None) -> bool:
    """Whether it would not be shown as 0."""
    return bool(value) and metric.format(value) != metric.format(0.0 if metric.unit != "count" else 0)


def _remark(service: ServiceRecord, metric: str) -> str:
    what = evidence_text.most_futile(service) if metric == "futile_calls" else ""
    if metric == "mutex_wait_seconds":
        what = "estimate" if metric in wording.estimates(service) else "looked at every 10 ms"
    return f" ({what})" if what else ""
