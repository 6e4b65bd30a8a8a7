"""Loads and attaches the untyped program on a kernel that has BTF, as where it refuses the typed one.

On the system's Python; its argument is the installed package's directory.
"""

import sys

package = sys.argv[1]
sys.path.insert(0, f"{package}/agent")

import bcc  # noqa: E402

from bpf import program, tracing  # noqa: E402


def refuse(*_):
    raise OSError(22, "Invalid argument")


tracing.attach = refuse
loaded = program.Kernel(bcc, f"{package}/bpf", 64, 1024)
assert (loaded.typed, loaded.follows_children, loaded.works()) == (False, True, True)
print("loaded without types")
