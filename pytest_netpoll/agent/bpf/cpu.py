"""Perf events on each CPU's clock, which run a BPF program to see what the CPU is running.

They are opened while the agent still has privileges, and cost nothing until they are enabled.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable

from bpf import cpus, syscall
from constants import CPU_HZ

# From the kernel's headers: include/uapi/linux/perf_event.h, and the tables of syscalls.
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_ATTR = struct.Struct("=IIQQQQQIIQQ")  # struct perf_event_attr as of PERF_ATTR_SIZE_VER1
_SOFTWARE, _CPU_CLOCK = 1, 0
_DISABLED, _FREQ = 1 << 0, 1 << 10
_FD_CLOEXEC = 8
_IOC_ENABLE, _IOC_DISABLE = 0x2400, 0x2401
_IOC_SET_BPF = 0x40042408
_PARANOID = "/proc/sys/kernel/perf_event_paranoid"


class Sampler:
    """why_not: why there are no CPU samples, and the fix; None if there are."""

    def __init__(self, load: Callable[[], int]) -> None:
        """load: returns the BPF program's file descriptor."""
        self.why_not: dict[str, str | None] | None = None
        self._events: list[int] = []
        self._enabled = False
        try:
            program = load()
            for cpu in cpus.online():
                self._events.append(_open(cpu, program))
        except PermissionError as error:
            self._close()
            self.why_not = _not_permitted(error)
        except (OSError, ValueError) as error:
            self._close()
            what = f"this kernel refuses perf events of its CPUs' clocks: {error}"
            self.why_not = {"what": what, "fix": None}

    def enable(self, wanted: bool) -> None:
        """Starts or stops sampling."""
        if wanted != self._enabled:
            for event in self._events:
                fcntl.ioctl(event, _IOC_ENABLE if wanted else _IOC_DISABLE, 0)
            self._enabled = wanted

    def _close(self) -> None:
        while self._events:
            os.close(self._events.pop())


def _open(cpu: int, program: int) -> int:
    flags = _DISABLED | _FREQ
    attr = _ATTR.pack(_SOFTWARE, _ATTR.size, _CPU_CLOCK, CPU_HZ, 0, 0, flags, 0, 0, 0, 0)
    fd = syscall.call(_PERF_EVENT_OPEN, attr, -1, cpu, -1, _FD_CLOEXEC)
    try:
        fcntl.ioctl(fd, _IOC_SET_BPF, program)
    except OSError:
        os.close(fd)
        raise
    return fd


def _not_permitted(error: OSError) -> dict[str, str | None]:
    try:
        with open(_PARANOID) as f:
            paranoid = f", and kernel.perf_event_paranoid is {f.read().strip()}"
    except OSError:
        paranoid = ""
    return {
        "what": f"perf_event_open is not permitted ({error.strerror or error}{paranoid})",
        "fix": "give the agent CAP_PERFMON, in a container with --cap-add PERFMON, or --cap-add SYS_ADMIN "
        "where its runtime does not know that one",
    }
