"""Checks whether this machine can measure: what was seen, and how to fix it. `doctor` shows all findings. If
the probe can't load and its own message has no fix, the error takes the fix of the failed check, so tests and
the doctor report the same.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_netpoll.agent.security.capabilities import missing, names
from pytest_netpoll.errors import NetpollError

# The fix if no better one is known.
DOCTOR = "python -m pytest_netpoll doctor"

Status = Literal["ok", "warn", "fail"]

OLDEST_KERNEL = (5, 8)
MACHINES = ("x86_64", "aarch64")
BTF = Path("/sys/kernel/btf/vmlinux")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
JIT = Path("/proc/sys/net/core/bpf_jit_enable")
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Finding:
    """What one check saw. status: with "warn" measuring works, but with restrictions; with "fail" it doesn't
    work. fix: the command, or the thing to do; None if there is nothing to fix. detail: lines that help, such
    as a compiler's.
    """

    status: Status
    seen: str
    fix: str | None = None
    detail: str | None = None

    @classmethod
    def of(cls, error: NetpollError) -> Finding:
        """A failed finding, from the error that a test would report."""
        return cls("fail", error.reason.headline, error.fix, error.detail)


def kernel() -> Finding:
    """Raw tracepoints that read user memory came with 5.8, as did CAP_BPF; syscall numbers depend on the
    machine.
    """
    system, release, machine = platform.system(), platform.release(), platform.machine()
    seen = f"{system} {release} on {machine}"
    version = re.match(r"(\d+)\.(\d+)", release)
    if system != "Linux":
        return Finding("fail", seen, "run the tests on Linux, in a virtual machine or on a CI machine")
    if version is None or (int(version[1]), int(version[2])) < OLDEST_KERNEL:
        return Finding("fail", f"{seen}, older than 5.8", "run the tests on Linux 5.8 or newer")
    if machine not in MACHINES:
        return Finding("fail", f"{seen}, which is not supported", f"use {' or '.join(MACHINES)}")
    return Finding("ok", seen)


def btf() -> Finding:
    """Without type information (BTF), children are found only when a window opens."""
    if BTF.is_file():
        return Finding("ok", f"{BTF}: children of a service are followed from their first moment")
    return Finding(
        "warn",
        f"no {BTF}: children of a service are found only when a window opens",
        "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' kernels are",
    )


def jit() -> Finding:
    """Without the JIT, the probe costs every syscall of the machine several times as much."""
    value = _read(JIT)
    if value is None:
        return Finding("ok", "not visible here; the kernel's default is on")
    if value == "0":
        return Finding(
            "warn",
            "off: the probe is interpreted, which is slow",
            "sudo sysctl net.core.bpf_jit_enable=1",
        )
    return Finding("ok", "on")


def lockdown() -> Finding:
    """In the strictest lockdown mode BPF can't read kernel memory, and so no syscall's arguments."""
    value = _read(LOCKDOWN)
    mode = re.search(r"\[(\w+)\]", value or "")
    if mode is None:
        return Finding("ok", "none")
    if mode[1] == "confidentiality":
        return Finding(
            "fail",
            "confidentiality: BPF programs may not read the kernel's memory",
            "boot with lockdown=integrity, or without lockdown= (Secure Boot may demand it)",
        )
    return Finding("ok", mode[1])


def privileges() -> Finding:
    """This process's privileges: a container's root may lack what BPF needs. The agent check shows whether
    sudo helps.
    """
    uid = os.geteuid()
    held = capabilities()
    names = ", ".join(f"CAP_{name}" for name in sorted(held)) or "no capability for BPF"
    if uid != 0:
        need = ": the agent needs sudo" if missing(held) else ""
        return Finding("ok", f"uid {uid}, {names}{need}")
    lacking = missing(held)
    if lacking:
        return Finding(
            "fail",
            f"root without {', '.join(f'CAP_{name}' for name in lacking)}, as in a container",
            f"docker run {' '.join(f'--cap-add {name}' for name in lacking)} …",
        )
    if "SYS_PTRACE" not in held:
        return Finding(
            "warn",
            f"root, {names}, without CAP_SYS_PTRACE, as in a container: processes that have more "
            "capabilities than the agent cannot be inspected",
            "docker run --cap-add SYS_PTRACE …, if there are any",
        )
    return Finding("ok", f"root, {names}")


def capabilities() -> set[str]:
    """The effective capabilities of this process, among those that measuring takes."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", _read(STATUS) or "", re.MULTILINE)
    return names(int(match[1], 16) if match else 0) - {"DAC_READ_SEARCH"}  # which loading BPF doesn't need


def tracefs() -> Finding:
    """Optional: raw tracepoints work without it. Shown to help people inspect a machine."""
    for path in TRACEFS:
        with contextlib.suppress(PermissionError):  # only root may read it, mostly
            if (path / "events").is_dir():
                return Finding("ok", f"{path} (not needed)")
    return Finding("ok", "not mounted, or visible to root only (not needed)")


# The checks that load nothing, in the order of the doctor's table.
CHECKS: dict[str, Callable[[], Finding]] = {
    "kernel": kernel,
    "BTF": btf,
    "BPF JIT": jit,
    "lockdown": lockdown,
    "privileges": privileges,
    "tracefs": tracefs,
}


def likely_fix() -> str:
    """The fix for a probe that does not load and names none: that of the first failed check."""
    for name, check in CHECKS.items():
        finding = check()
        if finding.status == "fail":
            return f"{finding.fix} ({name}: {finding.seen})"
    return DOCTOR


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
