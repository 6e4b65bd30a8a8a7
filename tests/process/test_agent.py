"""The agent as a process: what it answers, what it survives, and how it ends."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.meter import agent_client, checks, privilege
from tests.attacks import WINDOW

pytestmark = pytest.mark.bpf


SIZES = {"max_processes": 4, "max_fds": 64, "uprobes": 0, "answers": 0}

HASH, PERCPU_ARRAY, LRU_HASH, QUEUE = 1, 6, 9, 22  # of enum bpf_map_type


def command() -> list[str]:
    return privilege.command(None, "auto")


@contextlib.contextmanager
def running(**sizes: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert "ready" in ask(process, json.dumps({"id": 0, "do": "load", **SIZES, **sizes}))
        yield process
        process.kill()


@pytest.fixture(scope="module")
def agent() -> Iterator[subprocess.Popen[str]]:
    """One for all tests that it must survive."""
    with running() as process:
        yield process


def ask(agent: subprocess.Popen[str], line: str) -> dict[str, Any]:
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(line + "\n")
    agent.stdin.flush()
    answer: dict[str, Any] = json.loads(agent.stdout.readline())
    return answer


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"id": 1}', "unknown command None"),
        ('{"id": 1, "do": ["watch"]}', "unknown command"),
        ('{"id": 1, "do": "__init__"}', "unknown command"),
        ('{"id": 1, "do": "watch"}', "watch needs pid"),
        ('{"id": 1, "do": "watch", "pid": "1"}', "watch needs pid"),
        ('{"id": 1, "do": "watch", "pid": true}', "watch needs pid"),
        ('{"id": 1, "do": "watch", "pid": -1}', "watch needs pid"),
        ('{"id": 1, "do": "close", "window": 7, "settle_ms": 1}', "window 7 is not open"),
        (
            '{"id": 1, "do": "load", "max_processes": 4, "max_fds": 64, "uprobes": 0, "answers": 0}',
            "already loaded",
        ),
        ("x" * (64 << 10), "not JSON"),
        ("x" * ((64 << 10) + 1), "too long"),
        ("x" * 1_000_000, "too long"),
        ('{"id": 1, "do": "programs"}' + " " * 1_000_000, "too long"),
    ],
    ids=range(16),
)
def test_a_message_it_does_not_understand_is_refused_and_it_lives_on(agent, line, complaint):
    answer = ask(agent, line)
    assert complaint in str(answer["error"])
    assert "processes" in ask(agent, '{"id": 2, "do": "programs"}')["ok"]


def test_an_endless_message_does_not_grow_it(agent):
    process = psutil.Process(agent.pid)
    before = process.memory_info().rss
    for _ in range(64):
        agent.stdin.write("x" * (1 << 20))
    # It has read everything except what the pipe holds.
    assert process.memory_info().rss < before + (4 << 20)
    assert "too long" in str(ask(agent, "")["error"])
    assert "ok" in ask(agent, '{"id": 2, "do": "programs"}')


def test_it_is_not_started_by_a_message_that_is_too_long():
    run = subprocess.run(command(), input="x" * 1_000_000 + "\n", capture_output=True, text=True, timeout=60)
    assert "too long" in json.loads(run.stdout)["failed"]["what"]
    assert (run.returncode, run.stderr) == (1, "")


def test_a_process_that_does_not_run_is_refused(agent):
    gone = subprocess.Popen(["true"])
    gone.wait()
    answer = ask(agent, json.dumps({"id": 1, "do": "watch", "pid": gone.pid}))
    assert answer["error"] == {"what": f"process {gone.pid} is not running", "fix": None}


@pytest.mark.skipif(not checks.BTF.exists(), reason="children are not followed")
def test_children_that_ended_without_a_poll_free_their_slots(ends):
    """The kernel has freed theirs by itself; the agent has not looked at them since."""
    script = "read _; sleep 60 & sleep 60 & wait"
    with running() as agent:
        for _ in range(2):
            with subprocess.Popen(
                ["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True
            ) as service:
                ask(agent, json.dumps({"id": 1, "do": "watch", "pid": service.pid}))
                service.stdin.write(b"\n")
                service.stdin.flush()
                while len(psutil.Process(service.pid).children()) < 2:
                    time.sleep(0.005)
                watched = ask(agent, '{"id": 2, "do": "programs"}')["ok"]["processes"]
                assert len(watched) == 3
                os.killpg(service.pid, signal.SIGKILL)
                assert ends(*(process["pid"] for process in watched))
            assert ask(agent, json.dumps({"id": 3, "do": "unwatch", "pid": service.pid}))["ok"] == {}
            assert ask(agent, '{"id": 4, "do": "programs"}')["ok"] == {"processes": []}


def test_it_ends_when_its_stdin_closes():
    with running() as agent:
        assert agent.stdin is not None
        agent.stdin.close()
        assert agent.wait(60) == 0


def test_it_ends_with_its_stdin_while_compiling_and_loads_nothing():
    compiles = privilege.command(None, "auto", cache="off")
    with subprocess.Popen(compiles, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(json.dumps({"id": 0, "do": "load", **SIZES}) + "\n")
        agent.stdin.flush()
        while "libbcc" not in Path(f"/proc/{agent.pid}/maps").read_text():
            assert agent.poll() is None
            time.sleep(0.005)
        agent.stdin.close()
        assert agent.stdout.read() == "", "not even that it is ready"
        assert agent.wait(60) == 3


def test_it_leaves_ctrl_c_to_pytest(agent):
    agent.send_signal(signal.SIGINT)
    assert "ok" in ask(agent, '{"id": 1, "do": "programs"}')


def test_windows_do_not_grow_it(agent):
    process = psutil.Process(agent.pid)
    before: dict[str, int] = {}
    for number in range(300):
        opened = ask(agent, json.dumps({"id": 1, "do": "open", **WINDOW}))["ok"]
        ask(agent, json.dumps({"id": 2, "do": "close", **opened, "settle_ms": 0}))
        if number == 100:
            before = {"fds": process.num_fds(), "rss": process.memory_info().rss}
    assert process.num_fds() == before["fds"]
    assert process.memory_info().rss < before["rss"] + (2 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into an agent that is root's")
@pytest.mark.parametrize(("answers", "trace"), [(0, 0), (1, 0), (0, 40_000)])
def test_the_estimated_kernel_memory_matches_its_maps(monkeypatch, answers, trace):
    """It grows with the number of processes, and of possible CPUs."""
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    footprint = importlib.import_module("bpf.footprint")
    sizes = {"max_processes": 516, "max_fds": 32}
    wanted = {"answers": answers, "trace": trace}
    with running(**wanted) as few, running(**wanted, **sizes) as many:
        for cpus in (possible_cpus(), 100):
            a, b = bytes_of_maps(few.pid, cpus), bytes_of_maps(many.pid, cpus)
            reckoned = (
                footprint.size(4, 64, cpus, **wanted),
                footprint.size(**sizes, cpus=cpus, **wanted),
            )
            assert b - a == reckoned[1] - reckoned[0]
            assert 0.8 * reckoned[0] < a < reckoned[0]


def possible_cpus() -> int:
    *_, last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace("-", ",").split(",")
    return int(last) + 1


def bytes_of_maps(pid: int, cpus: int) -> int:
    """Their content; for hashes with about what the kernel adds to an entry."""
    total = 0
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = dict(re.findall(r"^(\w+):\s*(\w+)", path.read_text(), re.M))
        if "map_id" in fields:
            each = -(-int(fields["value_size"]) // 8) * 8
            kind = int(fields["map_type"])
            if kind in (HASH, LRU_HASH):
                each += int(fields["key_size"]) + 48
            elif kind == QUEUE:
                each = int(fields["value_size"])
            total += int(fields["max_entries"]) * each * (cpus if kind == PERCPU_ARRAY else 1)
    return total


def test_an_agent_that_hangs_is_stopped_after_its_deadline(monkeypatch):
    monkeypatch.setattr(agent_client, "ANSWER_DEADLINE", 0.3)
    hanging = agent_client.Agent(command(), SIZES)
    hanging.wait_ready()
    os.kill(hanging.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(UnmeasuredError, match="did not answer 'open'"):
        hanging.open()
    assert time.monotonic() - started < 60
    with pytest.raises(UnmeasuredError):
        hanging.open()
    hanging.stop()
    assert not psutil.pid_exists(hanging.pid)


def test_an_agent_with_invalid_responses_is_not_used():
    liar = agent_client.Agent(["sh", "-c", 'echo \'{"ready": {"protocol": 999}}\'; cat'])
    with pytest.raises(UnmeasuredError, match="another protocol"):
        liar.wait_ready()
    liar.stop()
