"""A service that dies without being stopped is a failure in every mode, with its panic; with real
services."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.bpf

# says(service, "boom") makes the service panic, and waits for its end.
SAYS = """
import socket

def says(service, word, wait=True):
    with socket.create_connection(service.address, timeout=20) as connection:
        connection.sendall(word.encode())
        assert connection.recv(64)
    while wait and service.running: time.sleep(0.01)
"""

CRASH = f"""{SAYS}
@pytest.fixture
def server(start):
    server = start("panic", name="server")
    yield server
    server.stop()

@netpoll(max_spurious=0.05)
def test_it(server, ping):
    ping(server)
    says(server, "boom")
"""


@pytest.mark.parametrize(
    "options",
    [(), ("--netpoll-unmeasured=skip",), ("--netpoll=report",), ("--netpoll=off",)],
    ids=" ".join,
)
def test_a_panic_during_the_test_fails_it_in_every_mode_and_is_shown(run, pytester, options):
    result = run(CRASH, "--netpoll-json=report.json", "--junitxml=junit.xml", *options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "server: service 'server' ended during the test: exit status 2: panic: boom",
            "*output of service server*",
            "panic: boom",
            "*main.explode(*",
            "FAILED test_it.py::test_it - Failed: server: service 'server' ended during *",
        ]
    )
    # A service's output must not be a command to the CI runner.
    assert "::error::not a command" not in [line.strip() for line in result.outlines]
    (test,) = json.loads((pytester.path / "report.json").read_text())["tests"]
    assert (test["outcome"], test["gate"]) == ("failed", "failed")
    (death,) = test["deaths"]
    assert death["service"] == "server"
    assert death["last_words"].startswith("panic: boom")
    assert "main.explode(" in death["last_words"]
    (failure,) = ElementTree.parse(pytester.path / "junit.xml").getroot().iter("failure")
    assert "panic: boom" in (failure.get("message") or "")


def test_a_panic_just_before_the_service_is_stopped_is_not_hidden(run):
    result = run(
        f"""{SAYS}
import unittest

@netpoll()
def test_stopped(start):
    server = start("panic", name="first")
    says(server, "boom")
    server.stop()

@netpoll()
def test_restarted(start):
    server = start("panic", name="second")
    says(server, "boom")
    server.restart()
    server.stop()

def test_unmarked(start):
    server = start("panic", name="third")
    says(server, "boom")

@netpoll(max_wakeups=0)
def test_skips(start):
    server = start("panic", name="fourth")
    says(server, "boom")
    pytest.skip("no server")

class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _take(self, start): self.start = start

    def test_skips(self):
        server = self.start("panic", name="fifth")
        says(server, "boom")
        self.skipTest("no server")

    def test_has_none(self): self.skipTest("no server")
"""
    )
    result.assert_outcomes(failed=5, skipped=1)
    for name in ("first", "second"):
        result.stdout.fnmatch_lines(
            [f"{name}: service '{name}' ended before it was stopped: exit status 2: panic: boom"]
        )
    for name in ("third", "fourth", "fifth"):
        result.stdout.fnmatch_lines(
            [f"{name}: service '{name}' ended during the test: exit status 2: panic: boom"]
        )


def test_a_panic_after_the_test_is_found_when_the_service_is_stopped(run):
    """The fixture stops it while it prints its panic, or is about to."""
    result = run(
        f"""{SAYS}
@pytest.fixture
def server(start):
    server = start("panic", name="server")
    yield server
    says(server, "boom")
    server.stop()

def test_it(server): pass
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["server: service 'server' ended before it was stopped: *panic: boom", "*explode*"]
    )


# Kills what the test has put into DOOMED, once its call is over.
KILLER = """
import os, signal
DOOMED = []

def pytest_runtest_logreport(report):
    while report.when == "call" and DOOMED:
        service = DOOMED.pop()
        os.kill(service.pid, signal.SIGKILL)
        while service.running: time.sleep(0.01)
"""


def test_the_teardown_does_not_hide_a_kill_after_the_test(run, pytester):
    """The teardown stops services that the test or its fixture made; the user didn't."""
    conftest = pytester.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\n{KILLER}")
    result = run(
        f"""{SAYS}
import conftest

@pytest.fixture
def server(start): return start("panic", name="fixtures")

@netpoll()
def test_made(start): conftest.DOOMED.append(start("panic", name="made"))

def test_fixture(server): conftest.DOOMED.append(server)

@pytest.fixture
def fails():
    yield
    raise OSError("mine")

def test_teardown_fails(fails, start): conftest.DOOMED.append(start("panic", name="beside"))

def test_healthy(start, server): start("panic")

def test_stopped(start):
    service = start("panic")
    os.kill(service.pid, signal.SIGKILL)
    service.stop()
""",
    )
    result.assert_outcomes(passed=5, errors=3)
    for name in ("made", "fixtures", "beside"):
        said = f"{name}: service '{name}' ended after the test: killed by SIGKILL"
        assert result.outlines.count(said) == 1, name
    result.stdout.fnmatch_lines(["E *OSError: mine", "*- Captured netpoll teardown -*", "beside: service *"])


def test_a_service_that_ends_by_itself_fails_the_test_until_it_is_stopped(run):
    """Stopping it shows that its end was intended, whether it was killed or ended by itself."""
    result = run(
        f"""{SAYS}
@netpoll()
def test_ended(start): says(start("panic", name="ended"), "quit")

@netpoll()
def test_killed(start):
    service = start("panic", name="killed")
    os.kill(service.pid, signal.SIGKILL)
    while service.running: time.sleep(0.01)

def test_meant(start):
    for end in (lambda s: says(s, "quit"), lambda s: os.kill(s.pid, signal.SIGKILL)):
        service = start("panic", name="meant")
        end(service)
        while service.running: time.sleep(0.01)
        service.restart()
        service.stop()
"""
    )
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(
        [
            "ended: *ended during the test: exit status 0",
            "  fix: if that is intended, call ended.stop() *",
            "killed: *ended during the test: killed by SIGKILL",
            "  fix: if that is intended, call killed.stop() *",
        ]
    )


def test_a_death_fails_each_measured_test_and_one_other_test(run):
    result = run(
        f"""{SAYS}
@pytest.fixture(scope="session")
def server(start): return start("panic", name="server")

@netpoll()
def test_1(server): says(server, "boom")

def test_2(server): pass

@netpoll()
def test_3(server): pass

@netpoll()
def test_4(echo, ping): ping(echo)
"""
    )
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(
        ["server: service 'server' ended before the test: exit status 2: panic: boom"]
    )


def test_a_test_whose_own_assertion_failed_shows_which_service_died(run):
    result = run(
        f"""{SAYS}
@netpoll()
def test_it(start):
    says(start("panic", name="server"), "boom")
    assert 1 == 2, "mine"
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*AssertionError: mine*", "*netpoll*", "server: *: exit status 2: panic: boom"]
    )


def test_assertions_never_see_numbers_of_a_dead_service(run):
    source = f"""{SAYS}
def test_it(start, netpoll):
    server = start("panic", name="server")
    with netpoll.measure() as window: says(server, "boom")
    assert window[server].polls >= 0
"""
    for options in ((), ("--netpoll=report", "--netpoll-unmeasured=skip")):
        result = run(source, *options)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["server: service 'server' ended during the window: *panic: boom"])
