"""--netpoll-against: each test is measured in turns on the checkout's services and on a revision's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import undisturbed

ROOT = Path(__file__).parents[2]
SERVER = """
package main

import (
	"flag"
	"net"
	"os"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "")
	backend := flag.String("backend", "", "where what is read is sent first")
	flag.Parse()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		panic(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go serve(conn.(*net.TCPConn), *backend)
	}
}

func serve(conn *net.TCPConn, backend string) {
	defer conn.Close()
	if backend != "" {
		next, err := net.Dial("tcp", backend)
		if err != nil {
			return
		}
		defer next.Close()
		pass(conn, func(data []byte) {
			next.Write(data)
			next.Read(data)
		})
		return
	}
	read(conn)
}

func pass(conn *net.TCPConn, before func([]byte)) {
	for buf := make([]byte, 4096); ; {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if string(buf[:n]) == "news" && !knowsNews {
			os.Exit(3)
		}
		before(buf[:n])
		conn.Write(buf[:n])
	}
}

"""
HEALTHY = """
package main

import "net"

const knowsNews = false

func read(conn *net.TCPConn) { pass(conn, func([]byte) {}) }
"""
# Two goroutines wait for the same socket through two descriptors: both are woken, one for nothing.
DUP = """
package main

import "net"

const knowsNews = true

func read(conn *net.TCPConn) {
	file, _ := conn.File()
	second, _ := net.FileConn(file)
	file.Close()
	defer second.Close()
	go pass(second.(*net.TCPConn), func([]byte) {})
	pass(conn, func([]byte) {})
}
"""
TESTS = """
import socket

def connected(service): return socket.create_connection(service.address, timeout=20)

def send(connection, service, count=40, message=b"ping"):
    for _ in range(count):
        connection.sendall(message)
        assert connection.recv(64) == message
        fall_asleep(service.pid)

from tests.waiting import fall_asleep

@pytest.fixture(scope="session")
def server(go_service): return go_service("./server", args=["-addr", "127.0.0.1:{port}"])

@pytest.fixture(scope="session")
def same(go_service): return go_service("./same", args=["-addr", "127.0.0.1:{port}"])
"""
RULES = "--netpoll-compare-fail=spurious:+0.02"
AGAINST = ("--netpoll-against=main", "--netpoll-rounds=6", RULES)


@pytest.fixture
def project(pytester: pytest.Pytester, run: Any) -> Path:  # noqa: ARG001 - it moves HOME
    """A repository with healthy services on main, and with a dup'ed connection in one of them in the
    checkout."""
    root = pytester.path
    (root / "go.mod").write_text("module example.com/project\n\ngo 1.19\n")
    for name in ("server", "same"):
        (root / name).mkdir()
        (root / name / "main.go").write_text(SERVER)
        (root / name / "read.go").write_text(HEALTHY)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "go.mod", "server", "same")
    git(root, "commit", "-q", "-m", "healthy")
    git(root, "checkout", "-q", "-b", "topic")
    (root / "server" / "read.go").write_text(DUP)
    return root


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def records(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())["tests"]
    return {record["nodeid"].partition("::")[2]: record for record in found}


@pytest.mark.bpf
@undisturbed
def test_regressions_against_the_base_fail_and_tests_that_cannot_be_compared_are_listed(
    run: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project / "summary.md"))
    (project / "summary.md").unlink(missing_ok=True)  # of an earlier attempt
    result = run(
        TESTS
        + """
@netpoll()
def test_dup(server):
    with connected(server) as connection: send(connection, server)

@netpoll(runs=2)
def test_same(same, netpoll):
    with netpoll.measure() as window, connected(same) as connection: send(connection, same)
    assert window[same].wakeups >= 30

@pytest.fixture(scope="module")
def kept(same):
    with connected(same) as connection: yield connection

@netpoll()
def test_kept(kept, same): send(kept, same)

@pytest.fixture
def anew(same):
    with connected(same) as connection: yield connection

@netpoll()
def test_anew(anew, same): send(anew, same)

@netpoll(service="server")
def test_news(server):
    with connected(server) as connection: send(connection, server, message=b"news")

@netpoll()
def test_in_the_test(go_service):
    own = go_service("./same", args=["-addr", "127.0.0.1:{port}"], name="own")
    with connected(own) as connection: send(connection, own)

@pytest.fixture(scope="module")
def front(go_service, same):
    return go_service("./same", name="front",
        args=["-addr", "127.0.0.1:{port}", "-backend", f"127.0.0.1:{same.port}"])

# Each front has the backend of its own side.
@netpoll()
def test_front(front, same):
    with connected(front) as connection: send(connection, front)
    assert front.address != same.address

# Its limits hold, and nothing of it has another side.
@netpoll()
def test_without_service(): pass

def test_plain(server): assert server.running

calls = []

# Head, base; base, head.
@netpoll()
def test_wrong(same):
    with connected(same) as connection: send(connection, same)
    calls.append(same)
    assert len(calls) < 4
""",
        *AGAINST,
        "--netpoll-json=now.json",
        "--netpoll-markdown=delta.md",
        "-v",
    )
    found = records(project / "now.json")
    assert found.pop("test_wrong")["outcome"] == "failed"
    result.stdout.fnmatch_lines(["The call that failed was on the head, not on base (main), in round 2."])
    assert result.stdout.str().count("The call that failed") == 1
    outcomes = {
        name: (record["outcome"], record["comparison"]["outcome"], record["comparison"]["measured"])
        for name, record in found.items()
    }
    assert outcomes == {
        "test_dup": ("failed", "regressed", 6),
        "test_same": ("passed", "passed", 6),
        "test_kept": ("unmeasured", "unmeasured", 6),
        "test_anew": ("passed", "passed", 6),
        "test_news": ("passed", "new", 1),
        "test_in_the_test": ("passed", "passed", 6),
        "test_front": ("passed", "passed", 6),
        "test_without_service": ("passed", "new", 1),
    }, result.stdout.str()
    result.assert_outcomes(passed=7, failed=3)
    (regression,) = found["test_dup"]["comparison"]["regressions"]
    assert regression["baseline"] == 0
    assert regression["measured"] > 0.4
    numbers = {number["metric"]: number for number in found["test_dup"]["comparison"]["numbers"]}
    assert 0.4 < numbers["spurious"]["low"] <= numbers["spurious"]["high"] < 0.6
    assert numbers["latency_p50"]["base"] > 0
    front = found["test_front"]["comparison"]
    assert {number["service"] for number in front["numbers"]} == {"front", "same"}
    [note] = found["test_news"]["comparison"]["notes"]
    assert "base (main) does not pass this test: " in note
    assert "(server ended: exit status 3)" in note
    result.stdout.fnmatch_lines(
        [
            "server: spurious 0.0 % → *: worse than base (main) by more than +0.02*",
            "*same was not compared: base (main) saw no traffic of its own*",
            "*make the fixture 'kept' (module scope) function-scoped*",
            "*netpoll: base main (* → head*",
            "*test_dup *spurious*0.0 %*WORSE*",
            "3 of 8 tests were not compared:",
            "  test_it.py::test_kept: same was not compared: *",
            "  test_it.py::test_news: base (main) does not pass this test: *",
            "  test_it.py::test_without_service: no service is built by go_service *",
        ]
    )
    environment = json.loads((project / "now.json").read_text())["environment"]
    assert environment["commit"] == git(project, "rev-parse", "HEAD")
    assert environment["branch"] == "topic"
    delta = (project / "delta.md").read_text()
    assert (project / "summary.md").read_text().startswith(delta)
    first, *_ = [line for line in delta.splitlines() if line.startswith("| ❌")]
    assert "`test_it.py::test_dup` | `server` | `spurious` | 0.0 % |" in first
    assert "No change in " in delta
    assert git(project, "worktree", "list").count("\n") == 0


@pytest.mark.bpf
@undisturbed
def test_against_works_with_workers_reruns_and_several_toolchains(run: Any, project: Path) -> None:
    tools = sorted((ROOT / ".tools").glob("go-*/bin/go"))
    if len(tools) < 2:
        pytest.skip("no two Go toolchains: run .ci/setup test")
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_rerunfailures")
    result = run(
        TESTS
        + """
failed = []

@netpoll()
def test_dup(server):
    with connected(server) as connection: send(connection, server)

@netpoll()
def test_flaky(same, netpoll_toolchain):
    with connected(same) as connection: send(connection, same)
    if netpoll_toolchain not in failed:
        failed.append(netpoll_toolchain)
        raise AssertionError("once")
""",
        *AGAINST,
        *(f"--netpoll-go={tool.parents[1]}" for tool in (tools[-1], tools[0])),
        "-n2",
        "--reruns=1",
        "--only-rerun=once",
        "--netpoll-json=now.json",
        plugins=("xdist", "rerunfailures"),
    )
    result.stdout.fnmatch_lines(["*2 failed, 2 passed, 2 rerun in *"])
    for name, record in records(project / "now.json").items():
        assert record["comparison"]["measured"] == 6, name
        worse = record["comparison"]["outcome"] == "regressed"
        assert worse == name.startswith("test_dup"), name
    assert git(project, "worktree", "list").count("\n") == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--netpoll-against=nope"], "*--netpoll-against=nope: there is no such commit*"),
        (["--netpoll-against=main", "--netpoll-compare=main"], "*a test has one comparison*"),
        (["--netpoll-rounds=3"], "*3 rounds have no interval of 95 %: give at least 6*"),
        (["--netpoll-rounds=9:8"], "*'9:8' is not MIN:MAX*"),
    ],
)
def test_a_wrong_option_is_a_usage_error(run: Any, project: Path, options: list[str], expected: str) -> None:
    assert project.is_dir()
    result = run("def test_it(): pass", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([expected])


def test_nothing_is_built_if_nothing_is_measured(run: Any, project: Path) -> None:
    (project / "server" / "main.go").write_text(SERVER)
    source = TESTS + "def test_it(server): assert server.running\n"
    result = run(source, *AGAINST, "--netpoll=off")
    result.assert_outcomes(passed=1)
    assert "checking out" not in result.stdout.str()


def test_the_export_command_knows_its_formats() -> None:
    command = [sys.executable, "-m", "pytest_netpoll", "export", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in ("markdown", "github-action-benchmark", "bencher", "sarif", "code-climate"):
        assert name in text
