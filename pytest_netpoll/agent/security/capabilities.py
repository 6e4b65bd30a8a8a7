"""The capabilities that measuring takes, by their numbers in linux/capability.h."""

from __future__ import annotations

from collections.abc import Container

CAPABILITIES = {"DAC_READ_SEARCH": 2, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "PERFMON": 38, "BPF": 39}
LOADING = ("BPF", "PERFMON")  # BPF programs; SYS_ADMIN stands for both, as it did alone before 5.8


def names(bits: int) -> set[str]:
    """The names of CAPABILITIES that are in a mask from /proc/PID/status."""
    return {name for name, bit in CAPABILITIES.items() if bits >> bit & 1}


def missing(held: Container[str]) -> list[str]:
    """The names of LOADING that are missing; empty if programs can be loaded."""
    return [] if "SYS_ADMIN" in held else [name for name in LOADING if name not in held]
