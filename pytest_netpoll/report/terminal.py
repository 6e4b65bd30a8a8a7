"""What pytest's terminal shows: a line in the header, a table of all tests, a section for each failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.metrics import METRICS, Metric, in_report
from pytest_netpoll.options import Config
from pytest_netpoll.report import attached, cells, wording
from pytest_netpoll.report.record import (
    FrameRecord,
    ServiceRecord,
    TestRecord,
    WindowRecord,
)

MOST_PASSED = 40  # tests in the table
MOST_OTHERS = 200
SECTION_LINES = 24
MOST_OFFENDERS = 3
MOST_FRAMES = 6
_LEAST_FRAMES = 2  # of what explains most, before it gives way to numbers
MOST_ARTIFACTS = 16

_SERVICE_CELLS = 16
# What the parts of a row are parts of, where that is not the metric: they may well be more than it.
_PARTS_OF = {"events": "directions (read, write): "}


def _row(name: str) -> tuple[str, Metric | None, list[Metric]]:
    """The name of a row, the metric that leads it, and its parts."""
    found = [metric for metric in METRICS.values() if metric.row == name]
    total = next((metric for metric in found if metric.part is None), None)
    parts = [metric for metric in found if metric.part is not None]
    return name, total, sorted(parts, key=lambda metric: not metric.ahead)


# The numbers of one service.
_ROWS = [_row(name) for name in dict.fromkeys(metric.row for metric in METRICS.values() if metric.row)]


def header_line(config: Config, *details: str) -> str:
    """ "netpoll: gate, unmeasured tests fail; eBPF through BCC of /usr/bin/python3"."""
    if config.mode == "off":
        return "netpoll: off"
    fate = "fail" if config.unmeasured == "fail" else "are skipped"
    return "; ".join([f"netpoll: {config.mode}, unmeasured tests {fate}", *details])


def summary_table(
    records: Sequence[TestRecord], width: int, environment: Mapping[str, Any] | None = None
) -> str | None:
    """A row for each test and service, the bad ones first, not wider than `width` >= 60 columns.

    None without records. environment: as in the JSON report; of it "kernel", "bcc" and "attached" are shown.
    """
    if not records:
        return None
    shown, notes = wording.select(records, MOST_OTHERS, MOST_PASSED)
    lines = [_table(shown, width), *notes]
    for missing in wording.unchecked_rules(records):
        lines += _reason(missing, width)
    environment_lines = [
        wording.environment_line(records, environment or {}),
        attached.line(environment or {}),
    ]
    if any(environment_lines):
        lines.append("")
    for line in filter(None, environment_lines):
        lines += cells.wrap(line, width)
    return "\n".join(lines)


def _table(records: Sequence[TestRecord], width: int) -> str:
    rows = wording.rows(records)
    names = [row.name for row in rows]
    services = [wording.one_line(row.service["name"]) if row.service else "" for row in rows]
    columns = {
        heading: [wording.show(row.service, metric) for row in rows]
        for metric, heading in wording.COLUMNS.items()
    }
    own = {
        wording.one_line(heading): [wording.show_own(row.service, heading) for row in rows]
        for heading in wording.own_columns(records)
    }
    columns = {**columns, **own}
    if len(set(services) - {""}) > 1:
        columns = {"service": [cells.cut(name, _SERVICE_CELLS) for name in services], **columns}
    columns["verdict"] = [_verdict(row) for row in rows]
    dropped_first = [*wording.kept_longer(in_report("summary"))[:-1], *reversed(own)]
    return cells.layout(names, columns, width, dropped_first)


def _verdict(row: wording.Row) -> str:
    if row.window is not None:
        return "" if row.service is None or wording.trusted(row.service) else "unmeasured"
    status = wording.status_of(row.record, row.service)
    return "FAILED" if status == "failed" else status


def gate_preview(records: Sequence[TestRecord], width: int) -> list[str]:
    """Of report mode what gate mode would say: which tests would not pass, and why."""
    bad = [record for record in wording.worst_first(records) if wording.alarming(record)]
    if not bad:
        return []
    counts = wording.count_statuses(bad)
    said = [f"{counts[status]:,} {status}" for status in counts]
    lines = [
        "",
        *cells.wrap(f"report mode fails no test for this; with --netpoll=gate: {', '.join(said)}", width),
    ]
    for record in bad[:MOST_PASSED]:
        lines.append(f"  {cells.shorten(record['nodeid'], max(width - 2, 1))}: {wording.status_of(record)}")
        for reason in wording.reasons(record)[:MOST_OFFENDERS]:
            lines += cells.wrap(reason, width, "    ")
    if len(bad) > MOST_PASSED:
        lines.append(f"  … and {len(bad) - MOST_PASSED:,} more")
    return lines


def _reason(reason: Reason, width: int, indent: str = "") -> list[str]:
    fix = cells.wrap(f"fix: {reason.fix}", width, f"{indent}  ") if reason.fix else []
    return cells.wrap(reason.headline, width, indent) + fix


def failure_section(record: TestRecord, width: int) -> str:
    """Why the test failed or is unmeasured, at most SECTION_LINES lines, and then the files that were kept of
    it. Empty if there is nothing to say.

    The broken limits, the numbers of the services they belong to, the lines of Go behind them, and at
    the end, for which room is kept, the likely causes. Of a test that failed by itself what its windows
    counted comes first: it is what such a test asserts about.
    """
    concerned = _concerned(record)
    screen = _Screen(_causes(record, width))
    for reason in wording.reasons(record):
        screen.add(_reason(reason, width))
    if record["outcome"] == "unmeasured":
        screen.add(
            cells.wrap(
                "What is not measured does not pass; --netpoll-unmeasured=skip skips it instead.", width
            )
        )
    for window in wording.windows_behind(record):
        for service in _read_first(window):
            _add_window(screen, window, service, width)
    for service in concerned:
        for quota in wording.quotas_of(record, service):
            screen.add(cells.wrap(quota, width, "  "))
        blocks = [*wording.explaining(record, service), *wording.callers(record, service)]
        caution = attached.caution(record, service)
        remarks = [] if caution is None else [cells.wrap(caution, width, "  ")]
        remarks += [_reason(missing, width, "  ") for missing in wording.unexplained(record, service)]
        # The line of Go that leads is worth more than numbers that no limit is about.
        kept = sum(map(len, remarks)) + (_least(blocks[0], width) if blocks else 0)
        screen.add_numbers(service, width, _broken(record, service), kept)
        for remark in remarks:
            screen.add(remark)
        _add_entries(screen, blocks, width)
    return "\n".join([*filter(None, [screen.text()]), *_artifacts(record, width)])


def _artifacts(record: TestRecord, width: int) -> list[str]:
    """Commands, to be copied: they are not wrapped."""
    kept = record.get("artifacts")
    if kept is None:
        return []
    shown = kept["files"][:MOST_ARTIFACTS]
    rows = [[file["command"], wording.size(file["bytes"]), file["what"]] for file in shown]
    lines = []
    if rows:
        lines.append(f"artifacts: {wording.cd_to(kept['directory'])}")
        lines += [f"  {line}" for line in cells.tabulated(rows, ["left", "right", "left"]).splitlines()]
    if len(kept["files"]) > len(shown):
        lines.append(f"  … and {len(kept['files']) - len(shown):,} more files")
    for note in wording.artifact_notes(record):
        lines += _reason(note, width)
    return lines


def _add_entries(screen: _Screen, entries: Sequence[wording.Entry], width: int) -> None:
    """As many as there is room for: none that explains less in the place of one that explains more."""
    for number, entry in enumerate(entries[:MOST_OFFENDERS]):
        head = _head(entry, width)
        woken = cells.wrap(entry.woken, width, "  ") if entry.woken else []
        if not screen.add(head + _frames(entry.stack, width) + woken, at_least=len(head) + 1):
            screen.left_out += len(entries[number + 1 :])
            return
    screen.left_out += len(entries[MOST_OFFENDERS:])


def _head(entry: wording.Entry, width: int) -> list[str]:
    return cells.wrap(entry.text + entry.lead_in, width, "  ")


def _least(entry: wording.Entry, width: int) -> int:
    """Lines that are enough of it: what it is, and the innermost frames."""
    return len(_head(entry, width)) + min(len(entry.stack), _LEAST_FRAMES)


def _add_window(screen: _Screen, window: WindowRecord, service: ServiceRecord, width: int) -> None:
    name = wording.window_name(window)
    if not wording.trusted(service):
        why = service.get("unmeasured") or "the numbers are not exact"
        screen.add(cells.wrap(wording.one_line(f"{name}, {service['name']}: not measured: {why}"), width))
        return
    blocks = wording.evidence_in(service)
    # Of a window that has no room for its numbers the evidence would be anybody's.
    if not screen.add(_numbers(service, width, f"{name}, "), at_least=2):
        screen.left_out += len(blocks)
        return
    _add_entries(screen, blocks, width)


def _read_first(window: WindowRecord) -> list[ServiceRecord]:
    """The services whose numbers the test asked for, the last one first; all where it asked for none."""
    read = window["read"][::-1]
    services = [service for service in window["services"] if not read or service["name"] in read]
    return sorted(services, key=lambda service: read.index(service["name"]) if read else 0)


def _causes(record: TestRecord, width: int) -> list[str]:
    """The diagnosis, as far as it fits beside the rest; of another service's troubles the reports tell."""
    lines: list[str] = []
    for text in wording.diagnosis_of(record):
        block = cells.wrap(text, width)
        if len(lines) + len(block) <= SECTION_LINES // 2:
            lines += block
    return lines


class _Screen:
    """Lines, as many as fit before those at the end; counts the blocks that did not."""

    def __init__(self, end: list[str]) -> None:
        self.left_out = 0
        self._lines: list[str] = []
        self._end = end

    def add(self, block: list[str], at_least: int | None = None) -> bool:
        """Whether it had room. at_least: so many lines of the block are better than none of it."""
        room = SECTION_LINES - 1 - len(self._end) - len(self._lines)
        if len(block) <= room or (at_least is not None and at_least <= room):
            self._lines += block[:room]
            return True
        self.left_out += 1
        return False

    def add_numbers(self, service: ServiceRecord, width: int, broken: Set[str], kept: int) -> None:
        """As many as leave `kept` lines, but those that are broken in any case. All or none if none are."""
        room = SECTION_LINES - 1 - len(self._end) - len(self._lines) - kept
        every = shown = _numbers(service, width)
        for dropped in range(1, len(_ROWS) + 1) if broken else ():
            if len(shown) <= room:
                break
            shown = _numbers(service, width, broken=broken, dropped=dropped)
        if shown and self.add(shown) and len(shown) < len(every):
            self.left_out += 1

    def text(self) -> str:
        more = [f"… {self.left_out:,} more in --netpoll-json=FILE"] if self.left_out else []
        return "\n".join([*self._lines, *more, *self._end])


def _concerned(record: TestRecord) -> list[ServiceRecord]:
    """The services with broken limits, or all where it is not a limit that failed the test."""
    broken = {fault["service"] for fault in wording.broken(record)}
    return [service for service in record["services"] if not broken or service["name"] in broken]


def _broken(record: TestRecord, service: ServiceRecord) -> set[str]:
    """The metrics and rules."""
    return {wording.base_of(fault["metric"]) for fault in wording.broken(record, service)}


def _numbers(
    service: ServiceRecord, width: int, prefix: str = "", *, broken: Set[str] = frozenset(), dropped: int = 0
) -> list[str]:
    """What was counted, without the zeros: a number that is 0 explains nothing.

    dropped: so many rows less, the last ones that have none of the broken metrics.
    """
    metrics, runs = service["metrics"], wording.runs_of(service)
    rows: list[list[str]] = []
    others: list[int] = []
    for name, total, parts in _ROWS:
        detail = ", ".join(
            f"{part.format(metrics[part.name])} {part.part}{_remark(service, part.name)}"
            for part in parts
            if metrics.get(part.name)
        )
        if detail:
            detail = _PARTS_OF.get(name, "") + detail
        if detail or (total is not None and metrics.get(total.name)):
            if not any(metric.name in broken for metric in (total, *parts) if metric is not None):
                others.append(len(rows))
            rows.append([name, total.format(metrics.get(total.name)) if total else "", detail])
    if not rows:
        return []
    left_out = others[-dropped:] if dropped else []
    rows = [row for number, row in enumerate(rows) if number not in left_out]
    used = sum(max(map(cells.width_of, column)) + 2 for column in list(zip(*rows, strict=True))[:2])
    rows = [[name, total, "\n".join(cells.wrap(detail, width - 2 - used))] for name, total, detail in rows]
    table = cells.tabulated(rows, ["left", "right", "left"]) if rows else ""
    median = f", median of {runs} runs" if runs > 1 else ""
    title = (
        f"{prefix}{service['name']} (pid {service['pid']}, {service['go_version'] or 'unknown Go'}{median}):"
    )
    # What times are made of is the first thing to go where no limit is about times.
    timed = not dropped or any(METRICS[name].family in wording.TIMED for name in broken & METRICS.keys())
    budgets = [f"  {text}" for text in wording.budgets_of(service)] if timed else []
    return [wording.one_line(title), *(f"  {line}" for line in table.splitlines()), *budgets]


def _remark(service: ServiceRecord, metric: str) -> str:
    what = wording.most_futile(service) if metric == "futile_calls" else ""
    return f" ({what})" if what else ""


def _frames(stack: Sequence[FrameRecord], width: int) -> list[str]:
    """ "    server/fault_dup.go:33  main.(*watcher).run", one a line."""
    shown = stack[:MOST_FRAMES]
    # A third for the function, whose end names it: main.(*watcher).run.
    most = max(width * 2 // 3 - 4, 1)
    locations = [cells.cut(wording.frame_location(frame), most) for frame in shown]
    column = max(map(cells.width_of, locations), default=0)
    return [
        f"    {location}{' ' * (column - cells.width_of(location))}  "
        f"{cells.cut(wording.one_line(frame['function'] or '?'), max(width - column - 6, 1))}"
        for location, frame in zip(locations, shown, strict=True)
    ]
