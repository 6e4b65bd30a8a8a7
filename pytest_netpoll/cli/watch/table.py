"""What `watch` shows: a table refreshed in place, plain lines where there is no terminal, or JSON."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Sequence
from typing import TextIO

from tabulate import tabulate

from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model import units
from pytest_netpoll.model.diagnosis import diagnose
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import METRICS, Value, in_report
from pytest_netpoll.report import record, wording
from pytest_netpoll.report.cells import cut

SCHEMA = "pytest-netpoll-watch/1"

_CELLS = 10  # of a column of a plain line
_HEADING_EVERY = 20  # plain lines
MOST_OFFENDERS = 3

_BOLD, _RED, _YELLOW = "1", "31", "33"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def rate(name: str, measurement: Measurement) -> Value:
    """A count or a time per second of the window; None for what is no amount, and where nothing is known."""
    if measurement.unmeasured is not None or METRICS[name].unit not in ("count", "s"):
        return None
    value = METRICS[name].read(measurement.snapshot)
    if value is None or not measurement.window_seconds:
        return None
    return value / measurement.window_seconds


def show_now(name: str, measurement: Measurement) -> str:
    """A metric in one interval: counts a second, CPU time as share of a CPU, the others as they are."""
    metric = METRICS[name]
    if measurement.unmeasured is not None:
        return units.NOT_MEASURED
    if metric.unit == "count":
        amount = rate(name, measurement)
        small = amount is not None and amount < 100
        return f"{units.show(None if amount is None else float(amount), 'count', 1 if small else 0)}/s"
    if metric.unit == "s":
        return units.show(rate(name, measurement), "share")
    return metric.format(metric.read(measurement.snapshot))


def show_total(name: str, total: Measurement) -> str:
    if total.unmeasured is not None:
        return units.NOT_MEASURED
    return METRICS[name].format(METRICS[name].read(total.snapshot))


class View:
    """Writes to a stream; a context manager, for the cursor is hidden while it draws."""

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json
        self._in_place = not as_json and stream.isatty() and os.environ.get("TERM") != "dumb"
        # https://no-color.org: set and not empty.
        self._coloured = self._in_place and not os.environ.get("NO_COLOR")
        self._drawn = 0  # lines of the table on the screen
        self._intervals = 0

    def __enter__(self) -> View:
        if self._in_place:
            self._stream.write(_HIDE_CURSOR)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_place:
            self._stream.write(_SHOW_CURSOR)
            self._stream.flush()

    def note(self, text: str) -> None:
        """A line above the table; not in JSON, which is for programs."""
        if not self._as_json:
            self._write([text])

    def interval(self, who: str, measurement: Measurement, run: Accumulated) -> None:
        """who: the heading."""
        if self._as_json:
            self._write([_json("interval", who, measurement)])
        elif self._in_place:
            self._draw(self._table(who, measurement, run))
        else:
            if self._intervals % _HEADING_EVERY == 0:
                headings = _cells(["time", *(metric.column for metric in in_report("lines"))])
                self._write([*([who] if self._intervals == 0 else []), headings])
            self._write([_line(measurement)])
        self._intervals += 1

    def summary(self, who: str, run: Accumulated, reason: str, output: str) -> None:
        """The whole run. reason: why it ended. output: the last lines of a command that ended."""
        if self._as_json:
            self._write([_json("summary", who, run.total, reason, run)])
            return
        if self._in_place:
            self._draw([])
        lines = [self._paint(f"{who}, {units.show(run.total.window_seconds, 's')} in all", _BOLD)]
        if run.total.unmeasured is None:
            rows = [
                [name, show_now(name, run.total), show_total(name, run.total)] for name in _shown(run.total)
            ]
            lines += _tabulate(["", "on average", "in all"], rows)
        lines += self._trouble(run.total, run)
        for cause in diagnose(run.total):
            lines += ["", wording.one_line(cause)]
        lines += ["", f"Ended: {wording.clean(reason).headline}"]
        if output:
            # Behind a mark, one_line leaves the indentation as it is.
            lines += ["its last output:", *(wording.one_line(f"| {line}") for line in output.splitlines())]
        self._write(lines)

    def _table(self, who: str, measurement: Measurement, run: Accumulated) -> list[str]:
        total = run.total
        lines = [
            self._paint(f"{who}, {units.show(total.window_seconds, 's')} – Ctrl-C ends", _BOLD)  # noqa: RUF001
        ]
        rows = [[name, show_now(name, measurement), show_total(name, total)] for name in _shown(total)]
        lines += _tabulate(["", "now", "since the start"], rows)
        return lines + self._trouble(measurement, run)

    def _trouble(self, measurement: Measurement, run: Accumulated) -> list[str]:
        """Who was woken for nothing in the whole run, and what could not be measured."""
        lines = []
        service = record.service(run.total)
        for offender in _for_nothing(service)[:MOST_OFFENDERS]:
            lines.append(self._paint(wording.offender_text(service, offender), _RED))
            place = wording.place(offender["stack"]).strip() or "no stack"
            # The end of a place says more than its start.
            lines.append(f"  {cut(place, self._width() - 2)}")
        if measurement.unmeasured is not None:
            reason = wording.clean(measurement.unmeasured)
            lines.append(self._paint(f"not measured: {reason.headline}", _YELLOW))
            lines += [f"  fix: {reason.fix}"] if reason.fix else []
        elif run.missed is not None:
            missed = units.show(run.missed_seconds, "s")
            lines.append(
                self._paint(f"not measured for {missed}: {wording.clean(run.missed).headline}", _YELLOW)
            )
        return ["", *lines] if lines else []

    def _draw(self, lines: Sequence[str]) -> None:
        """In place of what was drawn before."""
        # The terminal would scroll, and the next table not find its place, with a line too many or too long.
        shown = [self._fit(line) for line in lines[: shutil.get_terminal_size().lines - 1]]
        back = f"\x1b[{self._drawn}F" if self._drawn else ""
        self._stream.write(back + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")
        self._stream.flush()
        self._drawn = len(shown)

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1 if self._in_place else 1000

    def _fit(self, line: str) -> str:
        start, mark, rest = line.partition("m") if line.startswith("\x1b[") else ("", "", line)
        text, end, _ = rest.partition("\x1b[0m")
        # `cut` keeps the end of what it is given.
        return f"{start}{mark}{cut(text[::-1], self._width())[::-1]}{end}"

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text

    def _write(self, lines: Sequence[str]) -> None:
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()


def _for_nothing(service: record.ServiceRecord) -> list[record.OffenderRecord]:
    """Without who made ready calls, which --netpoll-goready=on keeps, too."""
    return [offender for offender in service["offenders"] if offender.get("offence") != "ready"]


def _shown(total: Measurement) -> list[str]:
    """Without rows that have no number, as long as there are any numbers."""
    known = [metric.name for metric in in_report("watch") if metric.read(total.snapshot) is not None]
    return known or [metric.name for metric in in_report("watch")]


def _tabulate(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = tabulate(
        rows, headings, tablefmt="plain", disable_numparse=True, colalign=("left", "right", "right")
    )
    return [line.rstrip() for line in table.splitlines()]


def _line(measurement: Measurement) -> str:
    time = datetime.datetime.now().strftime("%H:%M:%S")
    if measurement.unmeasured is not None:
        return f"{_cells([time])}  not measured: {wording.clean(measurement.unmeasured).headline}"
    line = _cells([time, *(show_now(metric.name, measurement) for metric in in_report("lines"))])
    worst = next(iter(_for_nothing(record.service(measurement))), None)
    if worst is None:
        return line
    place = wording.place(worst["stack"])
    return f"{line}  woken for nothing{', parked' if place else ''}{place}"


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{_CELLS}}" for cell in cells).strip()


def _json(
    kind: str, who: str, measurement: Measurement, reason: str | None = None, run: Accumulated | None = None
) -> str:
    """A service as in the JSON report, and around it when and how long."""
    about: dict[str, object] = {
        "schema": SCHEMA,
        "kind": kind,
        "who": who,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "window_seconds": measurement.window_seconds,
    }
    if run is not None:
        about["diagnosis"] = diagnose(run.total)
        about |= {"ended": reason, "missed_seconds": run.missed_seconds, "missed": run.missed}
    rates = {name: rate(name, measurement) for name in METRICS if rate(name, measurement) is not None}
    about |= {"per_second": rates, "service": record.service(measurement)}
    return json.dumps(record.plain(about), allow_nan=False, ensure_ascii=False)
