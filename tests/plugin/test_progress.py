"""Messages while something takes long, on a real terminal, between pytest's own lines."""

from __future__ import annotations

import os
import pty
import re
import sys

import pytest

from pytest_netpoll.meter import agent_client

CONFTEST = """
import sys, pytest
LATE = '''
import os, socket, sys, time
while not os.path.exists("said"): time.sleep(0.01)
time.sleep(0.3)  # longer than between two looks: it is said once
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(60)
'''
@pytest.fixture
def late(go_service):
    return go_service(command=[sys.executable, "-c", LATE, "{port}"], name="late")
"""

TESTS = """
def test_1(): pass
def test_2(late): pass
def test_3(): pass
"""


@pytest.fixture
def on_terminal(pytester):
    """on_terminal("-q") is what pytest writes on a terminal, line by line, without colours."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)

    def on_terminal(*args: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--netpoll=off", *args]
        pid, terminal = pty.fork()
        if pid == 0:
            os.execvpe(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "80"})
        output = b""
        # When a terminal's other side has ended, Linux returns EIO.
        try:
            while data := os.read(terminal, 4096):
                output += data
                if b"netpoll: waiting" in output:
                    (pytester.path / "said").touch()
        except OSError:
            pass
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output.decode()
        text = re.sub(r"\x1b\[[0-9;]*[mK]|\x1b\][^\a\x1b]*(\a|\x1b\\)", "", output.decode())
        return [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]

    return on_terminal


@pytest.mark.parametrize(
    ("args", "before", "after"),
    [
        ((), ["test_it.py ."], "test_it.py .."),
        (("-q",), ["."], ".."),
        (("-v",), ["test_it.py::test_1 PASSED", "test_it.py::test_2"], "test_it.py::test_2 PASSED"),
        (("-s",), ["test_it.py ."], "test_it.py .."),
    ],
    ids=["default", "-q", "-v", "-s"],
)
def test_waiting_is_announced_on_its_own_line_and_progress_continues_after_it(
    on_terminal, args, before, after
):
    lines = [re.sub(r" +\[ *\d+%\]", "", line) for line in on_terminal(*args)]
    said = next(i for i, line in enumerate(lines) if line.startswith("netpoll: waiting"))
    assert lines[said].startswith("netpoll: waiting for late: ")
    assert lines[said - len(before) : said] == before
    assert lines[said + 1] == after
    assert lines.count(lines[said]) == 1


READY = {
    "protocol": agent_client.PROTOCOL,
    **dict.fromkeys(("bcc", "python", "kernel", "machine", "program"), ""),
    "capabilities": [],
    **dict.fromkeys(("follows_children", "typed", "sees_sockets", "sees_held_writes"), True),
    **dict.fromkeys(("no_cpu_samples", "no_arrivals", "not_cached")),
    **dict.fromkeys(("startup_seconds", "resident_bytes"), 1),
}
AGENT = """
import json, os, sys, time
def wait():
    while not os.path.exists({noticed!r}): time.sleep(0.01)
sys.stdin.readline()  # what to load
if {slow!r} == "start": wait()
print(json.dumps({{"ready": {ready}}}), flush=True)
for line in sys.stdin:
    if {slow!r} in ("answer", "rest"): wait()
    print(json.dumps({{"id": json.loads(line)["id"], "ok": {{"window": 1}}}}), flush=True)
"""


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        ("start", ["waiting for the eBPF agent to start; it compiles the BPF program unless that is cached"]),
        ("answer", ["waiting for the agent to answer 'open'"]),
        (
            "rest",
            ["waiting for the services to come to rest: the agent looks at their parked goroutines ('open')"],
        ),
        ("nothing", []),
    ],
)
def test_waiting_for_a_slow_agent_is_announced(tmp_path, slow, expected):
    said: list[str] = []
    noticed = tmp_path / "noticed"

    def say(text):
        said.append(text)
        if text in expected:
            noticed.touch()

    code = AGENT.format(slow=slow, noticed=str(noticed), ready=READY)
    agent = agent_client.Agent([sys.executable, "-c", code], say=say)
    try:
        agent.wait_ready()
        agent.open(parked=slow == "rest")
    finally:
        agent.stop()
    # Waiting is also announced on a machine so busy that Python itself takes a second to start.
    assert [text for text in said if text in expected] == expected
