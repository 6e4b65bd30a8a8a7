"""Numbers that the C in bpf/, the agent and pytest's side share. The C gets them with -D."""

from __future__ import annotations

BANKS = 8  # of counters; a power of 2
SLOT_BITS = 12  # of an owner
STACKS = 4096  # in each of the two maps that hold them
SLOWEST = 8  # slowest wakeups to keep for each bank on each CPU

MOST_EVENTS = 128  # of one poll: as many as the runtime's buffer holds

# What is recorded beside the counts, while a window asks for it.
KEEP_CULPRITS = 1
KEEP_UNCLAIMED = 2
KEEP_FUTILE_CALLS = 4
KEEP_IO_CALLS = 8
KEEP_TRACE = 16
KEEP_HELD_WRITES = 32

# What is sampled.
SAMPLE_READY_CALLS = 0
SAMPLE_IO_CALLS = 1
SAMPLE_WOKEN = 2
SAMPLINGS = 3

# Where woken goroutines were parked: stacks to keep, frames of each, and events to look at in a poll.
PARKED_STACKS = 4096
PARKED_FRAMES = 24
MOST_RECORDED = 8

# The latency histogram, of buckets that are linear within each octave: exact below 2^LATENCY_SUB_BITS ns.
LATENCY_BITS = 40  # times over 2^40 ns (18 minutes) are clamped
LATENCY_SUB_BITS = 4
LATENCY_BUCKETS = (LATENCY_BITS - LATENCY_SUB_BITS + 1) << LATENCY_SUB_BITS

ARRIVALS = 8  # arrivals to keep for each socket; a power of 2
DELAYS = 4  # more such histograms in each bank: enum delay in bpf/netpoll.h
BUDGET_SHIFT = 3  # the parts of times are kept per group of 2^BUDGET_SHIFT buckets
BUDGETS = LATENCY_BUCKETS >> BUDGET_SHIFT

# How an I/O call ended, if not with an errno.
OUTCOME_EOF = 0
OUTCOME_DATA = 255

SOCKET_ACCEPTED = 4  # the descriptor comes from accept; the others are in bpf/netpoll.h: SOCKET_...

MACROS = {name: value for name, value in list(vars().items()) if name.isupper()}

# The C doesn't use the rest.

NO_FD = 0xFFFFFFFF  # as in bpf/netpoll.h
TRACE_RECORDS = 32_768  # records of a traced window: 2 MiB
# Besides its stack, the fields of a message that describe where a goroutine was woken. direction is never
# None.
PLACE = ("direction", "syscall", "fd_type", "local", "peer")

# The histograms of a bank beside the latency's, in the order of bpf/netpoll.h: enum delay.
DELAY_NAMES = ("queue_delay", "poll_delay", "handling", "response")

# What g.waitreason holds while a goroutine waits for a mutex, by its name in the runtime: the numbers differ
# between versions of Go.
MUTEX_REASONS = {
    "mutex_reason": "waitReasonSyncMutexLock",
    "rlock_reason": "waitReasonSyncRWMutexRLock",
    "lock_reason": "waitReasonSyncRWMutexLock",
}

# Where a Go program keeps its scheduler's counters: the groups of the message "learn". Each is known as a
# whole or not at all.
SCHEDULER_QUEUES = (
    "allp",
    "runqsize",
    "nmspinning",
    "number",
    "status",
    "schedtick",
    "runqhead",
    "m",
    "curg",
    "gstatus",
)
SCHEDULER_LATENCY = ("time_to_run", "time_to_run_size")
SCHEDULER_MUTEXES = ("mutex_wait",)
SCHEDULER_LOCKS = ("lock_wait", "allm", "alllink", "m_lock_wait")
SCHEDULER_WAITERS = ("allglen", "allgptr", "waitreason", *MUTEX_REASONS)
SCHEDULER = (
    *SCHEDULER_QUEUES,
    *SCHEDULER_LATENCY,
    *SCHEDULER_MUTEXES,
    *SCHEDULER_LOCKS,
    *SCHEDULER_WAITERS,
)

# CPU samples a second; not in step with anything that happens every millisecond.
CPU_HZ = 499
