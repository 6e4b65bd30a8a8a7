"""The messages that the agent understands, and how it refuses others. An example is in __main__.py."""

from __future__ import annotations

import json
from typing import Any

from constants import SCHEDULER

VERSION = 6


class BadMessage(Exception):
    """The agent doesn't understand a message; the text says what is wrong with it."""


class Unable(Exception):
    """The agent cannot do its work; the message says why."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


# command -> its arguments: integers, all required except those in DEFAULTS.
COMMANDS: dict[str, tuple[str, ...]] = {
    "about": (),
    "load": ("max_processes", "max_fds", "uprobes", "answers", "trace"),
    "watch": ("pid",),
    "unwatch": ("pid",),
    "programs": (),
    "parked": ("pid",),
    "attach": ("pid", "ready", "deadline"),
    "learn": ("pid", *SCHEDULER),
    "open": (
        *("ready_stacks", "unclaimed", "io_stacks", "io_calls", "cpu_samples", "parked", "woken"),
        *("held_writes", "mutexes"),
    ),
    "close": ("window", "settle_ms"),
    "lap": ("window", "settle_ms"),
}
DEFAULTS = {"trace": 0}
# Commands allowed only as the first message; about just describes BCC.
FIRST = ("about", "load")


def parse(line: str | None) -> tuple[Any, str, dict[str, int]]:
    """(id, command, arguments). line: from Timers.lines. Raises BadMessage."""
    if line is None:
        raise BadMessage("it is too long")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise BadMessage("not an object")
    command = message.get("do")
    if not isinstance(command, str) or command not in COMMANDS:
        raise BadMessage(f"unknown command {command!r}")
    values: dict[str, int] = {}
    for name in COMMANDS[command]:
        value = message.get(name, DEFAULTS.get(name))
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise BadMessage(f"{command} needs {name}, a whole number")
        values[name] = value
    return message.get("id"), command, values
