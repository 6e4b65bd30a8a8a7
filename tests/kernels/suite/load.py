"""Loads and attaches the program from the cache; then the untyped one on a kernel that has BTF, as on one
that rejects the typed one.

On the system's Python; its argument is the installed package's directory.
"""

import sys

package = sys.argv[1]
sys.path.insert(0, f"{package}/agent")

from bpf import program, tracing  # noqa: E402
from security.store import Store  # noqa: E402

compiled, kept = (
    program.Kernel(f"{package}/bpf", 64, 1024, kept=Store("/run/netpoll-cache", 0, writes=True))
    for _ in range(2)
)
assert (compiled.compiled, compiled.not_filled) == (True, ""), compiled.not_filled
assert (kept.compiled, kept.typed, kept.works()) == (False, compiled.typed, True), kept.not_kept
print("loaded from the cache, compiled by BCC", kept.bcc)

larger = program.Kernel(f"{package}/bpf", 64, 1024, times_answers=True)
print("loaded with the times of answers, or not:", larger.no_arrivals or "with them")

for_a_trace = program.Kernel(f"{package}/bpf", 64, 1024, traced=64)
assert (for_a_trace.typed, for_a_trace.works()) == (compiled.typed, True)
print("loaded for a trace")


def refuse(*_):
    raise OSError(22, "Invalid argument")


tracing.attach = refuse
loaded = program.Kernel(f"{package}/bpf", 64, 1024)
assert (loaded.typed, loaded.follows_children, loaded.works()) == (False, True, True)
loaded = program.Kernel(f"{package}/bpf", 64, 1024, traced=64)
assert (loaded.typed, loaded.works()) == (False, True)
print("loaded without types")
loaded = program.Kernel(f"{package}/bpf", 64, 1024, times_answers=True)
assert (loaded.typed, loaded.no_arrivals) == (False, larger.no_arrivals), loaded.no_arrivals
print("loaded without types, with the times of answers, or not")
