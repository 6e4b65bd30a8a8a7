"""An agent that answers what a test wants, without a process; and a real one's answers, to be changed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from pytest_netpoll.meter import agent_client
from pytest_netpoll.meter.doubts import LOSSES
from pytest_netpoll.model.metrics import COUNTERS

ABOUT: dict[str, Any] = {
    "pid": 4242,
    "root": 4242,
    "executable": "/bin/true",
    "exited": False,
    "unwatched": 0,
    "foreign": False,
    "calibration": {
        "layout": "go1.25",
        "epfd": 4,
        "proven": 3,
        "unproven": 0,
        "more_pollers": 0,
        "why_not": None,
        "others": 0,
    },
    "goready": True,
    "scheduler": False,
}
WAKEUP = {
    "direction": "read",
    "syscall": "read",
    "fd_type": "tcp",
    "local": "127.0.0.1:80",
    "peer": None,
    "stack": [["/bin/true", 4096]],
}
MEASURED = {
    **ABOUT,
    "counters": {
        **{name: 7 for name in COUNTERS if name != "lost"},
        **dict.fromkeys(LOSSES, 0),
        "lost_offenders": 0,
    },
    "histogram": {"130": 14},
    "latency_max_ns": 9000,
    "delays": {
        name: {"histogram": {"130": 3}, "max_ns": 4000, "budget": {"130": [3000, 3000, 0, 0]}}
        for name in ("queue_delay", "poll_delay", "handling", "response")
    },
    "requests": 3,
    "answered": 3,
    "unanswered": 0,
    "strangers": 0,
    "ready_calls": 5,
    "deadline_wakeups": 1,
    "dispatches": 20,
    "runq_max": 2,
    "events_per_poll": {"1": 4, "3": 1},
    "p_looks": 20,
    "p_running": 5,
    "sched_latency": [[256, 320, 6], [1024, 1280, 2]],
    "mutex_wait": 3000,
    "lock_wait": None,
    "unprobed": 0,
    "ended": [],
    "io_outcomes": {"data": 5, "EAGAIN": 2},
    "futile": [["read", "EAGAIN", 1]],
    "parked": None,
    "mutexes": None,
    "slowest": [{**WAKEUP, "latency_ns": 9000, "at_ns": 5000, "goid": [18, 0], "parts": []}],
    "slow_answers": {
        "queue_delay": [],
        "response": [
            {**WAKEUP, "latency_ns": 9000, "at_ns": 5000, "goid": [18, 0], "parts": [2000, 3000, 0, 4000]}
        ],
    },
    "offenders": [
        {
            **WAKEUP,
            "offence": "spurious",
            "count": 7,
            "outcome": None,
            "events": ["EPOLLIN"],
            "bytes": None,
            "registered_twice": False,
            "error_queue": False,
            "locked": False,
            "filled": False,
            "held_ns": None,
            "woken_stack": [],
        }
    ],
}
PROCESSES = {"processes": [ABOUT]}
CLOSED = {
    "duration_ns": 1_000_000,
    "services": {"4242": [MEASURED]},
    "timelines": {"4242": [[1.0, *range(17), 3, 0.5, 2_000_000, 4, 0.5, 0.1]]},
    "throttled": {
        "4242": {"unknown": None, "cgroups": [["/x", 5, 1, 1_000_000, 15, 4, 3_000_000, 20_000, 100_000]]}
    },
    "times": {"4242": {"cpu_ns": 1_000_000, "run_delay_ns": 1000}},
    "dropped_datagrams": {"4242": 0},
}

READY = json.dumps(
    {
        "ready": {
            "protocol": agent_client.PROTOCOL,
            "bcc": "0.26.0",
            "python": "3.11.2",
            "kernel": "6.18.0",
            "machine": "x86_64",
            "capabilities": [],
            "follows_children": True,
            "typed": True,
            "no_cpu_samples": None,
            "sees_sockets": True,
            "sees_held_writes": True,
            "program": "cache",
            "not_cached": None,
            "no_arrivals": None,
            "startup_seconds": 0.5,
            "resident_bytes": 1 << 26,
        }
    }
).encode()


class Liar:
    """An agent without a process: it answers its lines to any request."""

    pid = 4241

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines

    def send(self, line: bytes) -> None: ...

    def receive(self, _: float) -> bytes | None:
        return self.lines.pop(0) if self.lines else None

    def hang_up(self) -> None: ...

    def kill(self) -> None: ...

    def end(self) -> None: ...

    def status(self) -> str:
        return "1"

    def said(self) -> str:
        return ""


SERVICE = SimpleNamespace(
    name="server",
    pid=4242,
    executable="/bin/true",
    go_version=None,
    gomaxprocs=None,
    cpus=None,
    stopped=False,
    attached=False,
    check_alive=lambda _: None,
)
