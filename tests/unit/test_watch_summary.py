"""How `watch` ends: with everything that was measured, and what it means."""

from __future__ import annotations

import io
import json

import pytest

from pytest_netpoll.cli.watch.table import View
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model.diagnosis import diagnose
from tests.unit.test_diagnosis import DUP, measurement


def ended(*, as_json: bool, **counts: int) -> str:
    run, stream = Accumulated(), io.StringIO()
    run.add(measurement(**counts))
    View(stream, as_json=as_json).summary("s (pid 1)", run, "stopped by Ctrl-C", "")
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
