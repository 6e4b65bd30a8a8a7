"""Translates between the agent's namespaces and others.

BPF programs use the numbers of processes in the initial pid namespace; /proc, pytest and the agent those in
their own. Paths are relative to a process's own mount namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any

INITIAL_PIDS = 0xEFFFFFFC  # the kernel's PROC_PID_INIT_INO: the same since 3.8
WHOLE_USER_NAMESPACE = ["0", "0", "4294967295"]


def in_initial_pids() -> bool:
    return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PIDS


def in_initial_users() -> bool:
    """Whether we are in the initial user namespace; in others, such as a rootless container's, capabilities
    can't load BPF.
    """
    with open("/proc/self/uid_map") as f:
        return f.read().split() == WHOLE_USER_NAMESPACE


def proc_is_ours() -> bool:
    """Whether /proc shows our own pid namespace."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def root_of(pid: int, path: str) -> str:
    """The prefix under which we find the process's files. path: of its executable, as /proc shows it."""
    for root in ("", f"/proc/{pid}/root"):
        try:
            if os.path.samefile(root + path, f"/proc/{pid}/exe"):
                return root
        except OSError:
            continue
    return ""


def defines(offsets: Mapping[str, int]) -> list[str]:
    """The defines with which the C translates numbers for us. offsets: of btf.PID_MEMBERS."""
    here = os.stat("/proc/self/ns/pid")
    flags = [f"-D{name}={offset}" for name, offset in sorted(offsets.items())]
    return [*flags, f"-DPID_NAMESPACE_DEVICE={here.st_dev}", f"-DPID_NAMESPACE_INODE={here.st_ino}U"]


class Translator:
    """Asks the kernel for a process's number in the initial pid namespace. table: returns the program's map
    of a name.
    """

    def __init__(self, table: Callable[[bytes], Any]) -> None:
        self._asked, agent = table(b"asked"), table(b"agent")
        # The process whose questions it answers; the level is needed once a process is watched.
        agent[ctypes.c_int(0)] = agent.Leaf(tgid=os.getpid())
        self._ask(os.getpid())
        agent[ctypes.c_int(0)] = agent.Leaf(tgid=os.getpid(), level=self._answer().level)

    def tgid(self, pid: int) -> int:
        """The process's number in the initial pid namespace; 0 if there is no such process."""
        self._asked[ctypes.c_int(0)] = self._asked.Leaf()
        self._ask(pid)
        tgid: int = self._answer().tgid
        return tgid

    def _answer(self) -> Any:
        return self._asked[ctypes.c_int(0)]

    @staticmethod
    def _ask(pid: int) -> None:
        # It is not our child, so this returns at once; but the tracepoint sees which process we meant.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
