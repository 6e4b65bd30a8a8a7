"""Baselines: regressions fail, on real services; and `runs=`, which also uses several windows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.waiting import undisturbed

# The same test of the same service; PROGRAM selects a healthy or a wasteful one.
SERVER = """
@pytest.fixture(scope="session")
def server(start): return start(os.environ["PROGRAM"], name="server")
"""
PINGED = SERVER + "\n@netpoll()\ndef test_it(server, ping): ping(server)\n"
CROWDED = """
@pytest.fixture(scope="session")
def crowd(go_service):
    import contextlib
    from pathlib import Path
    import conftest
    args = ["-addr", "127.0.0.1:{port}", "-spin", os.environ["SPIN"]]
    service = go_service(f"{conftest.SERVICES}/spinners", args=args, name="crowd")
    # Its goroutines wait for each other, not for what else this machine does.
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # the scheduler may share the CPU out by sessions
            Path(f"/proc/{service.pid}/autogroup").write_text("-15")
        for thread in Path(f"/proc/{service.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), -15)
    return service

# Not the fixture `ping`, which would wait for a service that never sleeps. Of some pings the reader may not
# have parked yet: half of them are enough.
@netpoll(min_wakeups=6)
def test_it(crowd):
    import socket
    with socket.create_connection(crowd.address, timeout=60) as connection:
        for _ in range(12):
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            time.sleep(0.005)
"""


def saved(pytester: pytest.Pytester, name: str = "main") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((pytester.path / ".netpoll" / f"{name}.json").read_text())
    return content


@pytest.mark.bpf
@undisturbed
def test_a_service_that_got_wasteful_fails_and_one_that_improved_passes(run, pytester, monkeypatch):
    compare = ("--netpoll-compare=main", "--netpoll-compare-fail=spurious:+0.02,polls_per_event:+100%")
    monkeypatch.setenv("PROGRAM", "echo")
    run(PINGED, "--netpoll-save=main").assert_outcomes(passed=1)
    entry = saved(pytester)["tests"]["test_it.py::test_it"]["server"]
    assert entry["metrics"]["spurious"] == 0
    assert entry["metrics"]["productive_wakeups"] == pytest.approx(51, abs=3)
    assert entry["go_version"].startswith("go1.")

    run(PINGED, *compare).assert_outcomes(passed=1)

    monkeypatch.setenv("PROGRAM", "dup")
    source = (
        PINGED
        + """
@pytest.mark.xfail(strict=True)
@netpoll()
def test_expected(server, ping): ping(server)

@netpoll()
def test_new(server, ping): ping(server)
"""
    )
    run(source, "--netpoll-save=worse", "--netpoll-reruns=0")
    baseline = saved(pytester)
    tests = baseline["tests"]
    tests["test_it.py::test_expected"] = tests["test_it.py::test_it"]
    (pytester.path / ".netpoll/main.json").write_text(json.dumps(baseline))
    result = run(source, *compare, "--netpoll-json=now.json")
    result.assert_outcomes(failed=1, xfailed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "server: spurious * % > 0.0 % +0.02 of baseline main",
            "*spurious wakeups (read on tcp *",
            "*parked at",
            "*baseline main → now*",
            "*test_it.py::test_it *0.0 % → * %*WORSE",
            "*test_it.py::test_new *no baseline",
            "*test_new: not in baseline main",
        ]
    )
    records = {test["nodeid"]: test for test in json.loads((pytester.path / "now.json").read_text())["tests"]}
    assert records["test_it.py::test_new"]["comparison"]["outcome"] == "new"
    comparison = records["test_it.py::test_it"]["comparison"]
    [regression] = comparison["regressions"]
    assert comparison["outcome"] == "regressed"
    assert (regression["service"], regression["metric"], regression["baseline"]) == ("server", "spurious", 0)
    assert regression["measured"] > 0.4

    monkeypatch.setenv("PROGRAM", "echo")
    # The wasteful one makes half as many polls per event, because it has twice the events.
    spurious = "--netpoll-compare-fail=spurious:+0.02"
    run(source, "--netpoll-compare=worse", spurious, "-k", "test_it").assert_outcomes(passed=2, failed=1)


@pytest.mark.bpf
@undisturbed
def test_rounds_on_both_sides_give_the_change_an_interval(run, pytester, monkeypatch):
    source = SERVER + "\n@netpoll()\ndef test_it(server, ping): ping(server, 12)\n"
    rounds = "--netpoll-rounds=6"
    monkeypatch.setenv("PROGRAM", "echo")
    run(source, "--netpoll-save=main", rounds).assert_outcomes(passed=1)
    entry = saved(pytester)["tests"]["test_it.py::test_it"]["server"]
    assert entry["rounds"] == 6
    assert {len(values) for values in entry["values"].values()} == {6}
    monkeypatch.setenv("PROGRAM", "dup")
    compare = ("--netpoll-compare=main", "--netpoll-compare-fail=spurious:+0.02", "--netpoll-json=now.json")
    result = run(source, *compare, rounds)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "server: spurious 0.0 % → *: worse than baseline main by more than +0.02, *"
            "over 6 rounds then and 6 now",
            "*netpoll: baseline main → now*",
            "*test_it *spurious *0.0 %*WORSE",
            "No change in * numbers of 1 test, 6 rounds then, 6 now.",
        ]
    )
    [test] = json.loads((pytester.path / "now.json").read_text())["tests"]
    assert test["comparison"]["measured"] == 6
    numbers = {number["metric"]: number for number in test["comparison"]["numbers"]}
    assert numbers["spurious"]["low"] > 0.3
    once = run(source, *compare)
    once.stdout.fnmatch_lines(
        [
            "server: spurious * % > 0.0 % +0.02 of baseline main",
            "*no 95 % interval: 6 rounds in the baseline, 1 now*",
        ]
    )


@pytest.mark.bpf
@undisturbed
def test_a_slower_service_fails_after_remeasuring(run, pytester, monkeypatch):
    """Ten goroutines before each reader instead of two: six times the latency, also on a busy machine. Not
    instead of one, whose time slice may end on a busy machine just when the poll returns.
    """
    tolerated = "--netpoll-compare-fail=latency_p50:+150%"
    monkeypatch.setenv("SPIN", "2")
    run(CROWDED, "--netpoll-save=main").assert_outcomes(passed=1)
    run(CROWDED, "--netpoll-compare=main", tolerated).assert_outcomes(passed=1)
    monkeypatch.setenv("SPIN", "10")
    result = run(CROWDED, "--netpoll-compare=main", tolerated, "--netpoll-json=now.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "crowd: latency_p50 * ms (remeasured: * ms, * ms) > * ms +150% of baseline main",
            "*test_it * → *WORSE",
        ]
    )
    [test] = json.loads((pytester.path / "now.json").read_text())["tests"]
    assert test["comparison"]["measured"] == 3

    # On another kernel the kernel may be the cause, so latencies are not compared unless requested.
    elsewhere = saved(pytester)
    elsewhere["environment"]["kernel"] = "2.4.0"
    (pytester.path / ".netpoll/main.json").write_text(json.dumps(elsewhere))
    result = run(CROWDED, "--netpoll-compare=main", tolerated)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*times were not compared: kernel 2.4.0*"])
    always = run(
        CROWDED,
        *("--netpoll-compare=main", tolerated, "--netpoll-compare-latencies=always", "--netpoll-reruns=0"),
    )
    always.assert_outcomes(failed=1)


def test_a_missing_baseline_is_a_usage_error_that_says_how_to_make_one(run):
    result = run("def test_it(): pass", "--netpoll-compare=main")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*there is no baseline 'main'*", "*pytest --netpoll-save=main*"])


def test_a_damaged_baseline_is_a_usage_error_that_names_the_field(run, pytester):
    (pytester.path / ".netpoll").mkdir()
    (pytester.path / ".netpoll/main.json").write_text(
        '{"schema": "pytest-netpoll-baseline/1", "environment": {}, "tests": {"t": 1}}'
    )
    result = run("def test_it(): pass", "--netpoll-compare=main")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*main.json could not be read: tests.t: expected an object, got 1*"])


def test_help_works_without_the_baseline_that_the_ini_file_names(run, pytester):
    pytester.makeini("[pytest]\nnetpoll_compare = main\nnetpoll_compare_fail = spurious:+0.02\n")
    assert run("", "--help").ret == 0


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--netpoll-compare-fail=spurious:+0.02", "*nothing to compare with*"),
        ("--netpoll-compare-fail=spurios:+0.02", "*unknown metric 'spurios', did you mean 'spurious'?*"),
        ("--netpoll-compare-fail=polls:-5%", "*improvements never fail*"),
        ("--netpoll-compare=../main", "*'../main' is not the name of a baseline*"),
        ("--netpoll-reruns=-1", "*'-1' is not an integer >= 0*"),
    ],
)
def test_a_wrong_comparison_is_a_usage_error(run, option, expected):
    result = run("def test_it(): pass", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([expected])


@pytest.mark.bpf
def test_a_compared_service_that_was_not_measured_does_not_pass(run, pytester, monkeypatch):
    monkeypatch.setenv("PROGRAM", "echo")
    source = SERVER + "\n@netpoll()\ndef test_it(server, ping): ping(server, int(os.environ['COUNT']))\n"
    monkeypatch.setenv("COUNT", "30")
    run(source, "--netpoll-save=main", "--netpoll-reruns=0").assert_outcomes(passed=1)
    monkeypatch.setenv("COUNT", "3")
    result = run(source, "--netpoll-compare=main", "--netpoll-compare-fail=spurious:+0.02", "-v")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*UNMEASURED*", "unmeasured: server: spurious cannot be compared: only ? wakeups*"]
    )
    # A limit needs a service; here only the baseline needs one.
    before = saved(pytester)
    result = run(
        "@netpoll()\ndef test_it(): pass",
        *("--netpoll-compare=main", "--netpoll-compare-fail=spurious:+0.02", "--netpoll-save=main"),
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "unmeasured: server: is in baseline main, but is no longer measured",
            "netpoll: wrote *main.json",
            "netpoll: test_it.py::test_it keeps its old entry: its own assertion failed, or it is unmeasured",
        ]
    )
    assert saved(pytester) == before


@pytest.mark.bpf
@undisturbed
def test_runs_are_judged_by_their_median_in_fresh_windows(run, pytester):
    """20, 100 and 20 pings: a median of about 21 wakeups (a connection is accepted each time)."""
    result = run(
        """
counts = iter([20, 100, 20] * 2)

@netpoll(max_wakeups=40, runs=3)
def test_good(echo, ping): ping(echo, next(counts))

@netpoll(max_wakeups=10, runs=3)
def test_bad(echo, ping): ping(echo, next(counts)); print("printed")
""",
        "--netpoll-json=now.json",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "echo: wakeups 2? (median of 3 runs, 2? to 10?) > max 10",
            "*median of 3 runs):",
            "*minimum and maximum over the runs*",
        ]
    )
    assert result.stdout.str().count("\nprinted\n") == 3
    tests = json.loads((pytester.path / "now.json").read_text())["tests"]
    for test in tests:
        [service] = test["services"]
        assert service["runs"]["wakeups"] == pytest.approx([21, 101, 21], abs=3)
        assert service["metrics"]["wakeups"] == sorted(service["runs"]["wakeups"])[1]


@pytest.mark.bpf
def test_a_repeated_test_stops_when_its_own_assertion_fails(run):
    result = run(
        """
import unittest
calls = []

@netpoll(runs=5)
def test_it(echo, ping):
    calls.append(1); ping(echo, 5); assert len(calls) < 2, "mine"

@netpoll(runs=5)
class TestOld(unittest.TestCase):
    calls = []
    @pytest.fixture(autouse=True)
    def _take(self, echo, ping): self.echo, self.ping = echo, ping
    def test_old(self): self.calls.append(1); self.ping(self.echo, 5); self.assertLess(len(self.calls), 3)

def test_counted(): assert (len(calls), len(TestOld.calls)) == (2, 3)
"""
    )
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*AssertionError: mine*", "*AssertionError: 3 not less than 3*"])


@pytest.mark.bpf
def test_an_unmeasured_run_makes_the_test_unmeasured(run):
    result = run(
        """
@netpoll(max_spurious=0.5, runs=2)
def test_own_service(start, ping): ping(start("echo", name="own"))

pauses = iter([30, 2, 30])

@netpoll(max_spurious=0.5, runs=3)
def test_poor_run(echo, ping): ping(echo, next(pauses))
"""
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "unmeasured: own, own-2: it ran in only 1 of 2 runs of the test",
            "  fix: start it in a fixture*",
            "unmeasured: echo: only ? wakeups; spurious needs at least 10*",
        ]
    )
