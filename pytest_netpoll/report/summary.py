"""For GitHub Actions: Markdown for the step summary, and annotations of the tests' lines."""

# No "from __future__ import annotations": a function here has that name.
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_netpoll.report import attached, files, words
from pytest_netpoll.report.record import ServiceRecord, TestRecord

# GitHub drops a summary of more than 1 MiB.
MOST_PASSED = 40
MOST_OTHERS = 200

_ICONS = {"failed": "❌", "unmeasured": "❔", "passed": "✅"}
_XFAILED = "☑️"


def markdown(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> str:
    """The bad tests with their reasons and their worst offender, then a table of all, bad ones first."""
    counts = words.count_outcomes(records)
    total = ", ".join(f"{_ICONS[outcome]} {count:,} {outcome}" for outcome, count in counts.items() if count)
    xfailed = sum(map(words.expected, records))
    total += f"{', ' if total else ''}{_XFAILED} {xfailed:,} xfailed" if xfailed else ""
    shown, notes = words.select(records, MOST_OTHERS, MOST_PASSED)
    lines = ["## pytest-netpoll", "", total or "No test was measured.", ""]
    bad = [record for record in shown if _alarming(record)]
    for record in bad:
        lines.append(f"- {_ICONS[record['outcome']]} {_code(record['nodeid'])}")
        lines += [f"  - {_text(cause)}" for cause in _causes(record)]
    if bad:
        lines.append("")
    if shown:
        lines += [*_table(shown), ""]
    if any(
        _spread(record, service, metric) for record, service in words.rows(shown) for metric in words.COLUMNS
    ):
        lines += ["In brackets: the least and the most over the runs, of which the median is judged.", ""]
    for note in notes:
        lines += [_text(note), ""]
    for line in (words.environment_line(records, environment), attached.line(environment)):
        if line:
            lines += [_text(line), ""]
    return "\n".join(lines)


def append(path: Path, text: str) -> None:
    """To the file that GITHUB_STEP_SUMMARY names; NetpollError if that fails."""
    files.append(path, text, "the step summary")


def annotations(records: Iterable[TestRecord], root: Path = Path()) -> list[str]:
    """Workflow commands, one a line for the log, that mark the tests that failed or are unmeasured.

    root: what the files of the records are relative to, as a path in the repository.
    """
    return [_annotation(record, root) for record in words.worst_first(records) if _alarming(record)]


def _alarming(record: TestRecord) -> bool:
    return record["outcome"] != "passed" and not words.expected(record)


def _annotation(record: TestRecord, root: Path) -> str:
    properties: dict[str, object] = {}
    if record.get("file"):
        properties["file"] = root / record["file"]
        if record.get("line"):
            properties["line"] = record["line"]
    properties["title"] = f"netpoll: {record['nodeid']}"
    text = ",".join(f"{name}={_escape(str(value), ':,')}" for name, value in properties.items())
    message = "\n".join(_causes(record)) or record["outcome"]
    return f"::error {text}::{_escape(message)}"


def _escape(text: str, further: str = "") -> str:
    """As GitHub's own toolkit does; in properties also the characters that end one."""
    return re.sub(f"[%\r\n{further}]", lambda match: f"%{ord(match[0]):02X}", text)


def _causes(record: TestRecord) -> list[str]:
    """Why it failed, a line each, and last the worst place in Go."""
    error, offender = record.get("error"), words.first_offender(record)
    # The fix of a reason is a line of its own.
    reasons = [line for reason in words.reasons(record) for line in reason.splitlines()]
    return [words.one_line(cause) for cause in [error, *reasons, offender] if cause]


def _table(records: Sequence[TestRecord]) -> list[str]:
    headings = ["", "test", "service", *words.COLUMNS.values()]
    align = ["---", "---", "---", *("---:" for _ in words.COLUMNS)]
    rows = [
        [
            _XFAILED if words.expected(record) else _ICONS[words.outcome_of(record, service)],
            _code(record["nodeid"]),
            _code(service["name"]) if service else "",
            *(words.show(service, metric) + _spread(record, service, metric) for metric in words.COLUMNS),
        ]
        for record, service in words.rows(records)
    ]
    return [f"| {' | '.join(map(_cell, row))} |" for row in [headings, align, *rows]]


def _spread(record: TestRecord, service: ServiceRecord | None, metric: str) -> str:
    """ " (5.1 µs to 6.3 µs)", of what a limit was judged by over several runs, where they differ."""
    if service is None or not words.trusted(service):
        return ""
    judged = words.runs_of(service) > 1 and metric in words.judged(record, service)
    spread = words.spread_of(service, metric) if judged else ""
    return f" ({spread})" if " to " in spread else ""


def _cell(text: str) -> str:
    # A table's cells end at a "|" even inside code, unless a backslash stands before it.
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    """As a code span, whatever it holds."""
    text = words.one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def _text(text: str) -> str:
    """As plain text: main.(*watcher).run is no emphasis, <nil> no HTML."""
    # An underscore inside a word is no emphasis, and a ">" makes a quotation only at the start.
    return re.sub(r"([\\`*\[\]<#|~&$]|^>|(?<!\w)_|_(?!\w))", r"\\\1", text)
