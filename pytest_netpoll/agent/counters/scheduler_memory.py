"""Reads the Go scheduler's state from a process's memory, which may hold anything and isn't trusted."""

from __future__ import annotations

import operator
import struct
from typing import TYPE_CHECKING, NamedTuple

from bpf import elf
from processes import proc

if TYPE_CHECKING:
    from processes.watched import Process


class Layout(NamedTuple):
    """Where the scheduler's state is; 0 for unknown places. Link-time addresses: runtime.allp, the length of
    the global run queue, sched.nmspinning, sched.timeToRun, sched.totalMutexWaitTime,
    sched.totalRuntimeLockWaitTime, runtime.allm, runtime.allglen and runtime.allgptr. Offsets: number (of its
    id) to m in runtime.p, curg, alllink and m_lock_wait in runtime.m, gstatus and waitreason in runtime.g.
    time_to_run_size: bytes of its counters. mutex_reason, rlock_reason, lock_reason: what g.waitreason holds
    while a goroutine waits for a mutex.
    """

    allp: int
    runqsize: int
    nmspinning: int
    number: int
    status: int
    schedtick: int
    runqhead: int
    m: int
    curg: int
    gstatus: int
    time_to_run: int
    time_to_run_size: int
    mutex_wait: int
    lock_wait: int
    allm: int
    alllink: int
    m_lock_wait: int
    allglen: int
    allgptr: int
    waitreason: int
    mutex_reason: int
    rlock_reason: int
    lock_reason: int

    @property
    def plausible(self) -> bool:
        """Whether the structs are small enough to read, and the histogram's size is one of Go's."""
        offsets = (
            *self[self._fields.index("number") : self._fields.index("time_to_run")],
            *(self.alllink, self.m_lock_wait, self.waitreason),
        )
        return max(offsets) <= _LARGEST_STRUCT and (
            not self.time_to_run or self.time_to_run_size in (_SIZE, _SIZE_119)
        )


class State(NamedTuple):
    """What runs in a process: {p.id: p.schedtick}, goroutines in run queues, Ps, Ps that run a goroutine's
    code, and spinning threads.
    """

    ticks: dict[int, int]
    runnable: int
    ps: int
    running: int
    spinning: int


class Totals(NamedTuple):
    """Counters that only grow: those of sched.timeToRun (see bounds), and ns waited; None if unknown."""

    latencies: tuple[int, ...] | None
    mutex_wait: int | None
    lock_wait: int | None


_SLICE = struct.Struct("<QQQ")
_MOST_PS = 4096
_MOST_MS = 16384  # Go lets a program have 10,000 threads
_LARGEST_STRUCT = 1 << 16
_RUNNING, _DEAD = 1, 4  # p.status
_GRUNNING, _GSCAN = 2, 0x1000  # g.atomicstatus
_RUNQ = 256  # the capacity of a p's run queue

# Bytes of a timeHistogram's counters, since Go 1.20 and before.
_SIZE, _SIZE_119 = 1280, 5760


def bias(process: Process) -> int | None:
    """The difference between the program's addresses in memory and its link-time addresses."""
    own = [m for m in process.mappings if m.path == process.executable]
    try:
        with open(f"/proc/{process.pid}/exe", "rb") as f:
            address = elf.address_of(f, own[0].offset)
    except (OSError, ValueError, IndexError):
        return None
    return None if address is None else own[0].start - address


def read_state(memory: proc.Memory, layout: Layout, bias: int) -> State | None:
    """The process's State; None if the memory isn't plausible. Raises struct.error if a read is too short."""
    start, length, capacity = _SLICE.unpack(memory.read(bias + layout.allp, _SLICE.size) or b"")
    if not 0 < length <= capacity <= _MOST_PS:
        return None
    (runnable,) = struct.unpack("<i", memory.read(bias + layout.runqsize, 4) or b"")
    (spinning,) = struct.unpack("<i", memory.read(bias + layout.nmspinning, 4) or b"")
    if runnable < 0 or not 0 <= spinning <= _MOST_MS:
        return None
    ticks: dict[int, int] = {}
    ps = running = 0
    for number, p in enumerate(struct.unpack(f"<{length}Q", memory.read(start, 8 * length) or b"")):
        words = memory.read(p, max(layout.runqhead, layout.m) + 8) or b""
        (identity,) = struct.unpack_from("<i", words, layout.number)
        (status,) = struct.unpack_from("<I", words, layout.status)
        if identity != number or status > _DEAD:
            return None
        (ticks[number],) = struct.unpack_from("<I", words, layout.schedtick)
        head, tail = struct.unpack_from("<II", words, layout.runqhead)
        waiting = (tail - head) & 0xFFFFFFFF
        if waiting > _RUNQ:
            return None
        runnable += waiting
        ps += status != _DEAD
        if status == _RUNNING:
            running += _runs_go(memory, layout, struct.unpack_from("<Q", words, layout.m)[0])
    return State(ticks, runnable, ps, running, spinning)


def _runs_go(memory: proc.Memory, layout: Layout, m: int) -> bool:
    """Whether a P's thread runs a goroutine's code: no system call, no search for work, no garbage
    collection.
    """
    curg = memory.read(m + layout.curg, 8) if m else None
    status = memory.read(int.from_bytes(curg, "little") + layout.gstatus, 4) if curg else None
    return status is not None and int.from_bytes(status, "little") & ~_GSCAN == _GRUNNING


def read_totals(memory: proc.Memory, layout: Layout, bias: int) -> Totals:
    latencies = None
    if layout.time_to_run:
        counters = memory.read(bias + layout.time_to_run, layout.time_to_run_size + _around(layout))
        if counters is not None:
            latencies = struct.unpack(f"<{len(counters) // 8}Q", counters)
    return Totals(
        latencies,
        _word(memory, bias + layout.mutex_wait) if layout.mutex_wait else None,
        _lock_wait(memory, layout, bias) if layout.lock_wait else None,
    )


def _around(layout: Layout) -> int:
    """Bytes of the out-of-range counters: underflow, and since Go 1.20 overflow."""
    return 16 if layout.time_to_run_size == _SIZE else 8


def _lock_wait(memory: proc.Memory, layout: Layout, bias: int) -> int | None:
    """Adds up lock waits as runtime.totalMutexWaitTimeNanos does, over ended threads and living ones."""
    # In this order, so that a thread that ends meanwhile counts later, not twice.
    total, m = _word(memory, bias + layout.lock_wait), _word(memory, bias + layout.allm)
    for _ in range(_MOST_MS):
        if total is None or m is None or m == 0:
            return total if m == 0 else None
        waited = _word(memory, m + layout.m_lock_wait)
        total = None if waited is None else total + waited
        m = _word(memory, m + layout.alllink)
    return None


def _word(memory: proc.Memory, address: int) -> int | None:
    data = memory.read(address, 8)
    return None if data is None else int.from_bytes(data, "little")


def latencies_between(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[int]] | None:
    """The counts between two reads: [[least ns, first ns beyond, count]]; None if a counter shrank."""
    if len(before) != len(after):
        return None
    counts = list(map(operator.sub, after, before))
    if min(counts) < 0:
        return None
    return [[*bounds(len(after), index), count] for index, count in enumerate(counts) if count]


def bounds(counters: int, index: int) -> tuple[int, int]:
    """The range of ns (least, first beyond) of a timeHistogram's counter. counters: how many it has.

    As in runtime/histogram.go. Since Go 1.20 there are 40 groups of 4, the first for what is below 256 ns;
    before, 45 of 16, the first for what is below 16. In both each group but the first is an octave. Behind
    them follow one for negative durations and, since Go 1.20, one for those that are too long.
    """
    if counters == _SIZE // 8 + 2:
        groups, sub_bits, first_bits = 40, 2, 8
    else:
        groups, sub_bits, first_bits = 45, 4, 4
    number = groups << sub_bits
    if index == number:
        return 0, 1
    if index > number:
        return 1 << 47, 1 << 48
    group, sub = divmod(index, 1 << sub_bits)
    width = 1 << (first_bits - sub_bits + max(group - 1, 0))
    low = (sub + (group > 0) * (1 << sub_bits)) * width
    return low, low + width
