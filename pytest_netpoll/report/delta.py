"""What changed against a base or a baseline: regressions first, then limited metrics, times last."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pytest_netpoll.model import units
from pytest_netpoll.model.comparison import limited, place
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.report import files, verdict_text, wording
from pytest_netpoll.report.github import as_code, as_text, cell
from pytest_netpoll.report.record import ComparisonRecord, NumberRecord, TestRecord

Verdict: TypeAlias = Literal["WORSE", "undecided", "more", "less"]
_RANKS: Mapping[Verdict, int] = {"WORSE": 0, "undecided": 1, "more": 2, "less": 2}
_ICONS: Mapping[Verdict, str] = {"WORSE": "❌", "undecided": "❔", "more": "🔺", "less": "🔽"}
# Smaller changes don't matter, however certain: as fractions, or by unit if the value was 0.
_LEAST_SHARE = 0.02
_LEAST: Mapping[str, float] = {"share": 0.01, "ratio": 0.1, "count": 10, "ns": 1_000, "s": 0.01}
MOST_ROWS = 60


class Row(NamedTuple):
    """A number that changed. interval: with 95 % confidence; "" if measured once."""

    nodeid: str
    service: str
    metric: str
    base: str
    head: str
    change: str
    interval: str
    verdict: Verdict


# (by its verdict, by its metric and size, the row)
_Ranked: TypeAlias = tuple[int, tuple[bool, bool, float], Row]


class Delta(NamedTuple):
    """The changes of all tests. sides: the names of the two sides. same: how many numbers of `tests` did not
    change. rounds: how many were made, in words; empty for one. left_out: the tests that were not compared at
    all, and why. notes: other notes on tests.
    """

    base: str
    sides: tuple[str, str]
    rows: list[Row]
    same: int
    tests: int
    rounds: str
    left_out: list[tuple[str, str]]
    notes: list[tuple[str, str]]

    @property
    def unchanged(self) -> str:
        """ "No change in 120 numbers of 3 tests, 8 to 14 rounds each"."""
        tests = f"{self.tests:,} test{'s' * (self.tests != 1)}"
        rounds = f", {self.rounds}" if self.rounds else ""
        return f"No change in {self.same:,} numbers of {tests}{rounds}."

    @property
    def not_compared(self) -> str:
        """ "2 of 8 tests were not compared:", before their notes; empty if all were."""
        count = len({nodeid for nodeid, _ in self.left_out})
        if not count:
            return ""
        return f"{count:,} of {self.tests + count:,} tests {'was' if count == 1 else 'were'} not compared:"


def grouped(notes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(where, note); the same note on many tests is printed once."""
    found: dict[str, list[str]] = {}
    for nodeid, note in notes:
        found.setdefault(note, []).append(nodeid)
    return [
        (nodeids[0] if len(nodeids) == 1 else f"{len(nodeids):,} tests", note)
        for note, nodeids in found.items()
    ]


def delta(records: Iterable[TestRecord]) -> Delta | None:
    """The Delta of the records; None if nothing was compared."""
    found: dict[str, tuple[ComparisonRecord, list[str]]] = {}
    limits: dict[str, Mapping[str, Any]] = {}
    for record in records:
        comparison = record.get("comparison")
        if comparison is not None:
            unmeasured = verdict_text.reasons(record) if comparison["outcome"] == "unmeasured" else []
            texts = [f"{why.headline}; fix: {why.fix}" if why.fix else why.headline for why in unmeasured]
            found[record["nodeid"]] = (comparison, texts)
            limits[record["nodeid"]] = record["limits"]
    return delta_of(found, limits) if found else None


def delta_of(
    comparisons: Mapping[str, tuple[ComparisonRecord, Iterable[str]]],
    limits: Mapping[str, Mapping[str, Any]],
) -> Delta:
    """comparisons: at least one, by nodeid; each with notes besides its own. limits: of each test."""
    ranked: list[_Ranked] = []
    left_out: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    same = 0
    for nodeid, (comparison, more) in comparisons.items():
        rows, unchanged = _rows(nodeid, comparison, limited(limits[nodeid]))
        ranked += rows
        same += unchanged
        said = [(nodeid, wording.one_line(note)) for note in (*comparison["notes"], *more)]
        if _is_left_out(comparison):
            left_out += said
        else:
            notes += said
    found = [comparison for comparison, _ in comparisons.values()]
    ordered = [row for *_, row in sorted(ranked, key=lambda entry: entry[:2])]
    tests = sum(not _is_left_out(comparison) for comparison in found)
    sides = ("base", "head") if found[0].get("commit") else ("then", "now")
    return Delta(base_name(found[0]), sides, ordered, same, tests, _rounds(found), left_out, notes)


def _is_left_out(comparison: ComparisonRecord) -> bool:
    """Whether no number of the test was compared."""
    in_turns = comparison.get("commit") is not None
    nothing = in_turns and comparison["outcome"] == "unmeasured" and not comparison.get("numbers")
    return comparison["outcome"] == "new" or nothing


def _rounds(comparisons: Iterable[ComparisonRecord]) -> str:
    """ "8 to 14 rounds each"; against a baseline "8 rounds then, 6 now"."""
    in_turns: set[int] = set()
    then: set[int] = set()
    now: set[int] = set()
    for comparison in comparisons:
        if comparison.get("commit") and not _is_left_out(comparison):
            in_turns.add(comparison["measured"])
        for number in comparison.get("numbers", []):
            base, head = number.get("base_rounds"), number.get("rounds")
            if base is not None and head is not None:
                then.add(base)
                now.add(head)
    if in_turns:
        return f"{_span(in_turns)} rounds each"
    return f"{_span(then)} rounds then, {_span(now)} now" if then else ""


def _span(counts: set[int]) -> str:
    return " to ".join(dict.fromkeys((str(min(counts)), str(max(counts)))))


def base_name(comparison: ComparisonRecord) -> str:
    """ "main (c0ffee123456)", or "baseline main" for a saved baseline."""
    commit, name = comparison.get("commit"), wording.one_line(comparison["baseline"])
    if commit is None:
        return f"baseline {name}"
    return commit[:12] if commit.startswith(name) else f"{name} ({commit[:12]})"


def markdown(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> str:
    """A Markdown table of what changed, and a line for all that did not."""
    found = delta(records)
    head = str(environment.get("commit") or "")[:12]
    if found is None:
        return "## pytest-netpoll\n\nNothing was compared.\n"
    lines = [f"## pytest-netpoll: {as_text(found.base)} → {as_text(head or 'now')}", ""]
    if found.rows:
        heads = ["", "test", "service", "metric", *found.sides, "change", "95 % interval"]
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
    for heading, notes in ((found.not_compared, found.left_out), ("", found.notes)):
        if heading:
            lines += [heading, ""]
        for where, note in grouped(notes):
            lines.append(f"- {as_code(where) if '::' in where else as_text(where)}: {as_text(note)}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def write(path: Path, environment: Mapping[str, Any], records: Iterable[TestRecord]) -> None:
    """Writes the Markdown to a file, atomically. NetpollError if that fails."""
    files.write_atomically(path, markdown(list(records), environment), "the Markdown report")


def terminal_rows(found: Delta) -> dict[str, list[str]]:
    """heading -> cells, for the columns beside the tests."""
    rows = found.rows[:MOST_ROWS]
    return {
        "service": [wording.one_line(row.service) for row in rows],
        "metric": [row.metric for row in rows],
        found.sides[0]: [row.base for row in rows],
        found.sides[1]: [row.head for row in rows],
        "change": [row.change for row in rows],
        "95 % interval": [row.interval for row in rows],
        "verdict": [row.verdict for row in rows],
    }


def further_lines(found: Delta) -> Iterator[str]:
    """The lines below the table."""
    if len(found.rows) > MOST_ROWS:
        yield f"… and {len(found.rows) - MOST_ROWS:,} more that changed"
    yield found.unchanged
    if found.left_out:
        yield found.not_compared
    for where, note in grouped(found.left_out):
        yield "  " + wording.one_line(f"{where}: {note}")
    for where, note in grouped(found.notes):
        yield wording.one_line(f"{where}: {note}")


def _rows(nodeid: str, comparison: ComparisonRecord, limits: Collection[str]) -> tuple[list[_Ranked], int]:
    """(rank, place, row) for each change, and how many numbers did not change."""
    broken = {(r["service"], r["metric"]): r for r in comparison["regressions"]}
    undecided = {(r["service"], r["metric"]) for r in comparison.get("undecided", [])}
    rows: list[_Ranked] = []
    numbers = comparison.get("numbers", [])
    for number in numbers:
        key = (number["service"], number["metric"])
        verdict: Verdict | None = "WORSE" if key in broken else "undecided" if key in undecided else None
        if verdict is None and _notable(number):
            verdict = "more" if number["change"] > 0 else "less"
        if verdict is not None:
            rows.append(_with_interval(nodeid, number, verdict, limits))
    same = len(numbers) - len(rows)
    if comparison.get("commit") is None:
        # With a baseline: too few rounds give no interval.
        known = {number["service"] for number in numbers}
        changes = {(c["service"], c["metric"]): c for c in comparison.get("changes", [])}
        once = [
            _once(nodeid, metric, change, (service, metric) in broken, limits)
            for (service, metric), change in {**changes, **broken}.items()
            if service not in known
        ]
        compared = sum(
            value is not None
            for service in comparison["services"]
            if service["name"] not in known
            for value in service["metrics"].values()
        )
        rows += once
        same += max(0, compared - len(once))
    return rows, same


def _notable(number: NumberRecord) -> bool:
    low, high, metric = number["low"], number["high"], METRICS.get(number["metric"])
    if low is None or high is None or metric is None or not metric.more_is_worse or low <= 0 <= high:
        return False
    least = _LEAST_SHARE if number["relative"] else _LEAST[metric.unit]
    absolute = abs(number["head"] - number["base"])
    return abs(number["change"]) >= least and (metric.unit != "count" or absolute >= _LEAST["count"])


def _with_interval(nodeid: str, number: NumberRecord, verdict: Verdict, limits: Collection[str]) -> _Ranked:
    base, head = shown(number["metric"], number["base"], number["head"])
    change, _, interval = number["text"].partition(" (")
    row = Row(nodeid, number["service"], number["metric"], base, head, change, interval.rstrip(")"), verdict)
    return _RANKS[verdict], place(number["metric"], number["base"], number["head"], limits), row


def shown(metric: str, base: int | float, head: int | float) -> tuple[str, str]:
    """Both values for people, with enough digits to tell them apart."""
    if metric not in METRICS:  # in a file of a newer version
        return f"{base:,}", f"{head:,}"
    if base == head:
        return METRICS[metric].format(base), METRICS[metric].format(head)
    return units.show_changed(base, head, METRICS[metric].unit)


def _once(
    nodeid: str, metric: str, change: Mapping[str, Any], is_broken: bool, limits: Collection[str]
) -> _Ranked:
    then, now = change["baseline"], change["measured"]
    base, head = shown(metric, then, now)
    verdict: Verdict = "WORSE" if is_broken else "more" if now > then else "less"
    text = (
        f"{(now - then) / then * 100:+.1f} %"
        if then and (metric not in METRICS or METRICS[metric].unit != "share")
        else ""
    )
    row = Row(nodeid, change["service"], metric, base, head, text, "", verdict)
    return _RANKS[verdict], place(metric, then, now, limits), row
