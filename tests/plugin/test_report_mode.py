"""Report mode and xfail: what doesn't fail a test is still reported; with real services and real eBPF."""

from __future__ import annotations

import json
import sys

import pytest

pytestmark = pytest.mark.bpf

ALL = """
@netpoll(max_spurious=0.05)
def test_broken(dup, ping): ping(dup)

@netpoll(max_spurious=0.05)
def test_few(echo, ping): ping(echo, 2)

@netpoll(max_spurious=0.05)
def test_healthy(echo, ping): ping(echo)

@netpoll(max_spurious=0.05)
def test_no_service(): pass
"""


def outcomes(pytester):
    tests = json.loads((pytester.path / "report.json").read_text())["tests"]
    return {test["nodeid"].partition("::")[2]: (test["outcome"], test["gate"]) for test in tests}


def test_report_mode_fails_nothing_and_shows_the_outcome_in_gate_mode(run, pytester, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run(ALL, "--netpoll=report", "--netpoll-json=report.json")
    result.assert_outcomes(passed=4)
    assert result.ret == 0
    assert outcomes(pytester) == {
        "test_broken": ("passed", "failed"),
        "test_few": ("unmeasured", "unmeasured"),
        "test_healthy": ("passed", "passed"),
        "test_no_service": ("unmeasured", "unmeasured"),
    }
    result.stdout.fnmatch_lines(
        [
            "*test_few*unmeasured",
            "*test_no_service*unmeasured",
            "*test_broken*would fail",
            "*test_healthy*passed",
            "report mode fails no test; in gate mode: 2 unmeasured, 1 would fail",
            "  test_it.py::test_few: unmeasured",
            "    echo: only ? wakeups; *",
            "  test_it.py::test_broken: would fail",
            "    dup: spurious * > max 5.0 %",
        ]
    )
    said = [line for line in result.outlines if line.startswith("::")]
    assert said
    assert all(line.startswith("::warning ") for line in said)
    gate = run(ALL, "--netpoll-json=report.json")
    gate.assert_outcomes(failed=3, passed=1)
    assert {name: of[0] for name, of in outcomes(pytester).items()} == {
        "test_broken": "failed",
        "test_few": "unmeasured",
        "test_healthy": "passed",
        "test_no_service": "unmeasured",
    }


def test_report_mode_without_an_agent_fails_nothing_and_invents_nothing(run, pytester):
    result = run(
        """
@netpoll(max_spurious=0.05)
def test_marked(echo, dup, ping): ping(echo)

def test_window(echo, netpoll):
    with netpoll.measure() as window: pass
    assert window[echo].polls < 1
""",
        "--netpoll=report",
        f"--netpoll-python={sys.executable}",
        "--netpoll-json=report.json",
        "-rs",
    )
    result.assert_outcomes(passed=1, skipped=1)
    assert outcomes(pytester) == dict.fromkeys(("test_marked", "test_window"), ("unmeasured", "unmeasured"))
    result.stdout.fnmatch_lines(["SKIPPED*unmeasured: echo: BCC's Python module cannot be imported*"])
    # The same reason for both services is printed once.
    assert len([line for line in result.outlines if line.strip().startswith("echo, dup: BCC")]) == 1


XFAIL = "".join(
    f"""
@pytest.mark.xfail(strict=True)
{test.strip()}
"""
    for test in ALL.split("\n\n")
    if "healthy" not in test
)


def test_xfail_expects_a_broken_limit_not_an_unmeasured_test(run):
    result = run(XFAIL)
    result.assert_outcomes(xfailed=1, failed=2)
    result.stdout.fnmatch_lines(["unmeasured: echo: only ? wakeups; *", "*test_few*unmeasured"])
    result.stdout.fnmatch_lines(["UNMEASURED *test_few*"])
    run(XFAIL, "--netpoll-unmeasured=skip").assert_outcomes(xfailed=1, skipped=2)


def test_report_mode_does_not_turn_an_xfail_into_an_unexpected_pass(run):
    result = run(XFAIL, "--netpoll=report")
    result.assert_outcomes(xfailed=1, passed=2)
    result.stdout.fnmatch_lines(["*test_few*unmeasured", "*test_broken*xfailed"])
    broken = ALL.strip().partition("\n\n")[0]
    never = f"@pytest.mark.xfail(False, reason='never')\n{broken}"
    run(never, "--netpoll=report").assert_outcomes(passed=1)
    run(never).assert_outcomes(failed=1)
