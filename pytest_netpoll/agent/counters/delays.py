"""How long data waited to be read and peers for an answer, and what still waits when a window closes."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from bpf import batch
from constants import (
    ARRIVALS,
    BUDGET_SHIFT,
    BUDGETS,
    DELAY_NAMES,
    LATENCY_BITS,
    LATENCY_BUCKETS,
    LATENCY_SUB_BITS,
    NO_FD,
)

if TYPE_CHECKING:
    from bpf.program import Kernel

MAXIMA = tuple(f"{name}_max" for name in DELAY_NAMES)
# The times that consist of parts: poll, run, unparked and handling.
DIVIDED = ("queue_delay", "response")
_DATAGRAMS = 3  # enum socket_kind: from here on each read takes one message
# Counted beside the metrics: see struct counters.
SUMS = ("queue_delay_ns", "poll_delay_ns", "wake_to_run_ns", "handling_ns")
TALLIES = ("requests", "answered", "unanswered", "strangers")

Parts = tuple[int, ...]


class Delays:
    """How long one process's reads and answers took, in one epoch or several.

    histograms: by name, {bucket: count}. budgets: by name, {bucket >> BUDGET_SHIFT: ns of each
    part}.
    """

    def __init__(self) -> None:
        self.histograms: dict[str, dict[int, int]] = {name: {} for name in DELAY_NAMES}
        self.budgets: dict[str, dict[int, Parts]] = {name: {} for name in DIVIDED}

    def add(self, other: Delays) -> None:
        for name, histogram in other.histograms.items():
            own = self.histograms[name]
            for bucket, count in histogram.items():
                own[bucket] = own.get(bucket, 0) + count
        for name, budget in other.budgets.items():
            mine = self.budgets[name]
            for bucket, parts in budget.items():
                mine[bucket] = tuple(map(operator.add, mine.get(bucket, (0, 0, 0, 0)), parts))

    def add_waiting(self, age: int, messages: int) -> None:
        """Adds what nobody has read yet."""
        bucket = bucket_of(age)
        waiting = Delays()
        waiting.histograms["queue_delay"] = {bucket: messages}
        waiting.budgets["queue_delay"] = {bucket >> BUDGET_SHIFT: (0, 0, age * messages, 0)}
        self.add(waiting)

    def as_json(self, maxima: Mapping[str, int]) -> dict[str, Any]:
        """The delays as JSON. maxima: by the names of MAXIMA."""
        return {
            name: {
                "histogram": self.histograms[name],
                "max_ns": maxima[f"{name}_max"],
                "budget": self.budgets.get(name, {}),
            }
            for name in DELAY_NAMES
        }


def read(kernel: Kernel, bank: int) -> Delays:
    """Reads a process's delays from the kernel. bank: its index among all slots' banks."""
    found = Delays()
    for cpu in kernel.delays[ctypes.c_int(bank)]:
        own = Delays()
        for i, name in enumerate(DELAY_NAMES):
            buckets = cpu.buckets[i * LATENCY_BUCKETS : (i + 1) * LATENCY_BUCKETS]
            own.histograms[name] = {bucket: count for bucket, count in enumerate(buckets) if count}
        for i, name in enumerate(DIVIDED):
            for bucket in {bucket >> BUDGET_SHIFT for bucket in own.histograms[name]}:
                parts = cpu.budgets[i * BUDGETS + bucket]
                own.budgets[name][bucket] = (parts.poll, parts.run, parts.unparked, parts.handling)
        found.add(own)
    return found


def clear(kernel: Kernel, bank: int) -> None:
    kernel.delays[ctypes.c_int(bank)] = kernel.delays.Leaf()


class Waiting(NamedTuple):
    """What waits on a socket: since when (monotonic ns), and how many messages; for a stream always 1."""

    owner: int
    since: int
    messages: int


def waiting(kernel: Kernel, owners: Collection[int]) -> list[Waiting]:
    """What nobody has read yet. owners: the living ones; the sockets of others are dropped."""
    found: list[Waiting] = []
    if kernel.inboxes is None:
        return found
    for key, inbox in batch.items(kernel.inboxes):
        if inbox.owner not in owners:
            batch.delete(kernel.inboxes, key)
        elif inbox.fd != NO_FD:  # a connection that was not accepted counts for its listener
            found += _untaken(inbox)
    return found


def _untaken(inbox: Any) -> Iterator[Waiting]:
    taken = inbox.taken
    for i in range(inbox.head, min(inbox.tail, inbox.head + ARRIVALS)):
        arrival = inbox.arrivals[i % ARRIVALS]
        if inbox.kind < _DATAGRAMS:
            yield Waiting(inbox.owner, arrival.at, 1)
            return
        yield Waiting(inbox.owner, arrival.at, max(1, arrival.end - taken))
        taken = arrival.end


def bucket_of(ns: int) -> int:
    """The histogram bucket of a time in ns, as in times.c."""
    ns = min(ns, (1 << LATENCY_BITS) - 1)
    if ns < 1 << LATENCY_SUB_BITS:
        return ns
    shift = ns.bit_length() - 1 - LATENCY_SUB_BITS
    return (shift + 1 << LATENCY_SUB_BITS) + (ns >> shift) % (1 << LATENCY_SUB_BITS)
