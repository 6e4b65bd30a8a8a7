"""Broken limits name the goroutines that were woken or left parked, in a user's pytest."""

from __future__ import annotations

import json

import pytest

from tests.waiting import undisturbed

pytestmark = pytest.mark.bpf

LEAKS = """
@pytest.fixture(scope="session")
def keep(start): return start("keep", build_flags=["-ldflags=-s -w"])

def ask(service, how):
    import socket
    from tests.waiting import fall_asleep
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(how + b"\\n")
        assert connection.recv(100) == how + b"\\n"
    fall_asleep(service.pid)  # goroutines that end have ended

@netpoll(max_parked_growth=0)
def test_leak(keep):
    for _ in range(3): ask(keep, b"upstream")

@netpoll(max_abandoned_descriptors=1)
def test_abandoned(keep):
    for _ in range(3): ask(keep, b"channel")

@netpoll(forbid="NP5")
def test_rule(keep):
    import socket
    from tests.waiting import fall_asleep
    for how in (b"upstream", b"channel"):
        for _ in range(3):
            with socket.create_connection(keep.address, timeout=60) as connection:
                fall_asleep(keep.pid)  # its reader is parked
                connection.sendall(how + b"\\n")
                connection.recv(100)
            fall_asleep(keep.pid)

@netpoll(max_parked_growth=0, max_abandoned_descriptors=0, max_stuck_goroutines=0)
def test_healthy(keep):
    for _ in range(3): ask(keep, b"idle")

@netpoll(max_wakeups=3)
def test_woken(echo, ping): ping(echo, 20)

def test_parked(keep, netpoll):
    places = {g.stack[0].function for g in netpoll.parked(keep)}
    assert places == {"main.main", "main.serve", "main.leak"}
    with netpoll.measure() as window: pass
    assert window[keep].parked_growth is None
"""


@undisturbed
def test_broken_limits_name_who_was_woken_and_who_is_left(run, pytester, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run(LEAKS, "--netpoll-json=report.json")
    result.assert_outcomes(failed=4, passed=2)
    result.stdout.fnmatch_lines(
        [
            "keep: parked_growth 6 > max 0",
            "  fix: close each connection that keep dials, here to keep (127.0.0.1:*); *",
            "  3 goroutines (read on tcp, peer keep (127.0.0.1:*)): 3 more than at the start,*",
            "    *keep/main.go:*  main.leak",
            "keep: abandoned_descriptors 3 > max 1",
            "  3 tcp descriptors whose peers have closed, and nobody is parked on them*",
            "keep: NP501 parked-leak: 3 tcp connections *",
            "  fix: close the connection on every way out of its handler, *",
            "keep: NP501 parked-leak at *keep/main.go:* main.serve",
            "  fix: close the connection on every way out of its handler, *",
            "keep: NP501 parked-leak: 3 tcp connections*",
            "  3 tcp descriptors whose peers have closed, *; who read from them was parked at",
            "    *keep/main.go:*  main.serve",
            "  * goroutines (read on tcp, peer keep (127.0.0.1:*)): 3 more than at the start,*",
            "    *keep/main.go:*  main.leak",
            "echo: wakeups 2* > max 3",
            "  * wakeups (read on tcp *), parked*",
            "    *kit.go:*  services/kit.Echo",
        ]
    )
    report = json.loads((pytester.path / "report.json").read_text())
    tests = {test["nodeid"].partition("::")[2]: test for test in report["tests"]}
    (service,) = tests["test_leak"]["services"]
    assert {group["stack"][0]["function"]: group["growth"] for group in service["parked"]} == {
        "main.leak": 3,
        "main.serve": 3,  # the service's own ends of what it leaks
        "main.main": 0,
    }
    assert {offender["offence"] for offender in service["offenders"]} == {"parked"}
    (service,) = tests["test_rule"]["services"]
    behind = [offender for offender in service["offenders"] if "NP501" in offender["rules"]]
    first, *grown = [offender["stack"][0]["function"] for offender in behind]
    assert first == "main.serve"
    assert sorted(grown) == ["main.leak", "main.serve"]  # the service's own ends of what it leaks
    (echo,) = tests["test_woken"]["services"]
    assert echo["parked"] is None
    assert [offender["offence"] for offender in echo["offenders"]] == ["woken"] * len(echo["offenders"])
