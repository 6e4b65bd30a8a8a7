"""Limits what all agents of one user take: kernel memory, and the cost that each adds to every syscall.

Each leaves a token in the kernel before it loads anything: a program that nobody runs. Its name says whose
agent it is and what that takes. The kernel keeps who loaded it, so that only root can make one, and it is
gone with the agent. Agents come in the order of their tokens: each reckons with those before it, so two that
start at the same moment cannot both take the last place.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from bpf import footprint, tracing

AGENTS = 8  # of one user at a time
PATIENCE = 5  # s: one that is just ending may take as long

_MIB = 1 << 20
_TOKEN = re.compile(rb"netp([0-9a-f]{8})_([0-9a-f]{2})\0")
_UNIT = 8 * _MIB  # two digits of them are more than all agents together may have


class Refused(Exception):
    """There is no room for this one, or nobody can tell; the message says why."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


def take(uid: int, size: int) -> int | None:
    """The file descriptor of the token, once there is room for an agent of so many bytes. Raises Refused.

    None where tokens cannot be counted: root in a container may lack CAP_SYS_ADMIN.
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
    """(number, bytes) of this user's."""
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
