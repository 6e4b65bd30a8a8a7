"""How `watch` ends: with everything that was measured, and what it means."""

from __future__ import annotations

import io
import json

from pytest_netpoll.cli.watch.table import View
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model.diagnosis import diagnose
from tests.unit.test_diagnosis import DUP, measurement


def ended(*, as_json: bool, **counts: int) -> str:
    run, stream = Accumulated(), io.StringIO()
    run.add(measurement(**counts))
    View(stream, as_json=as_json).summary("s (pid 1)", run, "stopped by Ctrl-C", "")
    return stream.getvalue()


def test_watch_ends_with_the_diagnosis() -> None:
    (cause,) = diagnose(measurement(**DUP))
    shown = ended(as_json=False, **DUP)
    assert cause in shown
    assert shown.index(cause) < shown.index("Ended: stopped by Ctrl-C")
    assert json.loads(ended(as_json=True, **DUP))["diagnosis"] == [cause]


def test_a_healthy_process_gets_no_diagnosis() -> None:
    assert json.loads(ended(as_json=True, productive_wakeups=100))["diagnosis"] == []
