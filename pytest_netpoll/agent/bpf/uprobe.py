"""Attaches a BPF program to a place in an executable, with perf's uprobe events.

BCC isn't used: if that event is refused, BCC creates one in tracefs instead, always with the same name, and
that outlives the agent. Closing such an event has crashed a kernel (6.18).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from bpf import syscall

PMU = "/sys/bus/event_source/devices/uprobe/type"
TAINTED = "/proc/sys/kernel/tainted"

# From the kernel's headers: include/uapi/linux/perf_event.h, and the tables of syscalls.
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_ATTR = struct.Struct("=IIQQQQQIIQQ")  # struct perf_event_attr as of PERF_ATTR_SIZE_VER1
_FD_CLOEXEC = 8
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x40042408
_DIED = 1 << 7  # of TAINTED: the kernel had an oops


def crashed() -> bool:
    """Whether this kernel has had an oops since it booted: the lock of all uprobes may be held forever."""
    try:
        with open(TAINTED) as f:
            return bool(int(f.read()) & _DIED)
    except (OSError, ValueError):
        return False


EVERYBODY = -1


def attach(path: bytes, offset: int, program: int, pid: int = EVERYBODY) -> int:
    """Runs the program whenever the file is executed at the offset; returns the event's file descriptor.
    Raises OSError.

    program: the BPF program's file descriptor. pid: the only process to change, without its children and
    others that run the file; EVERYBODY for all that run it, now or later.
    """
    with open(PMU) as f:
        kind = int(f.read())
    name = ctypes.create_string_buffer(path)
    attr = _ATTR.pack(kind, _ATTR.size, 0, 1, 0, 0, 0, 1, 0, ctypes.addressof(name), offset)
    # For EVERYBODY the kernel requires a CPU, but traps on all of them.
    cpu = 0 if pid == EVERYBODY else -1
    fd = syscall.call(_PERF_EVENT_OPEN, attr, pid, cpu, -1, _FD_CLOEXEC)
    try:
        fcntl.ioctl(fd, _IOC_SET_BPF, program)
        fcntl.ioctl(fd, _IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd
