"""Whatever a name from outside contains, it can't break or control a report."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_netpoll import clean
from pytest_netpoll.cli import compare
from pytest_netpoll.cli.watch import table as live
from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model.comparison import Baseline, Rules
from pytest_netpoll.model.comparison import compare as compared_with
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS
from pytest_netpoll.model.sample import Sample
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import Death, judge
from pytest_netpoll.report import (
    baseline_file,
    github,
    json_report,
    junit,
    record,
    recording,
    tables,
    terminal,
    wording,
)
from pytest_netpoll.report.html import document
from tests.made_up import late, offender

EVIL = (
    "x\n::error file=a::b\r\n  ::warning::c\n##[error]d\x1b[31m\x1b]0;t\x07\x00\x85\u2028\u202e\ufffe\udcff"
)

# What a runner takes for a command: at the start of a line, or anywhere.
COMMAND = re.compile(r"^\s*::[a-z]|##\[", re.MULTILINE | re.IGNORECASE)

names = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            ["::error::x", "::add-mask::", "##[group]", "\n", "\r", "\x1b[2J", "\x9b1m", "\u2028", "|", "`",
             "a", " ", "<b>", "\ufffe", "\udcff", "\x00", "%0A", "::", "\t", "]]>", "&", ","]
        ),
        max_size=8,
    ).map("".join),
)  # fmt: skip


def assert_fit_to_print(text: str) -> None:
    """Checks it for a terminal, a runner's log, and XML."""
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
    assert not COMMAND.search(text), text


def measured(name: str, **more: Any) -> Measurement:
    counters = dict.fromkeys(COUNTERS, 0)
    counters |= {
        "wakeups": 100,
        "productive_wakeups": 50,
        "spurious_wakeups": 50,
        "events": 100,
        "polls": 100,
    }
    counters |= {"blocking_polls": 100, "stale_retries": 9}
    snapshot = Snapshot(counters, {bucket_of(10_000): 100}, 10_000, 340_000_000, 12_000_000)
    about: dict[str, Any] = {
        **dict.fromkeys(("fd_type", "local", "peer", "syscall"), name),
        "stack": (Frame(name, name, 3),),
    }
    evidence: dict[str, Any] = {
        "offenders": (offender(50, **about),),
        "slowest": (late(9_000_000, goroutine=7, **about),),
    }
    return Measurement(name, 42, name, name, 1.0, snapshot, **evidence | more)


def records_of(name: str) -> list[record.TestRecord]:
    """A test with a broken limit, one whose own assertion failed, an unmeasured one, one whose service
    died."""
    limits = resolve([((), {"max_spurious": 0.05, "max_latency_p99": "1us"})], "t")
    bad, gone = measured(name), measured(name, unmeasured=name)
    sample = Sample({**bad.metrics, "spurious": 0.0, "wakeups": 100}, name, 2)
    known = Baseline(name, {"kernel": name}, {name: {name: sample, f"{name}2": sample}})
    comparison = compared_with(name, {name: Sample.of(bad)}, {"kernel": "6"}, known, Rules())
    found = []
    for measurement, error, mode in ((bad, None, "gate"), (bad, name, "gate"), (gone, None, "report")):
        death = [Death(name, Reason(name), name)] if error else []
        verdict = judge([measurement], limits, mode, deaths=death)  # type: ignore[arg-type]
        found.append(
            recording.build(
                name,
                (name, 7),
                verdict,
                limits,
                [measurement],
                1.0,
                error=None if error is None else f"E: {error}",
                xfail=None,
                columns=[{name: name}],
                comparison=comparison,
                toolchain=name,
                windows=[recording.window(1, name, [measurement], [name])],
            )
        )
    return found


@settings(max_examples=60)
@given(names)
@example(EVIL)
@example("\n::error::" * 3)
def test_no_name_can_break_or_control_a_report(name: str) -> None:
    tests = records_of(name)
    environment = {
        "kernel": name,
        "bcc": name,
        "attached": [{"probe": "uprobes", "services": [name], "cost": ""}],
    }
    for width in (60, 200):
        assert_fit_to_print(str(terminal.summary_table(tests, width, environment)))
        assert_fit_to_print("\n".join(terminal.gate_preview(tests, width)))
        for title, table in tables.further_tables(tests, width):
            assert_fit_to_print(f"{title}\n{table}")
        for test in tests:
            assert_fit_to_print(terminal.failure_section(test, width))
    markdown = github.markdown(tests, environment)
    assert_fit_to_print(markdown)
    for line in (line for line in markdown.splitlines() if line.startswith("|")):
        assert len(re.split(r"(?<!\\)\|", line)) == 5 + len(wording.COLUMNS), line
    annotations = github.annotations(tests, Path("sub"), lambda _: Path(name.replace("\0", "")))
    assert len(annotations) == len(tests) + 1
    for line in annotations:
        assert "\n" not in line
        assert "\r" not in line
        assert len(re.findall("::", line.partition("::error ")[2].partition("::")[0])) == 0
        # Nothing inside begins a line. GitHub decodes %0A only after it has read the log by lines.
        assert line.isprintable()
    for test in tests:
        case = ElementTree.Element("testcase")
        for key, value in junit.properties(test):
            ElementTree.SubElement(case, "property", name=key, value=value)
        assert ElementTree.fromstring(ElementTree.tostring(case, encoding="unicode")) is not None


@settings(max_examples=10)
@given(names)
@example(EVIL)
def test_no_name_can_break_a_page_file_or_live_table(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    tests = records_of(name)
    directory = tmp_path_factory.mktemp("reports")
    page = document.render({"kernel": name}, tests)
    visible = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", visible)
    for path, write in (
        (directory / "a.json", json_report.write),
        (directory / "b.json", baseline_file.write),
    ):
        write(path, {"kernel": name}, tests)
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        assert not re.search(r"^\s*::|\x1b", text, re.MULTILINE)
    stream = io.StringIO()
    view, run = live.View(stream), Accumulated()
    bad = measured(name, unmeasured=name)
    run.add(bad)
    view.interval(clean.one_line(name), bad, run)
    view.summary(clean.one_line(name), run, name, name)
    assert_fit_to_print(stream.getvalue())


def test_compare_cleans_names_before_printing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tests = records_of(EVIL)[:1]
    for name in ("a.json", "b.json"):
        json_report.write(tmp_path / name, {"kernel": "6"}, tests)
    tests[0]["nodeid"] = f"other{EVIL}"
    json_report.write(tmp_path / "c.json", {"kernel": "6"}, tests)
    for other in ("b.json", "c.json"):
        compare.main([str(tmp_path / "a.json"), str(tmp_path / other), "--fail=spurious:+0"])
    assert_fit_to_print(capsys.readouterr().out)


@given(names)
@example(EVIL)
def test_text_keeps_its_lines(name: str) -> None:
    text = clean.lines(name)
    assert_fit_to_print(text)
    assert clean.lines(text) == text
    assert clean.one_line(clean.one_line(name)) == clean.one_line(name)


def test_harmless_text_is_not_changed() -> None:
    stack = "panic: boom\n\ngoroutine 18 [running]:\nmain.(*echo).serve(0x1)\n\t/src/a.go:7 +0x1f"
    assert clean.lines(stack) == stack.replace("\t", "        ")
    for name in (
        "tests/test_a.py::TestA::test_b[::1|x]",
        "main.(*watcher).run",
        "a \u2013 b",
        "127.0.0.1:80 ← [::1]:9",
    ):
        assert clean.one_line(name) == name
