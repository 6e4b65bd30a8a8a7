"""Limits what all agents of one user take together: kernel memory, and the cost that each adds to syscalls.

Before it loads anything, each agent puts a token into the kernel: a BPF program that nothing runs. Its name
holds the user and the size. The kernel knows who loaded it, so only root's tokens count. It disappears when
the agent ends. Tokens are ordered: each agent counts those before its own, so two that start at the same
moment can't both take the last place.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from bpf import footprint, tracing

AGENTS = 8  # agents of one user at a time
PATIENCE = 5  # s; an agent that is just ending may take as long

_MIB = 1 << 20
_TOKEN = re.compile(rb"netp([0-9a-f]{8})_([0-9a-f]{2})\0")
_UNIT = 8 * _MIB  # two digits of these are enough for all agents together


class Refused(Exception):
    """There is no room for this agent, or it can't be determined; the message says why."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


def take(uid: int, size: int) -> int | None:
    """Waits for room for an agent of so many bytes and returns the token's file descriptor. Raises Refused.
    Returns None if tokens can't be counted: root in a container may lack CAP_SYS_ADMIN.
    """
    name = f"netp{uid:08x}_{-(-size // _UNIT):02x}".encode()
    try:
        token = tracing.load_nothing(name)
        mine = tracing.describe(token).number
    except OSError as error:
        raise Refused(
            f"the kernel refuses even a BPF program that does nothing: {error.strerror}",
            "find what forbids it, a security module for one, in the output of dmesg and the audit log",
        ) from error
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            before = [other for other in _tokens(uid) if other[0] < mine]
        except PermissionError:
            os.close(token)
            return None
        total = size + sum(taken for _, taken in before)
        if len(before) < AGENTS and total <= footprint.MOST:
            return token
        if time.monotonic() >= deadline:
            raise Refused(
                f"this user has {len(before)} agents, which take {(total - size) // _MIB} MiB of kernel "
                f"memory, and one more would take {size // _MIB} MiB: {AGENTS} agents and "
                f"{footprint.MOST // _MIB} MiB are the maximum",
                "wait for others to end, use fewer workers (pytest -n), or run pytest as root",
            )
        time.sleep(0.1)


def _tokens(uid: int) -> Iterator[tuple[int, int]]:
    """(id, bytes) of each of the user's tokens."""
    for number in tracing.numbers():
        try:
            program = tracing.open_number(number)
        except FileNotFoundError:
            continue  # it is gone by now
        try:
            about = tracing.describe(program)
        finally:
            os.close(program)
        match = _TOKEN.match(about.name)
        if match and about.uid == 0 and int(match[1], 16) == uid:
            yield number, int(match[2], 16) * _UNIT
