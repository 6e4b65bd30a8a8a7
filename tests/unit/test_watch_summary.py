"""How `watch` ends: with everything that was measured, and what it means."""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from dataclasses import replace

import pytest

from pytest_netpoll.cli.watch.table import View
from pytest_netpoll.errors import Reason
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model.diagnosis import diagnose
from tests.unit.test_diagnosis import DUP, TICKERS, measurement


def ended(*, as_json: bool, asked: Collection[str] = (), **counts: int) -> str:
    run, stream = Accumulated(), io.StringIO()
    run.add(measurement(**counts))
    View(stream, as_json=as_json, asked=asked).summary("s (pid 1)", run, "stopped by Ctrl-C", "")
    return stream.getvalue()


def test_watch_ends_with_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (cause,) = diagnose(measurement(**DUP))
    shown = ended(as_json=False, **DUP)
    lines = shown.splitlines()
    where = "NP101 second-reader at server/fault_dup.go:33 main.(*watcher).run: 90 of "
    assert any(line.startswith(where) for line in lines)
    assert "  fix: read from one goroutine only, and close the duplicate." in lines
    assert max(map(len, lines)) <= 80
    assert shown.index("fix: read") < shown.index("Ended: stopped by Ctrl-C")
    assert cause.startswith("s: NP101 second-reader at server/fault_dup.go:33: ")
    assert json.loads(ended(as_json=True, **DUP))["diagnosis"] == [cause]


def test_a_healthy_process_gets_no_diagnosis() -> None:
    assert json.loads(ended(as_json=True, productive_wakeups=100))["diagnosis"] == []


def test_it_says_how_to_get_a_go_line_that_a_rule_lacks() -> None:
    hint = "  for the Go line: --netpoll-goready=on"
    assert hint in ended(as_json=False, **TICKERS).splitlines()
    assert "for the Go line" not in ended(as_json=False, asked=["goready"], **TICKERS)
    assert "for the Go line" not in ended(as_json=False, **DUP)


def test_columns_that_an_option_asks_for_stay_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run, stream = Accumulated(), io.StringIO()
    run.add(measurement(productive_wakeups=100))
    View(stream, asked=["response"]).interval("s (pid 1)", measurement(), run)
    headings = stream.getvalue().splitlines()[1]
    assert "queue" in headings
    assert "response" in headings
    assert "wakeups" in headings
    assert len(headings) <= 80


@pytest.mark.parametrize("columns", ["80", "120", "7"])
def test_plain_lines_fit_and_drop_what_has_no_number_first(
    monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    run, stream = Accumulated(), io.StringIO()
    run.add(measurement(productive_wakeups=100))
    View(stream).interval("s (pid 1)", measurement(productive_wakeups=100), run)
    _, headings, numbers = stream.getvalue().splitlines()
    assert len(headings) == len(numbers), "right-aligned under each other"
    assert len(headings) <= max(int(columns), 20)
    assert ("response" in headings) == (columns == "120"), "it was not measured"
    assert "spurious" in headings


def test_why_nothing_is_measured_is_wrapped_on_the_screen_and_its_fix_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = "sudo /home/user/.venv/bin/python -m pytest_netpoll install-agent --user alice --sudoers"
    why = Reason("eBPF needs root", why="of all that is said here nothing may be lost " * 3, fix=command)
    monkeypatch.setenv("COLUMNS", "60")
    run, stream = Accumulated(), io.StringIO()
    run.add(replace(measurement(), unmeasured=why))
    View(stream).summary("s (pid 1)", run, "stopped", "")
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if len(line) > 60] == [f"    {command}"]
    assert " ".join(map(str.strip, lines)).count("nothing may be lost") == 3


def test_times_that_were_asked_for_and_have_no_number_are_explained_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    why = Reason("no read of an accepted stream connection took data")
    run, stream = Accumulated(), io.StringIO()
    absent = {"handling_p50": why, "response_p50": why, "response_p90": why}
    for _ in range(2):
        run.add(replace(measurement(productive_wakeups=100), absent=absent))
    View(stream, asked=["response"]).summary("s (pid 1)", run, "stopped", "")
    [line] = [line for line in stream.getvalue().splitlines() if why.what in line]
    assert line == f"response, handling: not measured: {why.what}"
    stream = io.StringIO()
    View(stream).summary("s (pid 1)", run, "stopped", "")
    assert why.what not in stream.getvalue()
