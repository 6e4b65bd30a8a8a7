"""Where the agent lives, and what processes are called elsewhere.

BPF programs know processes by their numbers in the initial pid namespace; /proc, pytest and the agent
by those in their own. Paths are those of a process's own mount namespace.
"""

import contextlib
import ctypes
import os

INITIAL_PIDS = 0xEFFFFFFC  # the kernel's PROC_PID_INIT_INO: the same since 3.8
WHOLE_USER_NAMESPACE = ["0", "0", "4294967295"]


def in_initial_pids():
    return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PIDS


def in_initial_users():
    """Whether capabilities here count in the kernel at large; in a rootless container they do not."""
    with open("/proc/self/uid_map") as f:
        return f.read().split() == WHOLE_USER_NAMESPACE


def proc_is_ours():
    """Whether /proc shows the pid namespace we are in."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def root_of(pid, path):
    """What goes before a path of the process for us to find the same file there.

    path: of its executable, as /proc shows it.
    """
    for root in ("", "/proc/%d/root" % pid):
        try:
            if os.path.samefile(root + path, "/proc/%d/exe" % pid):
                return root
        except OSError:
            continue
    return ""


def defines(offsets):
    """What the C needs in order to translate for us. offsets: of btf.PID_MEMBERS."""
    here = os.stat("/proc/self/ns/pid")
    flags = ["-D%s=%d" % item for item in sorted(offsets.items())]
    flags += ["-DPID_NAMESPACE_DEVICE=%d" % here.st_dev, "-DPID_NAMESPACE_INODE=%dU" % here.st_ino]
    return [*flags, "-DAGENT_PID=%d" % os.getpid()]


class Translator:
    """Asks the kernel for the number that a process has in the initial pid namespace."""

    def __init__(self, bpf):
        self._asked = bpf.get_table(b"asked")
        self._ask(os.getpid())
        bpf.get_table(b"agent_level")[ctypes.c_int(0)] = ctypes.c_uint32(self._answer().level)

    def tgid(self, pid):
        """0 where there is no such process."""
        self._asked[ctypes.c_int(0)] = self._asked.Leaf()
        self._ask(pid)
        return self._answer().tgid

    def _answer(self):
        return self._asked[ctypes.c_int(0)]

    @staticmethod
    def _ask(pid):
        # It is not our child, so this returns at once; the kernel tells the tracepoint whom we meant.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
