"""What `netpoll.measure()` leaves in the reports; with real services and real eBPF."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from tests.waiting import undisturbed

pytestmark = pytest.mark.bpf


@undisturbed
def test_a_failed_assertion_about_a_window_shows_its_counts_and_go_line(run, pytester, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    result = run(
        """
def test_it(dup, ping, netpoll):
    with netpoll.measure("warm-up"):
        ping(dup, 5)
    with netpoll.measure() as window:
        ping(dup, 60)
    assert window[dup].polls < 50
""",
        "--netpoll-json=report.json",
        "--netpoll-html=report.html",
        "--junitxml=junit.xml",
    )
    result.assert_outcomes(failed=1)
    explained = [
        "*assert * < 50*",
        "*- netpoll -*",
        "window 2, dup (pid *):",
        "  wakeups  *productive, * spurious*",
        "  polls  *blocking*",
        "  * spurious wakeups (read on tcp *parked*",
        "*kit.go:*services/kit.Echo",
        "window 1, warm-up, dup (pid *",
        "window 2, dup: * wakeups found nothing to read or write*",
    ]
    result.stdout.fnmatch_lines(explained)
    result.stdout.fnmatch_lines(["test_it.py::test_it*FAILED", "↳ window 1, warm-up *", "↳ window 2 *"])
    (test,) = json.loads((pytester.path / "report.json").read_text())["tests"]
    assert (test["outcome"], test["services"]) == ("failed", [])
    first, second = test["windows"]
    assert [(w["number"], w["name"], w["read"]) for w in (first, second)] == [
        (1, "warm-up", []),
        (2, None, ["dup"]),
    ]
    (service,) = second["services"]
    assert service["metrics"]["spurious_wakeups"] == pytest.approx(60, abs=6)
    assert service["offenders"][0]["stack"][0]["function"] == "services/kit.Echo"
    assert second["diagnosis"][0].startswith("dup: ")
    assert "dup, window 2" in (pytester.path / "report.html").read_text()
    assert "↳ window 2" in (pytester.path / "summary.md").read_text()
    (failure,) = ElementTree.parse(pytester.path / "junit.xml").getroot().iter("failure")
    assert "services/kit.Echo" in (failure.text or "")
    assert "found nothing to read or write" in (failure.text or "")


def test_windows_of_tests_that_pass_and_of_fixtures_are_reported(run, pytester):
    result = run(
        """
@pytest.fixture
def around(netpoll, echo):
    with netpoll.measure("around"): yield

def test_fixture(echo, ping, around): ping(echo, 10)

@netpoll(max_spurious=0.05)
def test_marked(echo, ping, netpoll):
    with netpoll.measure("inside"): ping(echo, 20)

def test_neighbour(echo, dup, ping, netpoll, request):
    with netpoll.measure() as window: ping(echo)
    assert window[echo].spurious_wakeups == 0

def test_none(): pass
""",
        "--netpoll-json=report.json",
        "--netpoll-save=main",
        "--netpoll-reruns=0",
    )
    result.assert_outcomes(passed=4)
    tests = {
        t["nodeid"].partition("::")[2]: t
        for t in json.loads((pytester.path / "report.json").read_text())["tests"]
    }
    assert sorted(tests) == ["test_fixture", "test_marked", "test_neighbour"]
    for name, of in (("test_fixture", "around"), ("test_marked", "inside")):
        (window,) = tests[name]["windows"]
        assert window["name"] == of
        assert [service["name"] for service in window["services"]] == ["echo"]
    inside = tests["test_marked"]["windows"][0]["services"][0]["metrics"]
    assert inside["wakeups"] <= tests["test_marked"]["services"][0]["metrics"]["wakeups"]
    # Only tests with limits have a baseline, and nothing is missing for the others.
    saved = json.loads((pytester.path / ".netpoll/main.json").read_text())["tests"]
    assert list(saved) == ["test_it.py::test_marked"]
    result.stdout.no_fnmatch_line("*is not in it*")


def test_only_the_last_of_very_many_windows_are_kept(run, pytester):
    result = run(
        """
def test_it(echo, netpoll):
    for _ in range(103):
        with netpoll.measure(): pass
""",
        "--netpoll-json=report.json",
    )
    result.assert_outcomes(passed=1)
    (test,) = json.loads((pytester.path / "report.json").read_text())["tests"]
    assert test["windows_left_out"] == 3
    assert [window["number"] for window in test["windows"]] == list(range(4, 104))
    assert len([line for line in result.outlines if line.startswith("↳")]) == 10


LIMITED = """
def test_limit(echo, ping, netpoll):
    with netpoll.measure("warm-up"): ping(echo, 5)
    with netpoll.measure("ping", max_polls=3): ping(echo, 20)

@netpoll(max_wakeups=1000)
def test_rule(echo, dup, ping, netpoll):
    with netpoll.measure(service="dup", forbid="all"): ping(dup, 20)

def test_kept(echo, ping, netpoll):
    with netpoll.measure(max_spurious="5%", forbid="NP1"): ping(echo, 20)

def test_few(echo, ping, netpoll):
    with netpoll.measure(max_spurious="5%"): ping(echo, 3)

def test_wrong(netpoll):
    with netpoll.measure(max_pols=3): pass

@netpoll(max_wakeups=5, max_events=100_000, service="echo")
def test_of_both(echo, ping, netpoll):
    with netpoll.measure("ping", max_polls=3): ping(echo, 20)

def test_own_failure_comes_first(echo, ping, netpoll):
    with netpoll.measure(max_polls=3):
        ping(echo, 20)
        assert False
"""


@undisturbed
def test_a_window_has_limits_of_its_own_and_names_the_line(run, pytester):
    result = run(LIMITED, "--netpoll-json=report.json", "--netpoll-html=report.html")
    result.assert_outcomes(passed=1, failed=6)
    result.stdout.fnmatch_lines(
        [
            "window 2, ping, echo: polls * > max 3",
            "*- netpoll -*",
            "window 2, ping, echo (pid *",
            "  * wakeups (read on tcp *), parked*",
            "    *kit.go:*  services/kit.Echo",
            "  polls  *",
            "window 1, dup: NP101 second-reader at *kit.go:* services/kit.Echo",
            "  fix: read from one goroutine only*",
            "window 1, dup (pid *",
            "    *kit.go:*  services/kit.Echo",
            "unmeasured: window 1, echo: only * wakeups; spurious needs at least 10",
            "netpoll.measure(): unknown limit 'max_pols', did you mean 'max_polls'?",
            "window 1, ping, echo: polls * > max 3",
            "echo: wakeups * > max 5",
            "*- netpoll -*",
            "window 1, ping, echo (pid *",
            "*assert False",
            "↳ window 2, ping *FAILED",
        ]
    )
    report = json.loads((pytester.path / "report.json").read_text())
    tests = {test["nodeid"].partition("::")[2]: test for test in report["tests"]}
    first, second = tests["test_limit"]["windows"]
    assert (first["limits"], first["breaches"], second["limits"]) == ({}, [], {"max_polls": 3})
    assert [breach["metric"] for breach in second["breaches"]] == ["polls"]
    assert "echo, window 2, ping" in (pytester.path / "report.html").read_text()
    (window,) = tests["test_rule"]["windows"]
    assert [breach["metric"] for breach in window["breaches"]] == ["NP101"]
    # A window's failure hides none of the marker's.
    both = tests["test_of_both"]
    assert [breach["metric"] for breach in both["breaches"]] == ["wakeups"]
    assert [breach["metric"] for breach in both["windows"][0]["breaches"]] == ["polls"]
    assert [reason["what"].partition(" > ")[2] for reason in both["reasons"]] == ["max 3", "max 5"]


@undisturbed
def test_in_report_mode_a_windows_limit_is_reported(run, pytester):
    result = run(LIMITED, "--netpoll=report", "--netpoll-json=report.json", "-k", "limit or rule or few")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*test_few *unmeasured",
            "*test_limit *would fail",
            "report mode fails no test; in gate mode: *2 would fail*",
            "    window 2, ping, echo: polls * > max 3",
        ]
    )
    report = json.loads((pytester.path / "report.json").read_text())
    few, *broken = report["tests"]  # the worst comes first
    assert [test["gate"] for test in broken] == ["failed", "failed"]
    assert few["outcome"] == "unmeasured"
    (reason,) = few["reasons"]
    assert reason["what"].startswith("window 1, echo: only ")


# Each ping wakes the service, so each of them breaks its limit.
GOING_ON = """
import threading

def test_expects_an_exception(echo, ping, netpoll):
    with pytest.raises(ValueError):
        with netpoll.measure("ping", max_events=0):
            ping(echo, 3)
            raise ValueError

@netpoll(max_wakeups=1000)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_in_a_thread(echo, ping, netpoll):
    def measured():
        with netpoll.measure("ping", max_events=0): ping(echo, 3)
    thread = threading.Thread(target=measured)
    thread.start()
    thread.join()

@pytest.fixture
def around(echo, netpoll):
    with netpoll.measure("around", max_events=0): yield

@netpoll(max_wakeups=1000)
def test_in_a_fixture(around, echo, ping, netpoll):
    with netpoll.measure("first"): ping(echo, 3)

def test_skipped(echo, ping, netpoll):
    with netpoll.measure("ping", max_events=0):
        ping(echo, 3)
        pytest.skip("no")

@pytest.fixture
def limited(request): request.applymarker(pytest.mark.netpoll(max_events=0))

def test_marked_by_a_fixture(limited, echo, ping): ping(echo, 3)
"""
SUBTESTS = """
def test_subtests(subtests, echo, ping, netpoll):
    with subtests.test("broken"):
        with netpoll.measure("ping", max_events=0): ping(echo, 3)
    with subtests.test("kept"):
        with netpoll.measure("again"): ping(echo, 3)
"""


# Prints where pytest places each failure.
PLACES = """
def pytest_runtest_logreport(report):
    if report.failed: print("failed at", getattr(report.longrepr, "reprcrash", ""))
"""


def test_a_broken_limit_fails_the_test_even_if_the_test_goes_on(run, pytester):
    conftest = pytester.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\n{PLACES}")
    has_subtests = hasattr(pytest, "Subtests")
    result = run(GOING_ON + SUBTESTS * has_subtests, "--netpoll-json=report.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["window 2, around, echo: events * > max 0", "*- netpoll -*", "*services/kit.*"]
    )
    result.stdout.no_fnmatch_line("*would fail*")
    result.stdout.no_fnmatch_line("*traceback entries are hidden*")
    result.stdout.fnmatch_lines(["*failed at *test_it.py:*"])
    result.stdout.no_fnmatch_line("*failed at *outcome.py*")
    report = json.loads((pytester.path / "report.json").read_text())
    tests = {test["nodeid"].partition("::")[2]: test for test in report["tests"]}
    assert len(tests) == len(report["tests"])
    windows = {
        "test_expects_an_exception": [(1, "ping")],
        "test_in_a_thread": [(1, "ping")],
        "test_in_a_fixture": [(1, "first"), (2, "around")],
        "test_marked_by_a_fixture": [],
        **({"test_subtests": [(1, "ping"), (2, "again")]} if has_subtests else {}),
    }
    assert {name: [(w["number"], w["name"]) for w in t["windows"]] for name, t in tests.items()} == windows
    for test in tests.values():
        assert (test["outcome"], test["error"]) == ("failed", None)
        (reason,) = test["reasons"]
        assert "echo: events" in reason["what"]


def test_a_test_may_expect_that_a_number_is_unmeasured(run):
    result = run(
        """
@pytest.fixture
def sleeper(go_service): return go_service(command=["sleep", "60"], ready=None)

def test_expects_it(sleeper, netpoll):
    with netpoll.measure() as window: pass
    with pytest.raises(pytest.fail.Exception, match="unmeasured"): window[sleeper]

def test_has_broken_a_limit(echo, sleeper, ping, netpoll):
    with pytest.raises(pytest.fail.Exception):
        with netpoll.measure(max_events=0, service="echo") as window: ping(echo, 3)
    with pytest.raises(pytest.fail.Exception, match="not a Go"): window[sleeper]
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["window 1, echo: events ? > max 0", "sleep: * is not a Go program"])
    result.stdout.no_fnmatch_line("*would fail*")
