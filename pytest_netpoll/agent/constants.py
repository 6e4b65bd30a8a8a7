"""Numbers that the C in bpf/, the agent and pytest's side have in common. The C gets them by -D."""

from __future__ import annotations

BANKS = 8  # of counters; a power of 2
SLOT_BITS = 12  # of an owner
STACKS = 4096  # in each of the two maps that hold them
SLOWEST = 8  # wakeups that are kept, of each bank on each CPU

# What is recorded beside the counts, as long as somebody may ask for it.
KEEP_CULPRITS = 1
KEEP_UNCLAIMED = 2
KEEP_FUTILE_CALLS = 4
KEEP_IO_CALLS = 8

# The latency histogram, of buckets that are linear within each octave: exact below 2^LATENCY_SUB_BITS ns.
LATENCY_BITS = 40  # longer than 2^40 ns (18 minutes) is clamped
LATENCY_SUB_BITS = 4
LATENCY_BUCKETS = (LATENCY_BITS - LATENCY_SUB_BITS + 1) << LATENCY_SUB_BITS

# How an I/O call ended, where not by a number of errno.h.
OUTCOME_EOF = 0
OUTCOME_DATA = 255

MACROS = {name: value for name, value in list(vars().items()) if name.isupper()}

# Not for the C: CPU samples a second. Not in time with anything that happens every millisecond.
CPU_HZ = 499
