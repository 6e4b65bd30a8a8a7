"""How often --netpoll-against is wrong on this machine, with CPU bursts beside it; see docs/against.md.

python tests/bench/against.py [RUNS]: this many tests of each kind, each measured separately: head against
itself, head with 20 % more work in its handler, and head with a dup'ed connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RULES = "cpu_seconds:+5%,spurious:+0.02"
WORK = 400  # checksums of a KiB for each message

SERVER = """
package main

import (
	"crypto/sha256"
	"flag"
	"net"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "")
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
		go serve(conn.(*net.TCPConn))
	}
}

func answer(conn net.Conn) {
	buf := make([]byte, 1024)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		for i := 0; i < work; i++ {
			sha256.Sum256(buf)
		}
		conn.Write(buf[:n])
	}
}
"""
ONE_READER = "func serve(conn *net.TCPConn) {\n\tdefer conn.Close()\n\tanswer(conn)\n}\n"
TWO_READERS = """func serve(conn *net.TCPConn) {
	file, _ := conn.File()
	second, _ := net.FileConn(file)
	file.Close()
	go answer(second)
	answer(conn)
}
"""
TESTS = """
import socket
import pytest

@pytest.fixture(scope="session")
def server(go_service):
    return go_service("./server", args=["-addr", "127.0.0.1:{port}"])

@pytest.mark.netpoll
@pytest.mark.parametrize("run", range(%d))
def test_it(server, run):
    with socket.create_connection(server.address, timeout=30) as connection:
        for _ in range(200):
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
"""
BURSTS = """
import random, time
while True:
    end = time.monotonic() + random.uniform(0.02, 0.4)
    while time.monotonic() < end:
        pass
    time.sleep(random.uniform(0.1, 1.5))
"""
HEADS = {
    "itself": (WORK, ONE_READER),
    "20 % more work": (WORK * 6 // 5, ONE_READER),
    "a dup'ed connection": (WORK, TWO_READERS),
}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print("| head | failed a rule | rounds of each test | change of cpu_seconds |\n|---|---|---|---|")
    for name, (work, serve) in HEADS.items():
        with tempfile.TemporaryDirectory() as directory, bursts(2):
            tests = measure(Path(directory), work, serve, runs)
        comparisons = [test["comparison"] for test in tests]
        failed = sum(comparison["outcome"] == "regressed" for comparison in comparisons)
        rounds = sorted(comparison["measured"] for comparison in comparisons)
        changes = sorted(
            number["change"]
            for comparison in comparisons
            for number in comparison["numbers"]
            if number["metric"] == "cpu_seconds"
        )
        for test in tests:
            if test["comparison"]["outcome"] not in ("passed", "regressed"):
                print(f"{test['nodeid']}: {test['reason'] or test['comparison']['notes']}", file=sys.stderr)
        spread = f"{changes[0] * 100:+.1f} % to {changes[-1] * 100:+.1f} %" if changes else "-"
        print(f"| {name} | {failed} of {len(tests)} | {rounds[0]} to {rounds[-1]} | {spread} |", flush=True)


def measure(root: Path, work: int, serve: str, runs: int) -> list[dict[str, Any]]:
    (root / "server").mkdir()
    (root / "go.mod").write_text("module example.com/project\n\ngo 1.19\n")
    (root / "test_it.py").write_text(TESTS % runs)
    write(root, WORK, ONE_READER)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "base"]):
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.com"]
        subprocess.run(["git", *identity, *command], cwd=root, check=True)
    write(root, work, serve)
    options = ["--netpoll-against=main", f"--netpoll-compare-fail={RULES}", "--netpoll-json=now.json"]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", *options]
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    if not (root / "now.json").exists():
        sys.exit(ended.stdout + ended.stderr)
    tests: list[dict[str, Any]] = json.loads((root / "now.json").read_text())["tests"]
    return tests


def write(root: Path, work: int, serve: str) -> None:
    (root / "server" / "main.go").write_text(f"{SERVER}\nconst work = {work}\n\n{serve}")


@contextlib.contextmanager
def bursts(count: int) -> Iterator[None]:
    """This many neighbours, each of which takes a CPU for a while now and then."""
    neighbours = [subprocess.Popen([sys.executable, "-c", BURSTS]) for _ in range(count)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


if __name__ == "__main__":
    main()
