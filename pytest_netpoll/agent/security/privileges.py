"""What the agent may do, for which user, and dropping what it no longer needs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from bpf import syscall
from processes import namespaces
from security import capabilities
from security.capabilities import CAPABILITIES, LOADING

# What placing a uprobe takes. For some years CAP_PERFMON sufficed; a probe amid an instruction breaks the
# program.
PROBING = ("SYS_ADMIN",)
_ADDING = " ".join(f"--cap-add {name}" for name in LOADING)
YAMA = "/proc/sys/kernel/yama/ptrace_scope"

_SECCOMP_FILTER = "2"
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522


class Invoker(NamedTuple):
    """The user whom the agent serves. is_root: whether they may watch any process."""

    uid: int
    gid: int
    is_root: bool


def invoker(environment: Mapping[str, str]) -> Invoker:
    """The user who started the agent; through sudo, the one that sudo names."""
    uid, gid = os.getuid(), os.getgid()
    if os.geteuid() == 0:
        uid, gid = int(environment.get("SUDO_UID", uid)), int(environment.get("SUDO_GID", gid))
    return Invoker(uid, gid, uid == 0)


def permitted(line_of: str = "CapPrm:") -> set[str]:
    """The names in CAPABILITIES that are permitted to us."""
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith(line_of))
    return capabilities.names(int(line.split()[1], 16))


@contextlib.contextmanager
def raised(name: str) -> Iterator[None]:
    """Makes the capability effective during the block, if we kept it."""
    asleep, effective = permitted(), permitted("CapEff:")
    if name not in asleep or name in effective:
        yield
        return
    _set_capabilities(effective | {name}, asleep)
    try:
        yield
    finally:
        _set_capabilities(effective, asleep)


def why_not() -> tuple[str, str] | None:
    """(why BPF programs cannot be loaded, the fix), or None."""
    missing = capabilities.missing(permitted())
    if missing:
        names = " and ".join("CAP_" + name for name in missing)
        fix = f"run it as root; in a container: {_ADDING}"
        return f"the agent lacks {names}", fix
    if not namespaces.in_initial_users():
        return (
            "the agent is root only in a user namespace, as in a rootless container, and that is not enough",
            f"run it in a container that root started, with {_ADDING}",
        )
    if _filtered():
        return (
            "the container's seccomp profile refuses bpf(), whatever capabilities the agent has",
            "--security-opt seccomp=unconfined, or --cap-add SYS_ADMIN, with which engines allow bpf()",
        )
    return None


def _filtered() -> bool:
    """Whether a seccomp filter refuses bpf(): it answers before the kernel rejects the invalid map."""
    with open("/proc/self/status") as f:
        if _SECCOMP_FILTER not in [line.split()[1] for line in f if line.startswith("Seccomp:")]:
            return False
    try:
        syscall.call(syscall.BPF, 0, None, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return False


def owns(user: Invoker, pid: int) -> bool:
    """Whether the process fully belongs to the user: as ptrace(2) checks, but without exceptions for
    capabilities. A process that runs, or ran, with more rights than its user doesn't: root owns its files in
    /proc, though not the directory.
    """
    try:
        with open(f"/proc/{pid}/status") as f:
            line = next(line for line in f if line.startswith("Uid:"))
            return {*map(int, line.split()[1:]), os.fstat(f.fileno()).st_uid} == {user.uid}
    except (OSError, StopIteration):
        return False


def drop(user: Invoker, maps_work: Callable[[], bool], later: Collection[str] = ()) -> list[str]:
    """Permanently drops what watching doesn't need; returns the names of the capabilities kept. maps_work:
    checks whether the BPF maps can be used. later: capabilities needed now and then. They are effective
    within `raised` only, so that the user's files and processes are read without them.
    """
    have = permitted()
    keep = set(later)
    become = os.geteuid() == 0 and not user.is_root
    # The kernel lets no process inspect one that has more capabilities, such as root's and those started
    # beside us.
    if not become or _restricts_ptrace():
        keep.add("SYS_PTRACE")
    if user.is_root:
        keep.add("DAC_READ_SEARCH")  # services may belong to any user
    if become:
        _prctl(_PR_SET_KEEPCAPS, 1)
        _bound_to_nothing()
        _become(user)
    elif "SYS_PTRACE" not in have:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        return sorted(have)
    keep &= have
    asleep = keep & set(later)
    keep -= asleep
    # Before 6.0 using a map took the capability, too; that is tested, not derived from the version.
    _set_capabilities(keep, keep | asleep | ({"BPF", "SYS_ADMIN"} & have))
    if not maps_work():
        keep |= {"BPF"} & have or {"SYS_ADMIN"} & have
    _set_capabilities(keep, keep | asleep)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return sorted(keep | asleep)


def _restricts_ptrace() -> bool:
    """Whether inspecting one's own processes takes CAP_SYS_PTRACE, as on Ubuntu."""
    try:
        with open(YAMA) as f:
            return f.read().strip() != "0"
    except OSError:
        return False


def _become(user: Invoker) -> None:
    try:
        os.initgroups(pwd.getpwuid(user.uid).pw_name, user.gid)
    except KeyError:
        os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def _bound_to_nothing() -> None:
    for bit in range(64):
        with contextlib.suppress(OSError):
            _prctl(_PR_CAPBSET_DROP, bit)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _set_capabilities(effective: Collection[str], allowed: Collection[str]) -> None:
    def words(names: Collection[str]) -> tuple[int, int]:
        bits = sum(1 << CAPABILITIES[name] for name in names)
        return bits & 0xFFFFFFFF, bits >> 32

    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # (effective, permitted, inheritable) twice: the low halves, then the high ones.
    (low, high), (allowed_low, allowed_high) = words(effective), words(allowed)
    data = (ctypes.c_uint32 * 6)(low, allowed_low, 0, high, allowed_high, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
