"""Hooks for users: the example of docs/hooks.md, and what happens when a hook is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.waiting import undisturbed

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.bpf


@pytest.fixture
def conftest(run, pytester):  # noqa: ARG001 - run has made the file
    """conftest(source) adds to the project's conftest.py."""

    def conftest(source: str) -> None:
        path = pytester.path / "conftest.py"
        path.write_text(f"{path.read_text()}\n{source}")

    return conftest


@undisturbed
def test_the_example_of_the_docs_adds_a_limit_and_a_column(run, conftest, pytester):
    page = (ROOT / "docs" / "hooks.md").read_text().partition("<!-- begin")[0]
    [example] = re.findall(r"```python\n(.*?)```", page, re.S)
    conftest(example)
    result = run(
        f"""
@netpoll()
def test_wasteful(go_service, ping):
    args = ["-addr", "127.0.0.1:{{port}}", "-fault", "tickers"]
    ping(go_service("{ROOT}/example_project/server", name="busy", args=args), 10, 0.05)

@netpoll()
def test_healthy(echo, ping): ping(echo, 10, 0.05)
""",
        "--netpoll-json=report.json",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "busy: polls per wakeup * > max 10",
            "*- netpoll -*",
            "busy (pid *",
            "test *wakeups/s  verdict",
            "*test_wasteful * FAILED",
            "*test_healthy * passed",
        ]
    )
    healthy, wasteful = json.loads((pytester.path / "report.json").read_text())["tests"]
    [service] = healthy["services"]
    assert service["columns"] == {
        "wakeups/s": round(service["metrics"]["wakeups"] / healthy["window_seconds"])
    }
    [breach] = wasteful["breaches"]
    assert (breach["metric"], breach["limit"]) == ("polls per wakeup", 10)
    metrics = wasteful["services"][0]["metrics"]
    assert breach["measured"] == round(metrics["polls"] / metrics["wakeups"])


def test_report_mode_lets_breaches_of_hooks_pass_and_xfail_expects_them(run, conftest):
    conftest(
        """
from pytest_netpoll import Breach
def pytest_netpoll_breaches(item, measurement, limits):
    assert limits.as_json() == {"max_spurious": 0.9, "min_wakeups": 10}
    return [Breach(measurement.service, "wakeups", "max", measurement.wakeups, 1)]
"""
    )
    source = "@netpoll(max_spurious=0.9)\ndef test_it(echo, ping): ping(echo)"
    result = run(source, "--netpoll=report")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_it*would fail"])
    run(f"@pytest.mark.xfail(strict=True)\n{source}").assert_outcomes(xfailed=1)


def test_hooks_are_not_called_for_inexact_numbers(run, conftest):
    conftest(
        """
from pytest_netpoll import hookspecs
def pytest_netpoll_measured(item, measurement): print("asked: measured", measurement.unmeasured)
def pytest_netpoll_breaches(item, measurement): print("asked: breaches")
def pytest_netpoll_columns(item, measurement): print("asked: columns")
"""
    )
    result = run(
        """
@netpoll(max_spurious=0.05)
def test_it(go_service): go_service(command="python3 -m http.server --bind 127.0.0.1 {port}")
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*asked: measured * is not a Go program"])
    result.stdout.no_fnmatch_line("*asked: breaches*")
    result.stdout.no_fnmatch_line("*asked: columns*")


# What a hook returns for a test -> the message.
INVALID = {
    "breaches": {
        "Breach('echo', 'polls a second', 'max', None, 1)": "Breaches that can be read: measured is *",
        "['too slow']": "Breaches: *too slow*",
        "7": "Breaches: one returned 7",
    },
    "columns": {"['x']": "headings and values: *", "{'x': [1]}": "headings and values: *"},
}


def test_a_hook_that_returns_something_invalid_fails_the_test_with_a_message(run, conftest):
    conftest("from pytest_netpoll.model.verdict import Breach")
    tests, expected = [], []
    for hook, returned in INVALID.items():
        names = [f"test_{hook}_{number}" for number in range(len(returned))]
        values = ", ".join(f"{name!r}: {value}" for name, value in zip(names, returned, strict=True))
        conftest(f"def pytest_netpoll_{hook}(item): return {{{values}}}.get(item.name)")
        for name, complaint in zip(names, returned.values(), strict=True):
            tests.append(f"@netpoll()\ndef {name}(echo, ping): ping(echo)\n")
            said = f"pytest_netpoll_{hook} must return {complaint}"
            expected += [f"*_ {name} _*", said, "  fix: return *"]
    result = run("\n".join(tests))
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(expected)


def test_a_hook_that_raises_is_shown_together_with_the_numbers(run, conftest):
    conftest("def pytest_netpoll_columns(measurement): raise RuntimeError('mine')")
    result = run("@netpoll()\ndef test_it(echo, ping): ping(echo)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E   RuntimeError: mine",
            "conftest.py:*: RuntimeError",
            "*- netpoll -*",
            "echo (pid *",
            "test_it*FAILED",
        ]
    )


def test_a_failing_hook_does_not_affect_other_hooks_or_the_report(run, conftest, pytester):
    """A limit that another hook found broken is reported together with the failure."""
    conftest(
        """
from pytest_netpoll import Breach
def pytest_netpoll_measured(measurement):
    print("asked: measured", measurement.service)
    if measurement.service == "echo": raise RuntimeError("mine")
def pytest_netpoll_breaches(measurement):
    return Breach(measurement.service, "wakeups", "max", measurement.wakeups, 1)
def pytest_netpoll_columns(measurement):
    if measurement.service == "echo": pytest.fail("no column")
    return {"seen": measurement.service}
"""
    )
    result = run("@netpoll()\ndef test_it(echo, dup, ping): ping(echo)", "--netpoll-json=report.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines_random(
        ["E *RuntimeError: mine", "*asked: measured echo", "*asked: measured dup"]
    )
    (test,) = json.loads((pytester.path / "report.json").read_text())["tests"]
    assert (test["outcome"], test["reason"]) == ("failed", "RuntimeError: mine")
    assert [(breach["service"], breach["metric"]) for breach in test["breaches"]] == [
        ("echo", "wakeups"),
        ("dup", "wakeups"),
    ]
    assert [service["columns"] for service in test["services"]] == [{}, {"seen": "dup"}]
