"""What changed: against a base that was measured in turns, or against a baseline. Worst first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pytest_netpoll.model import units
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.report import files, wording
from pytest_netpoll.report.github import as_code, as_text, cell
from pytest_netpoll.report.record import ComparisonRecord, NumberRecord, TestRecord

Verdict: TypeAlias = Literal["WORSE", "undecided", "more", "less"]
_RANK: Sequence[Verdict] = ("WORSE", "undecided", "more", "less")
_ICONS: Mapping[Verdict, str] = {"WORSE": "❌", "undecided": "❔", "more": "🔺", "less": "🔽"}
# Below that nobody looks, however sure it is: fractions, and what was 0 by its unit.
_LEAST_SHARE = 0.02
_LEAST: Mapping[str, float] = {"share": 0.01, "ratio": 0.1, "count": 10, "ns": 1_000, "s": 0.01}
MOST_ROWS = 60


class Row(NamedTuple):
    """A number that changed. interval: of 95 % confidence, "" where it was measured once."""

    nodeid: str
    service: str
    metric: str
    base: str
    head: str
    change: str
    interval: str
    verdict: Verdict


class Delta(NamedTuple):
    """Of all tests. same: how many numbers of `tests` did not change. notes: of what was not compared."""

    base: str
    rows: list[Row]
    same: int
    tests: int
    rounds: str
    notes: list[tuple[str, str]]

    @property
    def unchanged(self) -> str:
        """ "No change in 120 numbers of 3 tests, 8 to 14 rounds each"."""
        tests = f"{self.tests:,} test{'s' * (self.tests != 1)}"
        rounds = f", {self.rounds} rounds each" if self.rounds else ""
        return f"No change in {self.same:,} numbers of {tests}{rounds}."


def delta(records: Iterable[TestRecord]) -> Delta | None:
    """None where nothing was compared."""
    found = [(record, c) for record in records if (c := record.get("comparison")) is not None]
    if not found:
        return None
    ranked: list[tuple[int, float, Row]] = []
    notes: list[tuple[str, str]] = []
    same = 0
    for record, comparison in found:
        rows, unchanged = _rows(record["nodeid"], comparison)
        ranked += rows
        same += unchanged
        told = list(comparison["notes"])
        if comparison["outcome"] == "unmeasured":
            for reason in wording.reasons(record):
                told.append(f"{reason.headline}; fix: {reason.fix}" if reason.fix else reason.headline)
        notes += [(record["nodeid"], wording.one_line(note)) for note in told]
    ordered = [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])]
    tests = sum(comparison["outcome"] != "new" for _, comparison in found)
    made = [c["measured"] for _, c in found if c.get("commit") and c["outcome"] != "new"]
    rounds = " to ".join(dict.fromkeys(map(str, (min(made), max(made))))) if made else ""
    return Delta(base_name(found[0][1]), ordered, same, tests, rounds, notes)


def base_name(comparison: ComparisonRecord) -> str:
    """ "main (c0ffee123456)"; of a saved baseline "baseline main"."""
    commit, name = comparison.get("commit"), wording.one_line(comparison["baseline"])
    if commit is None:
        return f"baseline {name}"
    return commit[:12] if commit.startswith(name) else f"{name} ({commit[:12]})"


def markdown(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> str:
    """A table of what changed, and a line for all that did not."""
    found = delta(records)
    head = str(environment.get("commit") or "")[:12]
    if found is None:
        return "## pytest-netpoll\n\nNothing was compared.\n"
    lines = [f"## pytest-netpoll: {as_text(found.base)} → {as_text(head or 'now')}", ""]
    if found.rows:
        heads = ["", "test", "service", "metric", "base", "head", "change", "95 % interval"]
        align = ["---", "---", "---", "---", "---:", "---:", "---:", "---:"]
        rows = [
            [_ICONS[r.verdict], as_code(r.nodeid), as_code(r.service), as_code(r.metric)]
            + [as_text(text) for text in (r.base, r.head, r.change, r.interval)]
            for r in found.rows[:MOST_ROWS]
        ]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in [heads, align, *rows]]
        lines.append("")
        if len(found.rows) > MOST_ROWS:
            lines += [f"… and {len(found.rows) - MOST_ROWS:,} more that changed.", ""]
    lines += [found.unchanged, ""]
    for note, nodeids in _grouped(found.notes).items():
        where = as_code(nodeids[0]) if len(nodeids) == 1 else f"{len(nodeids):,} tests"
        lines.append(f"- {where}: {as_text(note)}")
    return "\n".join(lines).rstrip() + "\n"


def write(path: Path, environment: Mapping[str, Any], records: Iterable[TestRecord]) -> None:
    """The same as a file, written atomically. NetpollError if that fails."""
    files.write_atomically(path, markdown(list(records), environment), "the Markdown report")


def terminal_rows(found: Delta) -> dict[str, list[str]]:
    """heading -> cells, beside the tests."""
    rows = found.rows[:MOST_ROWS]
    return {
        "service": [wording.one_line(row.service) for row in rows],
        "metric": [row.metric for row in rows],
        "base": [row.base for row in rows],
        "head": [row.head for row in rows],
        "change": [row.change for row in rows],
        "95 % interval": [row.interval for row in rows],
        "verdict": [row.verdict for row in rows],
    }


def further_lines(found: Delta) -> Iterator[str]:
    """What follows the table."""
    if len(found.rows) > MOST_ROWS:
        yield f"… and {len(found.rows) - MOST_ROWS:,} more that changed"
    yield found.unchanged
    for note, nodeids in _grouped(found.notes).items():
        where = nodeids[0] if len(nodeids) == 1 else f"{len(nodeids):,} tests"
        yield wording.one_line(f"{where}: {note}")


def _grouped(notes: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """One line for many tests with the same note."""
    found: dict[str, list[str]] = {}
    for nodeid, note in notes:
        found.setdefault(note, []).append(nodeid)
    return found


def _rows(nodeid: str, comparison: ComparisonRecord) -> tuple[list[tuple[int, float, Row]], int]:
    broken = {(r["service"], r["metric"]) for r in comparison["regressions"]}
    undecided = {(r["service"], r["metric"]) for r in comparison.get("undecided", [])}
    rows: list[tuple[int, float, Row]] = []
    if comparison.get("commit") is None:
        for change in comparison.get("changes", []):
            place = (change["service"], change["metric"])
            rows.append(_once(nodeid, change["metric"], change, place in broken))
        return rows, sum(len(service["metrics"]) for service in comparison["services"]) - len(rows)
    numbers = comparison.get("numbers", [])
    for number in numbers:
        place = (number["service"], number["metric"])
        verdict: Verdict | None = "WORSE" if place in broken else "undecided" if place in undecided else None
        if verdict is None and _notable(number):
            verdict = "more" if number["change"] > 0 else "less"
        if verdict is not None:
            rows.append(_measured_in_turns(nodeid, number, verdict))
    return rows, len(numbers) - len(rows)


def _notable(number: NumberRecord) -> bool:
    low, high, metric = number["low"], number["high"], METRICS.get(number["metric"])
    if low is None or high is None or metric is None or not metric.more_is_worse or low <= 0 <= high:
        return False
    least = _LEAST_SHARE if number["relative"] else _LEAST[metric.unit]
    absolute = abs(number["head"] - number["base"])
    return abs(number["change"]) >= least and (metric.unit != "count" or absolute >= _LEAST["count"])


def _measured_in_turns(nodeid: str, number: NumberRecord, verdict: Verdict) -> tuple[int, float, Row]:
    base, head = _shown(number["metric"], number["base"], number["head"])
    change, _, interval = number["text"].partition(" (")
    row = Row(nodeid, number["service"], number["metric"], base, head, change, interval.rstrip(")"), verdict)
    # What was 0 has grown beyond all measure.
    size = (
        abs(number["change"])
        if number["relative"] or not number["base"]
        else abs(number["change"] / number["base"])
    )
    return _RANK.index(verdict), -size, row


def _shown(metric: str, base: int | float, head: int | float) -> tuple[str, str]:
    if metric not in METRICS:  # in a file of a newer version
        return f"{base:,}", f"{head:,}"
    show = METRICS[metric].format
    return units.show_apart(base, head, show) if base != head else (show(base), show(head))


def _once(nodeid: str, metric: str, change: Mapping[str, Any], is_broken: bool) -> tuple[int, float, Row]:
    then, now = change["baseline"], change["measured"]
    base, head = _shown(metric, then, now)
    share = (now - then) / then if then else 0.0
    verdict: Verdict = "WORSE" if is_broken else "more" if now > then else "less"
    text = (
        f"{share * 100:+.1f} %" if then and (metric not in METRICS or METRICS[metric].unit != "share") else ""
    )
    return (
        _RANK.index(verdict),
        -abs(share),
        Row(nodeid, change["service"], metric, base, head, text, "", verdict),
    )
