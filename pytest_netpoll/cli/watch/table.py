"""Shows what `watch` measures: a table refreshed in place, plain lines if there is no terminal, or JSON."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from tabulate import tabulate

from pytest_netpoll.errors import Reason
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model import units
from pytest_netpoll.model.diagnosis import diagnose, findings
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import METRICS, Metric, Value, in_report
from pytest_netpoll.model.rules.rule import Finding
from pytest_netpoll.report import evidence_text, record, recording, wording
from pytest_netpoll.report.cells import cut, wrap, wrap_fix

if TYPE_CHECKING:
    from rich.live import Live

SCHEMA = "pytest-netpoll-watch/1"

_CELLS = 10  # of a column of a plain line
_WIDTH = 120  # of plain lines, if neither a terminal nor COLUMNS says another one
_HEADING_EVERY = 20  # plain lines
MOST_OFFENDERS = 3
_FIX = "  fix: "
_OF_RESPONSES = ("queue_delay", "poll_delay", "handling", "response")  # what --netpoll-response=on measures


class _Line(NamedTuple):
    """A line of the screen. style: as rich names it."""

    text: str
    style: str = ""


def rate(name: str, measurement: Measurement) -> Value:
    """A count or a time per second of the window; None for other metrics and unknown values."""
    if measurement.unmeasured is not None or METRICS[name].unit not in ("count", "s"):
        return None
    value = METRICS[name].read(measurement.snapshot)
    if value is None or not measurement.window_seconds:
        return None
    return value / measurement.window_seconds


def show_now(name: str, measurement: Measurement) -> str:
    """A metric in one interval for people: counts per second, CPU time as a share of a CPU, others as they
    are.
    """
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


def _screen(stream: TextIO) -> Live | None:
    """The screen; None without a terminal, or if rich (the extra `watch`) is not installed."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if console.is_dumb_terminal:
        return None
    return Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)


class View:
    """Writes to a stream; a context manager, because the screen has to be restored. asked: the options of
    measurements that are on: "goready", "response".
    """

    def __init__(self, stream: TextIO, *, as_json: bool = False, asked: Collection[str] = ()) -> None:
        self._stream = stream
        self._asked = asked
        self._as_json = as_json
        self._live = None if as_json else _screen(stream)
        self._intervals = 0
        self._columns: list[Metric] = []

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Prints a line above the table; not in JSON, which is for programs."""
        if not self._as_json:
            self._write([_Line(text)])

    def interval(self, who: str, measurement: Measurement, run: Accumulated) -> None:
        """Shows an interval. who: the heading."""
        if self._as_json:
            self._write([_Line(_json("interval", who, measurement))])
        elif self._live is not None:
            self._draw(self._live, self._table(who, measurement, run))
        else:
            if self._intervals == 0:
                self._write([_Line(who)])
            if self._intervals % _HEADING_EVERY == 0:
                width = shutil.get_terminal_size((_WIDTH, 0)).columns
                self._columns = _fitting(run.total, width, "response" in self._asked)
                headings = _cells(["time    ", *(metric.column for metric in self._columns)])
                self._write([_Line(headings)])
            self._write([_Line(_line(measurement, self._columns))])
        self._intervals += 1

    def summary(self, who: str, run: Accumulated, reason: str, output: str) -> None:
        """Shows the whole run. reason: why it ended. output: the last lines of a command that ended."""
        if self._as_json:
            self._write([_Line(_json("summary", who, run.total, reason, run))])
            return
        if self._live is not None:
            self._live.stop()
        lines = [_Line(f"{who}, {units.show(run.total.window_seconds, 's')} in total", "bold")]
        if run.total.unmeasured is None:
            rows = [
                [name, show_now(name, run.total), show_total(name, run.total)] for name in _shown(run.total)
            ]
            lines += _tabulate(["", "average", "total"], rows)
        lines += self._wrapped(self._trouble(run.total, run))
        for found in findings(run.total):
            cause = wording.clean(found.reason)
            lines += self._wrapped([_Line(""), _Line(cause.headline), _Line(f"{_FIX}{cause.fix}")])
            hint = self._hint(found)
            lines += self._wrapped([_Line(f"  for the Go line: {hint}")] if hint else [])
        lines += self._wrapped([_Line(""), _Line(f"Ended: {wording.clean(reason).headline}")])
        if output:
            # Behind a mark, one_line keeps the indentation.
            shown = (wording.one_line(f"| {line}") for line in output.splitlines())
            lines += [_Line("its last output:"), *map(_Line, shown)]
        self._write(lines)

    def _hint(self, found: Finding) -> str | None:
        """What records the Go line that a finding lacks; None if it has one, or if nothing does."""
        if found.line is not None or not found.rule.offences:
            return None
        if "ready" in found.rule.offences:
            return None if "goready" in self._asked else "--netpoll-goready=on"
        return f'forbid="{found.rule.code}" in a test'

    def _table(self, who: str, measurement: Measurement, run: Accumulated) -> list[_Line]:
        total = run.total
        heading = f"{who}, {units.show(total.window_seconds, 's')} – Ctrl-C stops"  # noqa: RUF001
        rows = [[name, show_now(name, measurement), show_total(name, total)] for name in _shown(total)]
        table = _tabulate(["", "now", "since the start"], rows)
        return [_Line(heading, "bold"), *table, *self._wrapped(self._trouble(measurement, run))]

    def _trouble(self, measurement: Measurement, run: Accumulated) -> list[_Line]:
        """Who was woken for nothing during the whole run, and what could not be measured."""
        lines = []
        service = recording.service(run.total)
        for offender in _for_nothing(service)[:MOST_OFFENDERS]:
            lines.append(_Line(evidence_text.offender_text(service, offender), "red"))
            place = evidence_text.place(offender["stack"]).strip() or "no stack"
            # The end of a place says more than its start.
            lines.append(_Line(f"  {cut(place, self._width() - 2)}"))
        if measurement.unmeasured is not None:
            reason = wording.clean(measurement.unmeasured)
            lines.append(_Line(f"not measured: {reason.headline}", "yellow"))
            lines += [_Line(f"{_FIX}{reason.fix}")] if reason.fix else []
        elif run.missed is not None:
            missed = units.show(run.missed_seconds, "s")
            headline = wording.clean(run.missed).headline
            lines.append(_Line(f"not measured for {missed}: {headline}", "yellow"))
        for names, why in self._missing_times(run.total):
            lines.append(_Line(f"{names}: not measured: {why.headline}", "yellow"))
            lines += [_Line(f"{_FIX}{why.fix}")] if why.fix else []
        return [_Line(""), *lines] if lines else []

    def _missing_times(self, total: Measurement) -> list[tuple[str, Reason]]:
        """("response, handling", why) for the times that an option asks for and that have no number."""
        if "response" not in self._asked or total.unmeasured is not None:
            return []
        together: dict[Reason, list[str]] = {}
        for family in reversed(_OF_RESPONSES):
            why = total.absent.get(f"{family}_p50")
            if why is not None and METRICS[f"{family}_p50"].read(total.snapshot) is None:
                together.setdefault(wording.clean(why), []).append(family.replace("_", " "))
        return [(", ".join(families), why) for why, families in together.items()]

    def _draw(self, live: Live, lines: Sequence[_Line]) -> None:
        """Draws in place of what was drawn before."""
        from rich.text import Text

        screen = Text(no_wrap=True, overflow="ellipsis", end="")
        screen.append_text(Text("\n").join(Text(line.text, line.style) for line in lines))
        live.update(screen, refresh=True)

    def _width(self) -> int:
        return 1000 if self._live is None else self._live.console.width

    def _wrapped(self, lines: Sequence[_Line]) -> list[_Line]:
        """The lines as wide as the terminal, or as pytest's where there is none."""
        width = shutil.get_terminal_size().columns if self._live is None else self._live.console.width
        return [_Line(part, line.style) for line in lines for part in _wrap(line.text, width) or [""]]

    def _write(self, lines: Sequence[_Line]) -> None:
        if self._live is not None:
            for line in lines:
                self._live.console.print(line.text, style=line.style or None, soft_wrap=True)
            return
        self._stream.write("".join(f"{line.text}\n" for line in lines))
        self._stream.flush()


def _wrap(text: str, width: int) -> list[str]:
    return wrap_fix(text.removeprefix(_FIX), width, "  ") if text.startswith(_FIX) else wrap(text, width)


def _for_nothing(service: record.ServiceRecord) -> list[record.OffenderRecord]:
    """Offenders to list; not the callers of ready calls, which --netpoll-goready=on records, too."""
    return [offender for offender in service["offenders"] if offender.get("offence") != "ready"]


def _shown(total: Measurement) -> list[str]:
    """The rows to show: without those that have no number, unless none has."""
    known = [metric.name for metric in in_report("watch") if metric.read(total.snapshot) is not None]
    return known or [metric.name for metric in in_report("watch")]


def _tabulate(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[_Line]:
    table = tabulate(
        rows, headings, tablefmt="plain", disable_numparse=True, colalign=("left", "right", "right")
    )
    return [_Line(line.rstrip()) for line in table.splitlines()]


def _fitting(total: Measurement, width: int, responses: bool) -> list[Metric]:
    """The columns of plain lines that fit; the first ones to go have no number. responses: whether an option
    asks for those that are measured on demand, which stay longest.
    """
    columns = list(in_report("lines"))

    def worth(metric: Metric) -> tuple[bool, bool, int]:
        asked = responses and metric.family in _OF_RESPONSES
        return asked, metric.read(total.snapshot) is not None, metric.keep

    dropped = sorted(columns, key=worth)
    room = max(width // _CELLS - 1, 1)  # beside the time
    return [metric for metric in columns if metric not in dropped[: max(len(columns) - room, 0)]]


def _line(measurement: Measurement, columns: Sequence[Metric]) -> str:
    time = datetime.datetime.now().strftime("%H:%M:%S")
    if measurement.unmeasured is not None:
        return f"{_cells([time])}  not measured: {wording.clean(measurement.unmeasured).headline}"
    line = _cells([time, *(show_now(metric.name, measurement) for metric in columns)])
    worst = next(iter(_for_nothing(recording.service(measurement))), None)
    if worst is None:
        return line
    place = evidence_text.place(worst["stack"])
    return f"{line}  woken for nothing{', parked' if place else ''}{place}"


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{_CELLS}}" for cell in cells).strip()


def _json(
    kind: str, who: str, measurement: Measurement, reason: str | None = None, run: Accumulated | None = None
) -> str:
    """A service as in the JSON report, with the interval's time and length."""
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
    about |= {"per_second": rates, "service": recording.service(measurement)}
    return json.dumps(record.plain(about), allow_nan=False, ensure_ascii=False)
