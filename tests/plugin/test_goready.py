"""Limits on goroutine wakeups that the network doesn't cause."""

from __future__ import annotations

import json

import pytest

from tests.waiting import undisturbed

pytestmark = [pytest.mark.bpf, pytest.mark.uprobes]

WAKES = """
@pytest.fixture(scope="session")
def ready(go_service):
    from conftest import SERVICES
    return go_service(f"{SERVICES}/ready", args=["-addr", "127.0.0.1:{port}", "-n", "100"])

@netpoll(max_wakeups_per_event=3)
def test_it(ready, ping): ping(ready)
"""


@undisturbed
def test_a_broken_limit_names_the_waking_line_and_what_was_attached(run, pytester):
    result = run(WAKES, "--netpoll-json=report.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "ready: wakeups_per_event * (* wakeups and 5,0* ready calls for * events) > max 3.00",
            "  * % of 5,0* ready calls, made at",
            "    *ready/main.go:*  main.main.func*",
            "  ready calls *wakeups per event*",
            "attached: raw tracepoint sys_exit; uprobes on runtime.ready of ready",
        ]
    )
    report = json.loads((pytester.path / "report.json").read_text())
    tracepoint, uprobes = report["environment"]["attached"]
    assert tracepoint["probe"] == "raw tracepoint sys_exit"
    assert uprobes == {
        "probe": "uprobes on runtime.ready",
        "services": ["ready"],
        "cost": "not measured in this run; see docs/overhead.md of pytest-netpoll",
    }
    offender = report["tests"][0]["services"][0]["offenders"][0]
    assert offender["offence"] == "ready"
    assert offender["share"] > 0.95


@undisturbed
def test_without_uprobes_no_ready_calls_are_reported(run, pytester):
    run("@netpoll()\ndef test_it(echo, ping): ping(echo)", "--netpoll-goready=off", "--netpoll-json=r.json")
    report = json.loads((pytester.path / "r.json").read_text())
    assert [probe["probe"] for probe in report["environment"]["attached"]] == ["raw tracepoint sys_exit"]


@undisturbed
def test_a_late_wakeup_under_uprobes_is_reported_as_such(run):
    result = run("@netpoll(max_latency_p50='1ns')\ndef test_it(echo, ping): ping(echo)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  measured under uprobes on runtime.ready, which *;*"])
