"""What a start of the agent costs: compiled and from the cache, one and as many as pytest-xdist has workers.

Each number is for all agents of a row together. They start at the same moment.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tables
from rows import RowError
from tabulate import tabulate

from pytest_netpoll.meter import privilege
from pytest_netpoll.options import Config

AGENTS = (1, 8)
WAYS: Sequence[tuple[Literal["off"] | None, str]] = (("off", "compiled"), (None, "from the cache"))


@dataclass(frozen=True)
class Start:
    """wall: s from the first one's fork until all are ready. cpu: s, to their end. The others: MiB."""

    wall: float
    cpu: float
    resident: float
    proportional: float


def start(agents: int, cache: Literal["off"] | None) -> Start:
    """RowError if one isn't ready, or started in another way."""
    config = Config.default()
    argv = privilege.command(config.python, config.sudo, config.agent, cache)
    sizes = {"max_processes": config.max_processes, "max_fds": config.max_fds, "uprobes": 1, "answers": 0}
    load = json.dumps({"id": 0, "do": "load", **sizes}) + "\n"
    before, started = used(), time.monotonic()
    running = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(agents)
    ]
    try:
        for agent in running:
            assert agent.stdin is not None
            agent.stdin.write(load)
            agent.stdin.flush()
        said = [json.loads(agent.stdout.readline()) for agent in running if agent.stdout is not None]
        wall = time.monotonic() - started
        memory = [rollup(agent.pid) for agent in running]
    finally:
        for agent in running:
            agent.communicate()
    for answer in said:
        if "ready" not in answer:
            raise RowError(answer["failed"]["what"])
        if (answer["ready"]["program"] == "cache") != (cache is None):
            raise RowError(f"the program was {answer['ready']['program']}: {answer['ready']['not_cached']}")
    return Start(wall, used() - before, *map(sum, zip(*memory, strict=True)))


def used() -> float:
    """s of CPU that ended processes used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rollup(pid: int) -> tuple[float, float]:
    """(resident, proportional) memory, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines}
    return sizes["Rss:"], sizes["Pss:"]


def measure(rounds: int) -> str:
    """A table, and a line about it. The rows take turns, in changing order. Raises RowError."""
    if os.geteuid() != 0:
        raise RowError("needs root: sudo make bench")
    rows = [(agents, way) for agents in AGENTS for way in WAYS]
    start(1, "off")  # so that files are in the page cache
    try:
        start(1, None)
    except RowError:
        start(1, None)  # it has filled the cache
    found: dict[tuple[int, str], list[Start]] = {(agents, name): [] for agents, (_, name) in rows}
    for number in range(rounds):
        for agents, (cache, name) in rows if number % 2 == 0 else reversed(rows):
            found[agents, name].append(start(agents, cache))
    table = tabulate(
        [
            [
                agents,
                name,
                tables.spread([each.wall for each in starts], ".2f"),
                tables.spread([each.cpu for each in starts], ".2f"),
                tables.spread([each.resident for each in starts], ".0f"),
                tables.spread([each.proportional for each in starts], ".0f"),
            ]
            for (agents, name), starts in found.items()
        ],
        headers=["agents", "", "all ready (s)", "CPU (s)", "resident (MiB)", "proportional share (MiB)"],
        tablefmt="github",
        disable_numparse=True,
    )
    return f"Agents that start at the same moment; {rounds} rounds:\n\n{table}"
