"""For GitHub Actions: Markdown for the step summary, and annotations for lines of tests and Go code."""

# No "from __future__ import annotations": a function here has that name.
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytest_netpoll.report import attached, evidence_entries, files, verdict_text, wording
from pytest_netpoll.report.record import ServiceRecord, TestRecord

# GitHub drops a summary of more than 1 MiB.
MOST_PASSED = 40
MOST_OTHERS = 200

_ICONS = {"failed": "❌", "unmeasured": "❔", "would fail": "⚠️", "passed": "✅", "xfailed": "☑️"}


def markdown(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> str:
    """The failed and unmeasured tests with their reasons and worst offender, then a table of all tests."""
    counts = wording.count_statuses(records)
    total = ", ".join(f"{_ICONS[status]} {count:,} {status}" for status, count in counts.items())
    shown, notes = wording.select(records, MOST_OTHERS, MOST_PASSED)
    lines = ["## pytest-netpoll", "", total or "No test was measured.", ""]
    bad = [record for record in shown if wording.alarming(record)]
    for record in bad:
        lines.append(f"- {_ICONS[wording.status_of(record)]} {as_code(record['nodeid'])}")
        lines += [f"  - {as_text(cause)}" for cause in _causes(record)]
    if bad:
        lines.append("")
    if shown:
        lines += [*_table(shown), ""]
    if any(
        _spread(row.record, row.service, metric) for row in wording.rows(shown) for metric in wording.COLUMNS
    ):
        lines += ["In brackets: the minimum and maximum over the runs, whose median is judged.", ""]
    for note in [
        *notes,
        *(line for why in verdict_text.unchecked_rules(records) for line in why.splitlines()),
    ]:
        lines += [as_text(wording.one_line(note)), ""]
    for line in (wording.environment_line(records, environment), attached.line(environment)):
        if line:
            lines += [as_text(line), ""]
    return "\n".join(lines)


def append(path: Path, text: str) -> None:
    """Appends to the file that GITHUB_STEP_SUMMARY names; NetpollError if that fails."""
    files.append(path, text, "the step summary")


def annotations(
    records: Iterable[TestRecord],
    root: Path = Path(),
    find: Callable[[str], Path | None] = lambda _: None,
    level: Literal["error", "warning"] = "error",
) -> list[str]:
    """Workflow commands for the log, one per line, that annotate failed and unmeasured tests. A further
    one for each broken service annotates its Go line, so that it shows in the diff; tests with the same Go
    line share it. root:
    the path in the repository that the records' files are relative to. find: Go file in a stack -> path in
    the repository, or None.
    """
    lines: list[str] = []
    in_go: dict[tuple[Path, int], list[tuple[TestRecord, evidence_entries.Evidence]]] = {}
    for record in wording.worst_first(records):
        if not wording.alarming(record):
            continue
        file = root / record["file"] if record.get("file") else None
        message = "\n".join(_causes(record)) or wording.status_of(record)
        lines.append(_annotation(level, file, record.get("line"), f"netpoll: {record['nodeid']}", message))
        for evidence in evidence_entries.worst_places(record):
            for frame in evidence.stack:
                path = find(frame["file"] or "")
                if path is not None and frame["line"]:
                    in_go.setdefault((path, frame["line"]), []).append((record, evidence))
                    break
    for (path, line), found in in_go.items():
        record = found[0][0]
        others = len({id(other) for other, _ in found}) - 1
        more = f" and {others:,} more test{'s' * (others > 1)}" if others else ""
        here = [evidence for other, evidence in found if other is record]
        names = [evidence.service for evidence in here]
        causes = [*verdict_text.broken_rules(record, names), *verdict_text.diagnosis_of(record, names)]
        message = "\n".join([*(at.here for at in here), *map(verdict_text.in_a_line, causes)])
        lines.append(_annotation(level, path, line, f"netpoll: {record['nodeid']}{more}", message))
    return lines


def _annotation(level: str, file: Path | None, line: int | None, title: str, message: str) -> str:
    if file is not None and wording.one_line(str(file)) != str(file):
        file = None  # a name that no other text produces
    properties = {"file": file, "line": line if file is not None else None, "title": wording.one_line(title)}
    text = ",".join(
        f"{name}={_escape(str(value), ':,')}" for name, value in properties.items() if value is not None
    )
    return f"::{level} {text}::{_escape(message)}"


def _escape(text: str, further: str = "") -> str:
    """Escapes text as GitHub's toolkit does; in properties also the characters that end one."""
    return re.sub(f"[%\r\n{further}]", lambda match: f"%{ord(match[0]):02X}", text)


def _causes(record: TestRecord) -> list[str]:
    """Why it failed: a line for each reason, then each service's worst Go line, then the diagnosis."""
    error, places = record.get("error"), map(str, evidence_entries.worst_places(record))
    # A reason's fix is on a line of its own.
    reasons = [line for reason in verdict_text.reasons(record) for line in reason.splitlines()]
    causes = [error, *reasons, *places, *map(verdict_text.in_a_line, verdict_text.diagnosis_of(record))]
    return [wording.one_line(cause) for cause in causes if cause]


def _table(records: Sequence[TestRecord]) -> list[str]:
    headings = ["", "test", "service", *wording.COLUMNS.values()]
    align = ["---", "---", "---", *("---:" for _ in wording.COLUMNS)]
    rows = [
        [
            "" if row.window is not None else _ICONS[wording.status_of(row.record, row.service)],
            as_code(row.record["nodeid"]) if row.window is None else as_text(row.name),
            as_code(row.service["name"]) if row.service else "",
            *(
                wording.show(row.service, metric) + _spread(row.record, row.service, metric)
                for metric in wording.COLUMNS
            ),
        ]
        for row in wording.rows(records)
    ]
    return [f"| {' | '.join(map(cell, row))} |" for row in [headings, align, *rows]]


def _spread(record: TestRecord, service: ServiceRecord | None, metric: str) -> str:
    """ " (5.1 µs to 6.3 µs)": the spread of a limit's values over several runs; empty if they are equal."""
    if service is None or not wording.trusted(service):
        return ""
    judged = wording.runs_of(service) > 1 and metric in wording.judged(record, service)
    spread = wording.spread_of(service, metric) if judged else ""
    return f" ({spread})" if " to " in spread else ""


def cell(text: str) -> str:
    """Text as a cell of a table."""
    # A "|" ends a table's cell even inside code, unless a backslash precedes it.
    return text.replace("|", "\\|")


def as_code(text: str) -> str:
    """Text as a code span, whatever it contains."""
    text = wording.one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def as_text(text: str) -> str:
    """Escapes plain text: main.(*watcher).run isn't emphasis, <nil> isn't HTML."""
    # An underscore inside a word isn't emphasis, and a ">" makes a quotation only at the start.
    return re.sub(r"([\\`*\[\]<#|~&$]|^>|(?<!\w)_|_(?!\w))", r"\\\1", text)
