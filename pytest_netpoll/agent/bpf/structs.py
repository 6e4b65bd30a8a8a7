"""Types for mypy: the members of the structs in bpf/ that the agent uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Owned(Protocol):
    owner: int


class Known(Owned, Protocol):
    """A target, or a watched.Process."""

    tgid: int


class Target(Known, Protocol):
    root: int
    exited: int
    lost_children: int
    local: int
    foreign: int
    since: int


class Layout(Protocol):
    right: int
    left: int
    tag_bits: int
    waiters: int


class Candidate(Protocol):
    data: int
    fd: int
    epfd: int
    unproven: int


class Poller(Owned, Protocol):
    epfd: int
    layout: Layout
    break_data: int
    proven: int
    unproven: int
    candidates_seen: int
    more_pollers: int
    candidates: Sequence[Candidate]


class Endpoint(Protocol):
    inode: int
    mode: int
    type: int
    family: int
    port: int
    peer_port: int
    state: int
    several: int
    address: Sequence[int]
    peer_address: Sequence[int]


class SlowWakeup(Protocol):
    latency: int
    at: int
    goid: Sequence[int]
    stack: int
    fd: int
    end: Endpoint
    syscall: int
    direction: int


class Offender(Protocol):
    owner: int
    epoch: int
    stack: int
    fd: int
    syscall: int
    direction: int
    offence: int
    outcome: int
    events: int
    seen: int
    woken: int


class TraceRecord(Protocol):
    at: int
    began: int
    g: int
    other: int
    owner: int
    epoch: int
    tid: int
    fd: int
    value: int
    stack: int
    syscall: int
    kind: int
    detail: int


class Scheduling(Protocol):
    pc: int
    caller: int
    owner: int
    epoch: int


class Blame(Protocol):
    count: int
    bytes: int
    end: Endpoint
