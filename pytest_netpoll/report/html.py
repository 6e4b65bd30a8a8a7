"""The HTML report: one file that needs nothing else, not even a network.

What must be there at once, the table of all tests, is plain HTML. What is looked at one by one is
compressed: the tests' details, and plotly.js, which the page unpacks when it draws the first chart.
"""

from __future__ import annotations

import base64
import datetime
import functools
import gzip
import hashlib
import importlib.util
import json
import operator
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pytest_netpoll import units
from pytest_netpoll.errors import UsageError
from pytest_netpoll.metrics import METRICS, bucket_bounds
from pytest_netpoll.report import files, words
from pytest_netpoll.report.record import BreachRecord, ServiceRecord, TestRecord

if TYPE_CHECKING:
    import jinja2

PAGE = Path(__file__).with_name("page")
# Of the extra "html". Imported only when a report is written: plotly takes its time.
_LIBRARIES = ("jinja2", "plotly")

# status -> how the page shows it, worst first; the icon tells it to who sees no colours.
STATUSES: Mapping[str, str] = {
    "failed": "✗",
    "unmeasured": "?",
    "would fail": "!",
    "passed": "✓",
    "xfailed": "~",
}
# Quarters of an octave: the kernel's buckets are so narrow that a few hundred wakeups look like noise.
_BUCKETS_A_BAR = 4
# Of a timeline's points, what the page draws.
_SERIES = ("wakeups", "productive", "spurious", "polls", "threads_running", "run_delay_ns")


def require() -> None:
    """UsageError where the libraries of the extra "html" are missing."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "--netpoll-html cannot draw its report",
            why=f"{' and '.join(missing)} cannot be imported",
            fix="pip install 'pytest-netpoll[html]'",
        )


def write(path: Path, environment: Mapping[str, Any], records: Iterable[TestRecord]) -> None:
    """Write the report atomically, creating its directory. NetpollError if that fails."""
    files.write_atomically(path, render(environment, records), "the HTML report")


def render(environment: Mapping[str, Any], records: Iterable[TestRecord]) -> str:
    """The page; of the environment all is shown. Tests come worst first, then by name."""
    tests = words.worst_first(sorted(records, key=lambda record: record["nodeid"]))
    added = words.own_columns(tests)
    templates = _templates()
    test_template = templates.get_template("test.html")
    details = [
        {
            "html": test_template.render(test=test, services=_services(test)),
            "charts": [{"latency": _latency(test, s), "timeline": _timeline(s)} for s in test["services"]],
        }
        for test in tests
    ]
    library, library_hash = _library()
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    statuses = [_status(test) for test in tests]
    return templates.get_template("page.html").render(
        written=datetime.datetime.now().astimezone(),
        counts={status: statuses.count(status) for status in STATUSES if status in statuses},
        rows=[_row(number, test, added) for number, test in enumerate(tests)],
        columns=[
            *((metric, heading, METRICS[metric].meaning) for metric, heading in words.COLUMNS.items()),
            *(("added", heading, "") for heading in added),
        ],
        environment=list(_flat(environment)),
        environment_line=words.environment_line(tests, environment),
        style=(PAGE / "page.css").read_text(encoding="utf-8"),
        script=script,
        # Nothing but these two may run, and nothing may be fetched.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {_hash(script)} {library_hash}",
        library=library,
        details=_packed(json.dumps(details, ensure_ascii=False, allow_nan=False)),
    )


@functools.cache
def _library() -> tuple[str, str]:
    """plotly.js, packed; and its hash."""
    from plotly.offline import get_plotlyjs

    text = get_plotlyjs()
    return _packed(text), _hash(text)


def _templates() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    environment.globals["METRICS"] = METRICS
    environment.globals["ICONS"] = STATUSES
    environment.filters["duration"] = lambda nanoseconds: units.show(nanoseconds, "ns")
    return environment


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    # mtime: the same tests make the same file.
    compressed = gzip.compress(text.encode(errors="backslashreplace"), mtime=0)
    return base64.b64encode(compressed).decode()


def _status(record: TestRecord) -> str:
    if words.expected(record):
        return "xfailed"
    # In report mode.
    broken = bool(record["breaches"]) and record["outcome"] == "passed"
    return "would fail" if broken else record["outcome"]


class _Cell(NamedTuple):
    """text: for people. value: to sort by, empty where there is none."""

    text: str
    value: str


class _Row(NamedTuple):
    """A test in the table. cells: of each of the columns, one for each service."""

    number: int
    status: str
    folder: str
    name: str
    services: list[str]
    columns: list[list[_Cell]]


def _row(number: int, record: TestRecord, added: Sequence[str]) -> _Row:
    folder, separator, name = record["nodeid"].partition("::")
    services = record["services"]
    return _Row(
        number,
        _status(record),
        folder + separator if name else "",
        name or folder,
        [service["name"] for service in services],
        [
            *([_cell(service, metric) for service in services] for metric in words.COLUMNS),
            *([_added(service, heading) for service in services] for heading in added),
        ],
    )


def _cell(service: ServiceRecord, metric: str) -> _Cell:
    value = service["metrics"].get(metric) if words.trusted(service) else None
    return _Cell(words.show(service, metric), "" if value is None else repr(value))


def _added(service: ServiceRecord, heading: str) -> _Cell:
    value = service.get("columns", {}).get(heading)
    return _Cell(words.show_own(service, heading), repr(value) if isinstance(value, (int, float)) else "")


class _Limit(NamedTuple):
    """One limit that binds a service. verdict: "broken", "kept", "not reached" or "not measured"."""

    name: str
    limit: str
    measured: str
    verdict: str


class _Number(NamedTuple):
    """A metric, or what a hook added. meaning: empty where that is not known."""

    name: str
    text: str
    meaning: str


class _Service:
    """A service in a test, for the template. number: its place in the record."""

    def __init__(self, test: TestRecord, number: int) -> None:
        self.number = number
        self.record = record = test["services"][number]
        self.trusted = words.trusted(record)
        breaches = [breach for breach in test["breaches"] if breach["service"] == record["name"]]
        self.limits = list(_limits(test, record, breaches))
        self.broken = {breach["metric"] for breach in breaches}
        self.numbers = [
            *(_Number(name, words.show(record, name), metric.meaning) for name, metric in METRICS.items()),
            *(_Number(heading, _added(record, heading).text, "") for heading in record.get("columns", {})),
        ]


def _services(test: TestRecord) -> list[_Service]:
    """Those whose limits are broken first."""
    services = [_Service(test, number) for number in range(len(test["services"]))]
    return sorted(services, key=lambda service: not service.broken)


def _limits(test: TestRecord, service: ServiceRecord, breaches: Sequence[BreachRecord]) -> Iterator[_Limit]:
    # The service's own limits come over the general ones.
    binding = {
        name: value
        for prefix in ("", f"{service['name']}:")
        for key, value in test["limits"].items()
        if (name := key.removeprefix(prefix)) in _KNOWN_LIMITS
    }
    broken = {(breach.get("kind", "max"), breach["metric"]) for breach in breaches}
    for name, value in binding.items():
        kind, metric = _KNOWN_LIMITS[name]
        measured = service["metrics"].get(metric) if words.trusted(service) else None
        if (kind, metric) in broken:
            verdict = "broken"
        elif measured is None:
            verdict = "not measured"
        else:
            kept = measured <= value if kind == "max" else measured >= value
            # As over too few wakeups: the test is unmeasured for it.
            verdict = "kept" if kept else "not reached"
        yield _Limit(name, METRICS[metric].format(value), METRICS[metric].format(measured), verdict)


_KNOWN_LIMITS = {f"{kind}_{metric}": (kind, metric) for kind in ("max", "min") for metric in METRICS}


def _latency(test: TestRecord, service: ServiceRecord) -> dict[str, Any] | None:
    """The distribution and what to compare it with, None without any.

    {"bars": [[low, high, count, "10.0 µs … 12.0 µs"]], "marks": [["p50", ns, "11.0 µs"]], "limits": marks}.
    """
    counts: dict[int, int] = {}
    for bucket, count in service.get("histogram", {}).items():
        bar = int(bucket) // _BUCKETS_A_BAR
        counts[bar] = counts.get(bar, 0) + count
    if not counts or not words.trusted(service):
        return None
    bars = []
    for bar, count in sorted(counts.items()):
        low = max(bucket_bounds(bar * _BUCKETS_A_BAR)[0], 1)  # a logarithmic axis has no 0
        high = bucket_bounds((bar + 1) * _BUCKETS_A_BAR - 1)[1]
        bars.append([low, high, count, f"{units.show(low, 'ns')} … {units.show(high, 'ns')}"])
    marks = [
        [name.removeprefix("latency_"), value, METRICS[name].format(value)]
        for name in ("latency_p50", "latency_p99", "latency_max")
        if (value := service["metrics"].get(name))
    ]
    limits = [
        [name.rpartition(":")[2], value, units.show(value, "ns")]
        for name, value in test["limits"].items()
        if name.removeprefix(f"{service['name']}:").startswith("max_latency_") and value > 0
    ]
    return {"bars": bars, "marks": marks, "limits": limits}


def _timeline(service: ServiceRecord) -> dict[str, Any] | None:
    """{"step_ms": 100, "ends_ms": [100, 200, …], and for each of the series its values}; None without any."""
    points = cast("list[dict[str, float]]", service.get("timeline", []))
    if not points or not words.trusted(service):
        return None
    ends = [point["t_ms"] for point in points]
    return {
        # Of most of them: the last one ends with the window.
        "step_ms": round(statistics.median(map(operator.sub, ends, [0, *ends[:-1]]))),
        "ends_ms": ends,
        **{name: [series[name] for series in points] for name in _SERIES},
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of everything in the environment; what is inside something is named after it."""
    for key, item in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}: ")
        elif isinstance(item, (list, tuple)) and any(isinstance(part, Mapping) for part in item):
            yield from _flat({f"{number}": part for number, part in enumerate(item, 1)}, f"{name} ")
        elif isinstance(item, (list, tuple)):
            yield name, ", ".join(map(str, item)) or units.NOT_MEASURED
        else:
            yield name, units.NOT_MEASURED if item is None else str(item)
