"""The output in pytest's terminal: a header line, a table of all tests, a section for each failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_netpoll.errors import Reason
from pytest_netpoll.meter.privilege import NEEDS_ROOT
from pytest_netpoll.model.metrics import base_of, in_report
from pytest_netpoll.options import Config
from pytest_netpoll.report import (
    attached,
    cells,
    evidence_entries,
    evidence_text,
    service_numbers,
    verdict_text,
    wording,
)
from pytest_netpoll.report.next_steps import next_step
from pytest_netpoll.report.record import FrameRecord, ServiceRecord, TestRecord, WindowRecord
from pytest_netpoll.report.screen import Screen

MOST_PASSED = 40  # tests in the table
MOST_OTHERS = 200
SECTION_LINES = 24
_MORE_LINES = 6  # where several limits are broken, for the Go line of each
MOST_OFFENDERS = 3
_LEAST_SHARE = 0.05  # lines the least share of an entry that isn't the first of its kind
_MOST_SHARE = 0.95  # the share from which callers explain it all
MOST_FRAMES = 6
_LEAST_FRAMES = 2  # frames of the first entry that take precedence over numbers
MOST_ARTIFACTS = 16

_SERVICE_CELLS = 16


def header_line(config: Config, *details: str) -> str:
    """ "netpoll: gate, unmeasured tests fail; eBPF through BCC of /usr/bin/python3"."""
    if config.mode == "off":
        return "netpoll: off"
    fate = "fail" if config.unmeasured == "fail" else "are skipped"
    return "; ".join([f"netpoll: {config.mode}, unmeasured tests {fate}", *details])


def summary_table(
    records: Sequence[TestRecord], width: int, environment: Mapping[str, Any] | None = None
) -> str | None:
    """A row for each test and service, failures first, not wider than `width` >= 60 columns.

    None without records. environment: as in the JSON report; of it "kernel", "bcc" and "attached" are shown.
    """
    if not records:
        return None
    shown, notes = wording.select(records, MOST_OTHERS, MOST_PASSED)
    lines = [_table(shown, width), *notes]
    for missing in verdict_text.unchecked_rules(records):
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
        faulty = [breach["service"] for breach in row.window.get("breaches", [])]
        if row.service is not None and row.service["name"] in faulty:
            if wording.expected(row.record):
                return "xfailed"
            return "FAILED" if row.record["outcome"] == "failed" else "would fail"
        return "" if row.service is None or wording.trusted(row.service) else "unmeasured"
    status = wording.status_of(row.record, row.service)
    return "FAILED" if status == "failed" else status


def gate_preview(records: Sequence[TestRecord], width: int) -> list[str]:
    """What gate mode would report: which tests would not pass, and why."""
    bad = [record for record in wording.worst_first(records) if wording.alarming(record)]
    if not bad:
        return []
    counts = wording.count_statuses(bad)
    said = [f"{counts[status]:,} {status}" for status in counts]
    lines = [
        "",
        *cells.wrap(f"report mode fails no test; in gate mode: {', '.join(said)}", width),
    ]
    told: set[str | None] = set()  # how to let pytest load BPF, which is the same for all tests
    for record in bad[:MOST_PASSED]:
        lines.append(f"  {cells.shorten(record['nodeid'], max(width - 2, 1))}: {wording.status_of(record)}")
        found = verdict_text.reasons(record)
        for reason in found[:MOST_OFFENDERS]:
            again = NEEDS_ROOT in reason.what and reason.fix in told
            lines += _reason(Reason(reason.headline) if again else reason, width, "    ")
            told.add(reason.fix)
        if len(found) > MOST_OFFENDERS:
            lines.append(f"    … {len(found) - MOST_OFFENDERS:,} more")
    if len(bad) > MOST_PASSED:
        lines.append(f"  … and {len(bad) - MOST_PASSED:,} more")
    return lines


def _reason(reason: Reason, width: int, indent: str = "") -> list[str]:
    fix = cells.wrap_fix(reason.fix, width, f"{indent}  ") if reason.fix else []
    return cells.wrap(reason.headline, width, indent) + fix


def failure_section(
    record: TestRecord, width: int, after_reasons: bool = False, report: object = None
) -> str:
    """Why the test failed or is unmeasured, in about SECTION_LINES lines, then the files that were kept.

    Empty if there is nothing to say. after_reasons: whether it follows pytest's message with the reasons, of
    which only broken rules lack something: what was seen. report: the path of the file that will have it
    all; None if none was asked for.

    First comes what broke, then for each service the best Go line for each broken limit and the numbers that
    matter for them. The likely causes come last; room is reserved for them. If the test itself failed, the
    numbers of its windows come first, because the test asserts something about them.
    """
    about: list[tuple[TestRecord, ServiceRecord, str]] = []
    for window in wording.broken_windows(record):
        alone = wording.of_window(record, window)
        about += [(alone, service, f"{wording.name_of(window)}, ") for service in _concerned(alone)]
    for service in _concerned(record):
        about.append((record, service, ""))
    further = sum(sum(_leads(one, service, width)[1:]) for one, service, _ in about)
    screen = Screen(_causes(record, width), SECTION_LINES + min(further, _MORE_LINES), report)
    for reason in verdict_text.proofs(record) if after_reasons else verdict_text.reasons(record):
        screen.add(_reason(reason, width))
    if record["outcome"] == "unmeasured":
        screen.add(cells.wrap("An unmeasured test fails; --netpoll-unmeasured=skip skips it instead.", width))
    for window in wording.windows_behind(record):
        for service in _read_first(window):
            _add_window(screen, window, service, width)
    for number, (one, service, prefix) in enumerate(about):
        needed = [_needed(other, its, width) for other, its, _ in about[number:]]
        screen.reserve(needed[0], needed[1:])
        _add_service(screen, one, service, width, prefix)
    return "\n".join([*filter(None, [screen.text()]), *_artifacts(record, width)])


def _needed(record: TestRecord, service: ServiceRecord, width: int) -> int:
    """The fewest useful lines about a service."""
    least = _leads(record, service, width)[:1]
    return 1 + sum(least) if least else 0


def _leads(record: TestRecord, service: ServiceRecord, width: int) -> list[int]:
    """The fewest useful lines of the entries that come before the numbers."""
    entries = evidence_entries.explaining(record, service)
    return [_least(entry, width) for entry in entries if entry.leads]


def _add_service(
    screen: Screen, record: TestRecord, service: ServiceRecord, width: int, window: str = ""
) -> None:
    quotas = [
        line
        for quota in evidence_entries.quotas_of(record, service)
        for line in cells.wrap(quota, width, "  ")
    ]
    entries = evidence_entries.explaining(record, service)
    caution = attached.caution(record, service)
    remarks = [] if caution is None else [cells.wrap(caution, width, "  ")]
    remarks += [_reason(missing, width, "  ") for missing in evidence_entries.unexplained(record, service)]
    step = next_step(record, service)
    if step is not None:
        remarks.append(_reason(Reason(step.seen, fix=step.steps), width, "  "))
    broken = _broken(record, service)
    matter = service_numbers.that_matter(record, service, broken)
    # The Go line of each limit is worth more than numbers that no limit is about.
    kept = 1 + len(quotas) + sum(map(len, remarks)) + sum(_leads(record, service, width))
    numbers = every = service_numbers.lines(service, width, broken=broken, matter=matter)
    for dropped in range(1, len(service_numbers.ROWS) + 1) if broken else ():
        if len(numbers) <= screen.room - kept:
            break
        numbers = service_numbers.lines(service, width, broken=broken, matter=matter, dropped=dropped)
    if quotas or entries or remarks or numbers:
        # Without anything below it the title would only take room.
        if not screen.add([_title(service, window)], reserved=1):
            return
        screen.add(quotas)
        _add_entries(screen, entries, width, reserved=sum(map(len, remarks)) + len(numbers))
        for block in remarks:
            screen.add(block)
        if numbers and screen.add(numbers) and len(numbers) < len(every):
            screen.left_out += len(every) - len(numbers)
    if not entries:
        _add_entries(screen, evidence_entries.callers(record, service), width)


def _title(service: ServiceRecord, prefix: str = "") -> str:
    runs = wording.runs_of(service)
    median = f", median of {runs} runs" if runs > 1 else ""
    go = service["go_version"] or "unknown Go"
    return wording.one_line(f"{prefix}{service['name']} (pid {service['pid']}, {go}{median}):")


def _artifacts(record: TestRecord, width: int) -> list[str]:
    """The artifacts' commands; not wrapped, because users copy them."""
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


def _add_entries(
    screen: Screen, entries: Sequence[evidence_entries.Entry], width: int, reserved: int = 0
) -> None:
    """Adds as many entries as fit: those that lead, then the others. reserved: lines that have to stay free
    of the others.
    """
    shown = _leading(entries)
    leads = sum(entry.leads for entry in shown)
    most = max(leads - 1, 0) + MOST_OFFENDERS
    screen.left_out += sum(len(_block(entry, width)) for entry in entries if entry not in shown)
    for number, entry in enumerate(shown):
        block = _block(entry, width)
        cut_short = evidence_text.is_cut_short(entry.stack) and not screen.explains_cut_stacks
        note = cells.wrap(evidence_text.CUT_SHORT, width, "  ") if cut_short else []
        free = reserved
        if number < leads:
            free += sum(_least(other, width) for other in shown[number + 1 : leads])
            free = min(free, max(screen.room - _least(entry, width), 0))
        added = number < most and screen.add(block + note, len(_head(entry, width)) + 1, free)
        if number >= most:
            screen.left_out += len(block)
        if not added and number >= leads:
            screen.left_out += sum(len(_block(other, width)) for other in shown[number + 1 :])
            return
        screen.explains_cut_stacks |= added and cut_short


def _block(entry: evidence_entries.Entry, width: int) -> list[str]:
    woken = cells.wrap(entry.woken, width, "  ") if entry.woken else []
    return _head(entry, width) + _frames(evidence_text.up_to_own_code(entry.stack), width) + woken


def _leading(entries: Sequence[evidence_entries.Entry]) -> Sequence[evidence_entries.Entry]:
    """Drops entries that explain little, and those on CPU and network if timers woke the goroutines, but none
    that leads.
    """
    timers = bool(entries) and entries[0].kind == "ready" and (entries[0].share or 0) >= _MOST_SHARE
    shown: list[evidence_entries.Entry] = []
    for entry in entries:
        first = all(other.kind != entry.kind for other in shown)
        little = entry.kind != "parked" and entry.share is not None and entry.share < _LEAST_SHARE
        if entry.leads or ((first or not little) and not (timers and entry.kind in ("cpu", "woken"))):
            shown.append(entry)
    return shown


def _head(entry: evidence_entries.Entry, width: int) -> list[str]:
    return cells.wrap(entry.text + entry.lead_in, width, "  ")


def _least(entry: evidence_entries.Entry, width: int) -> int:
    """The fewest useful lines of an entry: its text and the innermost frames."""
    return len(_head(entry, width)) + min(len(evidence_text.up_to_own_code(entry.stack)), _LEAST_FRAMES)


def _add_window(screen: Screen, window: WindowRecord, service: ServiceRecord, width: int) -> None:
    name = wording.name_of(window)
    if not wording.trusted(service):
        why = service.get("unmeasured") or "the numbers are not exact"
        screen.add(cells.wrap(wording.one_line(f"{name}, {service['name']}: not measured: {why}"), width))
        return
    blocks = evidence_entries.evidence_in(service)
    # If a window's numbers don't fit, its evidence would seem to belong to another one.
    numbers = service_numbers.lines(service, width)
    if numbers and not screen.add([_title(service, f"{name}, "), *numbers], at_least=2):
        screen.left_out += sum(len(_block(entry, width)) for entry in blocks)
        return
    _add_entries(screen, blocks, width)


def _read_first(window: WindowRecord) -> list[ServiceRecord]:
    """The services whose numbers the test asked for, the last one first; all if it asked for none."""
    read = window["read"][::-1]
    services = [service for service in window["services"] if not read or service["name"] in read]
    return sorted(services, key=lambda service: read.index(service["name"]) if read else 0)


def _causes(record: TestRecord, width: int) -> list[str]:
    """The diagnosis, if it fits beside the rest. The reports also have other services' faults."""
    lines: list[str] = []
    for rule in verdict_text.diagnosis_of(record):
        block = _reason(rule, width)
        if len(lines) + len(block) <= SECTION_LINES // 2:
            lines += block
    return lines


def _concerned(record: TestRecord) -> list[ServiceRecord]:
    """The services with broken limits, or all if the test failed for another reason."""
    broken = {fault["service"] for fault in wording.broken(record)}
    if not broken and wording.broken_windows(record):
        return []
    return [service for service in record["services"] if not broken or service["name"] in broken]


def _broken(record: TestRecord, service: ServiceRecord) -> set[str]:
    """The metrics and rules."""
    return {base_of(fault["metric"]) for fault in wording.broken(record, service)}


def _frames(stack: Sequence[FrameRecord], width: int) -> list[str]:
    """ "    server/fault_dup.go:33  main.(*watcher).run", one a line."""
    shown = stack[:MOST_FRAMES]
    # A third of the width for the function, whose end names it: main.(*watcher).run.
    most = max(width * 2 // 3 - 4, 1)
    locations = [cells.cut(evidence_text.frame_location(frame), most) for frame in shown]
    column = max(map(cells.width_of, locations), default=0)
    return [
        f"    {location}{' ' * (column - cells.width_of(location))}  "
        f"{cells.cut(wording.one_line(frame['function'] or '?'), max(width - column - 6, 1))}"
        for location, frame in zip(locations, shown, strict=True)
    ]
