"""Rules that a test forbids, in a user's project."""

from __future__ import annotations

import json

import pytest

from tests.waiting import undisturbed


@pytest.mark.bpf
@undisturbed
def test_a_forbidden_rule_fails_with_its_line_and_unchecked_rules_are_listed(run, pytester):
    pytester.makeini("[pytest]\nnetpoll_forbid = all\n")
    result = run(
        """
@netpoll
def test_healthy(echo, ping): ping(echo, 20)

@netpoll
def test_wasteful(dup, ping): ping(dup, 20)

@netpoll(allow="second-reader")
def test_allowed(dup, ping): ping(dup, 20)

@netpoll(forbid="deadline-churn")
def test_unknown(echo, ping): ping(echo, 20)
""",
        "--netpoll-goready=off",
        "--netpoll-json=report.json",
    )
    result.assert_outcomes(passed=2, failed=2)
    # The message has the code, the line and the fix; the evidence is only below it.
    result.stdout.fnmatch_lines(
        ["dup: NP101 second-reader at *kit/kit.go:*", "  fix: read from one goroutine only*"]
    )
    text = " ".join(result.stdout.str().split())
    assert text.count("wakeups found nothing to read or write") == 1
    result.stdout.fnmatch_lines(
        [
            "dup: NP101 second-reader: * of *",
            "*echo: NP302 deadline-churn was not checked: deadline wakeups were not counted*",
            "*NP302 deadline-churn was not checked in 4 tests: deadline wakeups were not*",
            "*fix: --netpoll-goready=on*",
        ]
    )
    tests = json.loads((pytester.path / "report.json").read_text())["tests"]
    found = {t["nodeid"].rpartition("::")[2]: t for t in tests}
    assert {name: test["outcome"] for name, test in found.items()} == {
        "test_healthy": "passed",
        "test_wasteful": "failed",
        "test_allowed": "passed",
        "test_unknown": "unmeasured",
    }
    for name, forbidden in (("test_wasteful", True), ("test_allowed", False)):
        [rule] = found[name]["services"][0]["rules"]
        assert (rule["code"], rule["forbidden"]) == ("NP101", forbidden)
    assert found["test_healthy"]["services"][0]["rules"] == []


@pytest.mark.parametrize("where", ["marker", "option", "ini"])
def test_an_unknown_rule_is_a_usage_error(run, pytester, where):
    if where == "ini":
        pytester.makeini("[pytest]\nnetpoll_forbid = second-raeder\n")
    marker = '(forbid="second-raeder")' if where == "marker" else ""
    options = ["--netpoll-forbid=second-raeder"] if where == "option" else []
    result = run(f"@netpoll{marker}\ndef test_it(): pass", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no rule 'second-raeder', did you mean 'second-reader'?" in result.stderr.str()
