"""Saved files that were edited, merged or damaged are read, or refused with the reason; there is never a
traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_netpoll import __main__ as command_line
from pytest_netpoll.errors import NetpollError
from pytest_netpoll.model import tolerance
from pytest_netpoll.model.comparison import Rules, compare, settle
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS, METRICS
from pytest_netpoll.model.sample import Sample
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import Verdict
from pytest_netpoll.report import baseline_file, json_report, recording, tables

HERE = {"kernel": "6.8.0", "arch": "x86_64", "plugin": "0.1.0"}
EVERYTHING = ",".join(
    f"{m.name}:{'+0.1' if m.unit == 'share' else '+10%'}" for m in METRICS.values() if m.more_is_worse
)

counters = {
    **dict.fromkeys(COUNTERS, 0),
    "wakeups": 2000,
    "productive_wakeups": 2000,
    "events": 2000,
    "polls": 9,
}
MEASURED = Measurement("server", 1, "/server", "go1.26.6", 1.0, Snapshot(counters, {bucket_of(10_000): 2000}))
RECORDS = [recording.build("t", ("t.py", 1), Verdict("passed"), Limits(), [MEASURED], 1.0)]

# JSON values as text, because Python's module writes no 1e999, and refuses a number of 5,000 digits.
NUMBERS = (
    "1" + "0" * 400,
    "-1" + "0" * 400,
    "9" * 5000,
    "1e999",
    "-1e999",
    "1e308",
    "1e-320",
    "-1",
    "0",
    "-0.0",
)
LITERALS = ("NaN", "Infinity", "true", "null", "[]", "{}", '""', r'"\ud800"', r'"\n\u001b[31m"', "[" * 2000)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a baseline, main, and a report of the same test."""
    directory = tmp_path_factory.mktemp("written")
    baseline_file.write(baseline_file.path_of(directory, "main"), HERE, RECORDS)
    json_report.write(directory / "report.json", HERE, RECORDS)
    return directory


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each part of it."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def damaged(content: Any, path: tuple[Any, ...], literal: str) -> str:
    """The file's text with the literal in that place."""
    content = copy.deepcopy(content)
    if not path:
        return literal
    inside = content
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = "<here>"
    return json.dumps(content).replace('"<here>"', literal)


def use(directory: Path) -> None:
    """Everything that is done with a baseline. NetpollError is a valid result, too."""
    with contextlib.suppress(NetpollError):
        known = baseline_file.load(directory, "main")
        for latencies in ("auto", "always"):
            rules = Rules(tolerance.parse_list(EVERYTHING), latencies)
            comparison = compare("t", {"server": Sample.of(MEASURED)}, HERE, known, rules)
            verdict = settle(Verdict("passed"), comparison, "gate")
            made = recording.build(
                "t", ("t.py", 1), verdict, Limits(), [MEASURED], 1.0, comparison=comparison
            )
            json.dumps(made, allow_nan=False).encode()
            tables.comparison_table(tables.compared([made]), 80).encode()
    with contextlib.suppress(NetpollError):
        baseline_file.write(baseline_file.path_of(directory, "main"), HERE, [])


def compared(*files: Path) -> int:
    """The exit status; the output must be printable."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command_line.main(["compare", *map(str, files), "--fail", EVERYTHING])
        out.flush()
        err.flush()
    return status


literals = st.sampled_from((*NUMBERS, *LITERALS)) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
).map(json.dumps)


@given(st.data(), literals)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
def test_any_content_of_a_saved_file_is_read_or_refused(written: Path, data: Any, literal: str) -> None:
    for name in (".netpoll/main.json", "report.json"):
        good = json.loads((written / name).read_text())
        place = data.draw(st.sampled_from(list(places(good))), label="place")
        bad = written / "bad" / ".netpoll" / "main.json"
        bad.parent.mkdir(parents=True, exist_ok=True)
        bad.write_text(damaged(good, place, literal))
        assert compared(written / name, bad) in (0, 1, 2)
        assert compared(bad, written / name) in (0, 1, 2)
        use(written / "bad")


@given(st.binary() | st.text().map(str.encode))
@example(b"\xff\xfe")
@example(b"[" * 100_000)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_files_are_refused(written: Path, content: bytes) -> None:
    bad = written / "bad.json"
    bad.write_bytes(content)
    assert compared(bad, written / "report.json") == 2


@pytest.mark.parametrize("literal", ["1" + "0" * 400, "9" * 5000, "1e999"])
def test_an_impossible_number_is_named(written: Path, tmp_path: Path, literal: str) -> None:
    good = json.loads((written / ".netpoll" / "main.json").read_text())
    path = baseline_file.path_of(tmp_path, "main")
    path.parent.mkdir()
    path.write_text(damaged(good, ("tests", "t", "server", "metrics", "latency_p99"), literal))
    with pytest.raises(NetpollError, match=re.escape(f"{literal[:20]}")) as refused:
        baseline_file.load(tmp_path, "main")
    assert "is too large" in str(refused.value)
    assert refused.value.fix == "pytest --netpoll-save=main"
    assert len(str(refused.value)) < 400
