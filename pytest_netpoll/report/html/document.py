"""The HTML report: one file that needs nothing else, not even a network. The table of all tests is plain
HTML, so that it shows at once. The rest is compressed: the tests' details, and plotly.js, which the page
unpacks when it draws the first chart.
"""

from __future__ import annotations

import base64
import datetime
import functools
import gzip
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model import units
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.report import (
    attached,
    delta,
    evidence_entries,
    evidence_text,
    files,
    verdict_text,
    wording,
)
from pytest_netpoll.report.html import overview, sections
from pytest_netpoll.report.record import TestRecord

if TYPE_CHECKING:
    import jinja2

PAGE = Path(__file__).with_name("page")
# From the extra "html". Imported only to write a report: importing plotly takes long.
_LIBRARIES = ("jinja2", "plotly")


def require() -> None:
    """UsageError if the libraries of the extra "html" are missing."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "--netpoll-html cannot draw its report",
            why=f"{' and '.join(missing)} cannot be imported",
            fix="pip install 'pytest-netpoll[html]'",
        )


# Of the environment, what only says how the agent works here. What matters of it is in the tests' reasons.
_ONLY_IN_JSON = frozenset(
    {
        *("protocol", "typed", "follows_children", "sees_sockets", "sees_held_writes"),
        *("program", "not_cached", "startup_seconds", "resident_bytes", "machine", "attached"),
        *("no_arrivals", "no_cpu_samples"),
    }
)
_NAMES = {
    "plugin": "pytest-netpoll",
    "python": "Python",
    "agent python": "Python of the agent",
    "cpus": "CPUs",
    "cpus usable": "CPUs that the tests may use",
    "go versions": "Go",
    "arch": "machine",
    "kernel": "Linux",
    "bcc": "BCC",
    "capabilities": "capabilities of the agent",
}


def write(path: Path, environment: Mapping[str, Any], records: Iterable[TestRecord]) -> None:
    """Writes the report atomically and creates its directory. NetpollError if that fails."""
    files.write_atomically(path, render(environment, records), "the HTML report")


def render(environment: Mapping[str, Any], records: Iterable[TestRecord]) -> str:
    """The page. Tests come worst first, then by name."""
    tests = wording.worst_first(sorted(records, key=lambda record: record["nodeid"]))
    added = wording.own_columns(tests)
    others_broke = overview.others_broke(tests)
    templates = _templates()
    toolchains = overview.toolchains_of(tests)
    changes = delta.delta(tests)
    against = None
    if changes is not None:
        against = f"base {changes.base}" if changes.sides[0] == "base" else changes.base
    test_template = templates.get_template("test.html")
    details = [
        {"html": test_template.render(about._asdict()), "charts": sections.charts_of(about.test)}
        for about in sections.details_of(tests)
    ]
    library, library_hash = _library()
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    statuses = [wording.status_of(test) for test in tests]
    return templates.get_template("page.html").render(
        written=datetime.datetime.now().astimezone(),
        counts={status: statuses.count(status) for status in overview.STATUSES if status in statuses},
        against=against,
        changes=changes,
        most_changes=delta.MOST_ROWS,
        grouped=delta.grouped,
        icons_of_changes=overview.CHANGES,
        filters=overview.filters(tests, toolchains, against),
        toolchains=toolchains,
        rows=[overview.row(number, test, added, others_broke) for number, test in enumerate(tests)],
        columns=[
            *((metric, heading, METRICS[metric].meaning) for metric, heading in wording.COLUMNS.items()),
            *(("added", heading, "") for heading in added),
            *([("others", "other limits", "broken limits on other metrics")] if others_broke else []),
        ],
        environment=list(_shown(environment)),
        **{name: environment.get(name) for name in ("commit", "branch", "command")},
        environment_line=wording.environment_line(tests, environment),
        style=(PAGE / "page.css").read_text(encoding="utf-8"),
        script=script,
        # Only these two scripts may run, and nothing may be fetched.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {_hash(script)} {library_hash}",
        library=library,
        details=_packed(json.dumps(details, ensure_ascii=False, allow_nan=False)),
    )


@functools.cache
def _library() -> tuple[str, str]:
    """plotly.js, compressed, and its hash."""
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
    environment.filters["breakable"] = _breakable
    environment.tests["cut_short"] = evidence_text.is_cut_short
    environment.globals.update(
        words=wording,
        evidence=evidence_text,
        recorded=evidence_entries,
        verdicts=verdict_text,
        METRICS=METRICS,
        ICONS=overview.STATUSES,
        STRIP=sections.STRIP,
    )
    return environment


def _breakable(text: str) -> str:
    """The HTML of a name that may be broken between its words but not within them."""
    import markupsafe

    parts = re.split(r"(?<=[_/:.\[-])(?=\w)", wording.one_line(text))
    return markupsafe.Markup("<wbr>").join(parts)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    # Without the time, so that the same tests make the same file.
    compressed = gzip.compress(text.encode(errors="backslashreplace"), mtime=0)
    return base64.b64encode(compressed).decode()


def _shown(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, text), in words, for what readers know and is known; unknown names as they are."""
    for name, text in _flat({key: item for key, item in environment.items() if key not in _ONLY_IN_JSON}):
        yield _NAMES.get(name, name), text
    probes = attached.line(environment)
    if probes:
        yield "attached", probes.partition(": ")[2]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) for everything that isn't None; nested names include those of their parents."""
    for key, item in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}: ")
        elif isinstance(item, (list, tuple)) and any(isinstance(part, Mapping) for part in item):
            yield from _flat({f"{number}": part for number, part in enumerate(item, 1)}, f"{name} ")
        elif isinstance(item, (list, tuple)):
            yield name, ", ".join(map(str, item)) or units.NOT_MEASURED
        elif item is not None:
            yield name, str(item)
