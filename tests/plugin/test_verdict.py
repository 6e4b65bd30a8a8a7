"""Broken limits, unmeasured tests, and tests whose own assertions fail; with real services and real eBPF."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_netpoll.model.metrics import METRICS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.bpf

ALL = """
@netpoll(max_spurious=0.05)
def test_healthy(echo, ping): ping(echo, 100)

@netpoll(max_spurious=0.05, max_latency_p99="5s")
def test_wasteful(dup, ping): ping(dup, 100)

@pytest.mark.xfail(strict=True)
@netpoll(max_spurious=0.05)
def test_expected(dup, ping): ping(dup)

@netpoll(max_spurious=0)
def test_failed(dup, ping): ping(dup); assert 1 == 2, "mine"

@netpoll(max_spurious=0)
def test_skipped(echo): pytest.skip("no")

@netpoll(max_spurious=0.05)
def test_few(echo, ping): ping(echo, 2)

@netpoll(max_ready_calls=1)
def test_uncounted(echo, ping): ping(echo)

@netpoll(max_spurious=0.05)
def test_not_go(go_service): go_service(command="python3 -m http.server --bind 127.0.0.1 {port}")

@netpoll(max_spurious=0.05)
def test_doomed(start, ping):
    doomed = start("echo", name="doomed")
    ping(doomed)
    os.kill(doomed.pid, signal.SIGQUIT)
    while doomed.running: time.sleep(0.01)

@netpoll(max_spurious=0.05, service="echo")
def test_one_of_two(echo, dup, ping): ping(echo); ping(dup)

@netpoll(max_spurious=0.05, service="nobody")
def test_nobody(echo, ping): ping(echo)

def test_stretch(echo, ping, netpoll):
    with netpoll.measure() as outer:
        ping(echo, 20)
        with netpoll.measure() as inner:
            ping(echo, 30)
    assert 30 <= inner[echo].wakeups <= 32
    assert 50 <= outer["echo"].wakeups <= 54
    assert inner[echo].spurious_wakeups == 0

def test_open(echo, netpoll):
    with netpoll.measure() as window:
        window[echo]

def test_unknown(echo, netpoll):
    with netpoll.measure() as window: pass
    window["other"]
"""


@pytest.fixture(scope="module")
def whole(run_once):
    """A run of ALL; most tests here look at a part of it."""
    return run_once(
        ALL,
        *("-v", "--netpoll-goready=off", "--netpoll-json=out/report.json", "--junitxml=junit.xml"),
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY="summary.md",
        GITHUB_WORKSPACE=str(ROOT),
    )


@pytest.fixture
def result(whole):
    return whole.result


def reported(whole):
    """The JSON report's tests, by name."""
    tests = json.loads((whole.path / "out/report.json").read_text())["tests"]
    return {test["nodeid"].partition("::")[2]: test for test in tests}


def test_a_healthy_service_passes_and_a_wasteful_one_fails_with_its_line(result):
    result.stdout.fnmatch_lines(["*::test_healthy PASSED*", "*::test_wasteful FAILED*"])
    result.stdout.fnmatch_lines(
        [
            "*_ test_wasteful _*",
            "dup: spurious * % (* of * wakeups) > max 5.0 %",
            "*- netpoll -*",
            "dup (pid *",
            "*spurious wakeups (read on tcp *",
            "*parked at",
            "*kit.go:*services/kit.Echo*",
            "*test_wasteful*FAILED",
            "*test_healthy*0.0 %*passed",
        ]
    )


def test_what_pytests_message_says_is_not_repeated_below_it(result):
    lines = result.outlines
    first = next(i for i, line in enumerate(lines) if "_ test_wasteful _" in line)
    assert sum(line.startswith("dup: spurious ") for line in lines[first : first + 12]) == 1


def test_xfail_expects_a_broken_limit(result):
    result.stdout.fnmatch_lines(["*::test_expected XFAIL*"])


def test_a_test_that_fails_by_itself_keeps_its_failure_and_shows_what_the_service_printed(result):
    result.stdout.fnmatch_lines(
        [
            "*_ test_failed _*",
            "*AssertionError: mine*",
            "*- netpoll -*",
            "dup: spurious * > max 0.0 %",
            "*output of service dup*",
            "ready on *",
        ]
    )
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_failed - AssertionError: mine*"])


def test_a_skip_stays_a_skip(result):
    result.stdout.fnmatch_lines(["*::test_skipped SKIPPED*"])


def test_off_measures_nothing(run):
    result = run("@netpoll(max_spurious=0.05)\ndef test_it(dup, ping): ping(dup)", "--netpoll=off")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*wakeups*")


def test_too_few_wakeups_are_unmeasured_which_fails_or_skips(result, run):
    result.stdout.fnmatch_lines(["*::test_few UNMEASURED*", "unmeasured: echo: only ? wakeups; *"])
    source = "@netpoll(max_spurious=0.05)\ndef test_it(echo, ping): ping(echo, 2)"
    skipped = run(source, "--netpoll-unmeasured=skip", "-rs")
    skipped.assert_outcomes(skipped=1)
    skipped.stdout.fnmatch_lines(["SKIPPED*test_it.py:3: unmeasured: echo: only ? wakeups*; fix: send*"])


def test_a_metric_that_was_not_counted_is_unmeasured(result):
    result.stdout.fnmatch_lines(
        ["unmeasured: echo: ready_calls was not measured: *", "  fix: --netpoll-goready=on"]
    )


def test_a_program_that_is_not_go_is_unmeasured(result):
    result.stdout.fnmatch_lines(["unmeasured: python3: * is not a Go program*"])


def test_a_service_that_dies_during_the_test_fails_it_and_its_last_words_are_shown(result):
    result.stdout.fnmatch_lines(
        [
            "doomed: *'doomed' ended during the test: exit status 2: SIGQUIT*",
            "*output of service doomed*",
            "*0x*",
        ]
    )


def test_without_a_service_limits_are_unmeasured(run):
    result = run("@netpoll(max_spurious=0.05)\ndef test_it(): pass")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["unmeasured: no Go service ran during the test", "  fix: use the go_service *"]
    )


def test_limits_may_bind_one_service_only(result):
    result.stdout.fnmatch_lines(["*::test_one_of_two PASSED*", "*::test_nobody UNMEASURED*"])
    result.stdout.fnmatch_lines(["unmeasured: no service named 'nobody' was measured*"])


def test_part_of_a_test_can_be_measured(result):
    result.stdout.fnmatch_lines(
        ["*::test_stretch PASSED*", "*::test_open FAILED*", "*::test_unknown FAILED*"]
    )
    result.stdout.fnmatch_lines(["*the window is still open*", "*no service 'other' was measured*"])


def test_json_report_and_junit_contain_the_numbers(whole):
    assert whole.result.ret == 1
    report = json.loads((whole.path / "out/report.json").read_text())
    assert report["schema"] == "pytest-netpoll/1"
    tests = reported(whole)
    healthy, wasteful = tests["test_healthy"], tests["test_wasteful"]
    environment = report["environment"]
    for known in ("plugin", "python", "agent_python", "kernel", "machine", "bcc", "cpus", "cpus_usable"):
        assert environment[known], known
    assert environment["go_versions"] == [healthy["services"][0]["go_version"]]
    assert environment["attached"][0]["cost"]
    assert (healthy["nodeid"], healthy["outcome"]) == ("test_it.py::test_healthy", "passed")
    assert wasteful["outcome"] == "failed"
    assert wasteful["limits"] == {"max_spurious": 0.05, "max_latency_p99": 5_000_000_000, "min_wakeups": 10}
    [breach] = wasteful["breaches"]
    assert (breach["service"], breach["metric"], breach["limit"]) == ("dup", "spurious", 0.05)
    for test in (healthy, wasteful):
        [service] = test["services"]
        assert list(service["metrics"]) == list(METRICS)
        assert service["pid"] > 0
        assert service["go_version"].startswith("go1.")
    assert healthy["services"][0]["metrics"]["productive_wakeups"] == pytest.approx(101, abs=3)
    assert breach["measured"] == wasteful["services"][0]["metrics"]["spurious"]
    offender = wasteful["services"][0]["offenders"][0]
    assert (offender["direction"], offender["syscall"]) == ("read", "read")
    assert offender["stack"][0]["function"] == "services/kit.Echo"
    junit = (whole.path / "junit.xml").read_text()
    assert f'name="netpoll.dup.spurious" value="{breach["measured"]}"' in junit


def test_github_gets_a_step_summary_and_an_annotation_at_the_go_line(whole):
    assert "| ❌ | `test_it.py::test_wasteful` |" in (whole.path / "summary.md").read_text()
    whole.result.stdout.fnmatch_lines(
        [
            "::error file=tests/bpf/services/kit/kit.go,line=*,title=netpoll%3A *test_wasteful and 1 more*::"
            "* spurious wakeups *%0Adup: * wakeups found nothing to read or write*"
        ]
    )


@pytest.mark.parametrize("options", [("-q",), ("-p", "no:terminal")], ids=" ".join)
def test_github_gets_both_whatever_the_terminal_shows(run, pytester, monkeypatch, options):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    # pytest's root is not the repository's.
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    result = run("@netpoll(max_spurious=0.05)\ndef test_it(dup, ping): ping(dup)", *options)
    assert result.ret == 1
    assert "| ❌ | `test_it.py::test_it` |" in (pytester.path / "summary.md").read_text()
    file = f"{pytester.path.name}/test_it.py"
    result.stdout.fnmatch_lines([f"::error file={file},line=3,title=*::dup: spurious *services/kit.Echo*"])


def test_the_failure_in_junit_has_the_go_line_and_the_diagnosis(whole):
    root = ElementTree.parse(whole.path / "junit.xml").getroot()
    (case,) = (case for case in root.iter("testcase") if case.get("name") == "test_wasteful")
    (failure,) = case.iter("failure")
    assert (failure.get("message") or "").startswith("Failed: dup: spurious ")
    for expected in ("max 5.0 %", "kit.go:", "services/kit.Echo", "dup: ", "found nothing to read or write"):
        assert expected in " ".join((failure.text or "").split())


def test_a_service_that_printed_nothing_has_no_heading(run):
    result = run("def test_it(go_service): go_service(command='sleep 60', ready=None); assert 1 == 2")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*output of service*")


def test_an_agents_failure_is_reported_once_for_all_services(run):
    source = "@netpoll(max_spurious=0.05)\ndef test_it(echo, dup, ping): ping(echo)"
    result = run(source, "--netpoll-python=/no/python")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["unmeasured: echo, dup: there is no Python at /no/python*"])
    # In pytest's text, in ours, and in its summary.
    assert len([line for line in result.outlines if "there is no Python" in line]) <= 3


def test_a_service_of_other_tests_is_not_judged(run):
    result = run(
        """
@netpoll(max_spurious=0.05)
def test_dup_runs_but_is_anothers(request, echo, ping):
    ping(request.getfixturevalue("dup"))
    ping(echo)

@netpoll(max_spurious=0.05)
def test_echo(echo, ping): ping(echo)

@netpoll(max_spurious=0.05)
def test_with_our_fixtures(echo, ping, netpoll, go_service, request): ping(echo)
"""
    )
    # The first one made the service itself, so it is judged by it; the others are not.
    result.assert_outcomes(failed=1, passed=2)


def test_a_report_that_cannot_be_written_fails_the_run_with_a_message(run):
    result = run("@netpoll()\ndef test_it(echo, ping): ping(echo)", "--netpoll-json=/proc/no/report.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*report could not be written to /proc/no/report.json*"])


def test_junit_has_each_number_once_however_the_test_ended(run, pytester):
    run(
        """
@netpoll(max_spurious=0.05)
def test_wasteful(dup, ping): ping(dup)

@netpoll(max_spurious=0.05)
def test_unmeasured(echo): pass

@pytest.mark.xfail
@netpoll(max_polls=1)
def test_expected(echo, ping): ping(echo)

@netpoll()
@pytest.mark.parametrize("text", ["\x1b<&"], ids=["\x1b<&"])
def test_healthy(echo, ping, text): ping(echo)
""",
        "--junitxml=junit.xml",
    )
    root = ElementTree.parse(pytester.path / "junit.xml").getroot()
    (suite,) = root.findall("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    outcomes = []
    for case in suite.findall("testcase"):
        (properties,) = case.findall("properties")
        assert case[0] is properties  # where the schema wants it
        names = [entry.get("name") for entry in properties]
        assert len(set(names)) == len(names) > 1
        outcomes.append((properties[0].get("name"), properties[0].get("value")))
    assert outcomes == [("netpoll.outcome", how) for how in ("failed", "unmeasured", "failed", "passed")]


@pytest.mark.parametrize("options", [(), ("-q",), ("-v",)], ids=["plain", "-q", "-v"])
def test_the_terminal_is_readable_at_80_columns_without_colour(run, monkeypatch, options):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "BUILD_NUMBER"):  # there pytest cuts no line of its summary
        monkeypatch.delenv(name, raising=False)
    result = run(
        """
@netpoll(max_spurious=0.05, max_polls=1, max_events=1, max_latency_p99="1us", max_latency_p50="1us")
def test_first_builds(dup, ping): ping(dup, 100)

@netpoll()
def test_second_builds(echo, ping): ping(echo)
""",
        "--color=no",
        *options,
    )
    lines = result.outlines
    assert "\x1b" not in "".join(lines)
    # Below pytest's own header, whose lines with interpreter and plugins may be long.
    ours = [
        line for line in lines if not line.startswith(("platform ", "plugins: ", "rootdir: ", "cachedir: "))
    ]
    # Messages about what takes long, as anything may on a busy machine, are on their own lines.
    taking_long = re.compile("netpoll: (building|waiting) ")
    assert all(map(taking_long.match, filter(taking_long.search, lines)))
    assert [line for line in ours if len(line) > 80 and not taking_long.match(line)] == []
    begin = next(i for i, line in enumerate(lines) if line.startswith("____"))
    end = next(i for i, line in enumerate(lines) if i > begin and line.startswith("===="))
    assert end - begin <= 40
    assert not any("hidden" in line for line in lines)
