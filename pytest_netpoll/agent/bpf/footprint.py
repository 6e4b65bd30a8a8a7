"""How much kernel memory the maps of bpf/netpoll.c take. An ordinary user's agents may only take so much."""

from __future__ import annotations

from constants import BANKS, BUDGETS, DELAYS, LATENCY_BUCKETS

MOST = 1 << 30  # bytes, for a user other than root

# Bytes of each struct of bpf/netpoll.h and trace.c.
WAIT = 56
TARGET = 56
POLLER = 136
HISTOGRAM = 2368
COUNTERS = 360
SLOWEST = 776
SLOW_ANSWERS = 2 * 1032
IO_FAILURES = 1368
POLLS_BY_EVENTS = 512
DELAY = DELAYS * 4 * LATENCY_BUCKETS + 2 * 32 * BUDGETS
INBOX = 160 + 56  # with the overhead of the kernel's hash
QUESTION = 64
TRACE_RECORD = 64
ENTERED = 16384 * 80  # the map of when calls began, if loaded for a trace
SLOT = 4  # in the queue of free ones
OTHERS = 13 << 20  # the maps whose size doesn't vary, mostly stacks


def size(max_processes: int, max_fds: int, cpus: int, answers: bool, trace: int = 0) -> int:
    """The maps' size in bytes. cpus: the possible CPUs, since per-CPU maps are that many times as large.
    answers: whether to time them. trace: how many records to keep, 0 for none.
    """
    counted = COUNTERS + DELAY + SLOWEST + SLOW_ANSWERS + IO_FAILURES + POLLS_BY_EVENTS
    bank = HISTOGRAM + cpus * counted
    each = max_processes * (BANKS * bank + 2 * max_fds * WAIT + TARGET + POLLER + SLOT)
    timed = inboxes(max_processes, max_fds) * INBOX + max_processes * max_fds * QUESTION
    traced = ENTERED + trace * TRACE_RECORD if trace else 0
    return OTHERS + each + answers * timed + traced


def inboxes(max_processes: int, max_fds: int) -> int:
    """How many sockets' arrivals are recorded at most: not every descriptor is a socket."""
    return min(max_processes * max_fds, 1 << 16)


def too_large(
    max_processes: int, max_fds: int, cpus: int, answers: bool, trace: int = 0
) -> tuple[str, str] | None:
    """(why an ordinary user may not have that much, the fix), or None."""
    if size(max_processes, max_fds, cpus, answers, trace) <= MOST:
        return None
    return (
        f"{max_processes} processes of {max_fds} descriptors take more than 1 GiB of kernel memory on a "
        f"machine of {cpus} CPUs",
        "lower --netpoll-max-processes or --netpoll-max-fds, or run pytest as root",
    )
