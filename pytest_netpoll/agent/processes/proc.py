"""Reads /proc about a process. Every function returns None or an empty value if the process is gone."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Collection
from typing import NamedTuple


class Registration(NamedTuple):
    """A descriptor registered with an epoll instance. inode: of what it is, on the device of that number."""

    fd: int
    events: int
    data: int
    inode: int = 0
    device: int = 0


class Mapping(NamedTuple):
    """A file mapped into a process's memory, from start to end. offset: in the file."""

    start: int
    end: int
    offset: int
    path: str


# Exists only with CONFIG_SCHED_INFO: how long threads wait for a CPU.
TELLS_WAITS = os.path.exists("/proc/self/schedstat")

# The files to read of a thread.
_OF_THREADS = ("stat", "schedstat" if TELLS_WAITS else "stat")
_RUNNING = ord("R")
# Descriptors of this process: in all, and those reserved for other uses than Threads'.
_MOST_FDS, _OTHER_FDS = 8192, 512
_PF_FORKNOEXEC = 0x40  # linux/sched.h

_MARK = b"PYTEST_NETPOLL_SERVICE="  # pytest_netpoll/service/guardian.py

_TFD = re.compile(
    r"^tfd:\s*(\d+)\s+events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)\s+pos:\S+\s+ino:([0-9a-f]+)\s+sdev:([0-9a-f]+)",
    re.M,
)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def executable(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


def program(pid: int) -> tuple[int, int] | None:
    """(device, inode) of the program's file, whatever its path; None if it is gone."""
    try:
        status = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def capabilities(pid: int) -> int:
    """A mask of the permitted capabilities; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as f:
            return next(int(line.split()[1], 16) for line in f if line.startswith("CapPrm:"))
    except (OSError, StopIteration):
        return 0


def has_execed(pid: int) -> bool:
    """Whether it has exec'ed a program; until then it may share its parent's memory."""
    flags, _ = _flags_and_threads(pid)
    return flags is not None and not flags & _PF_FORKNOEXEC


def may_exec_soon(pid: int) -> bool:
    """Whether it is a child as Go forks them to exec a program: with one thread, and its parent's memory."""
    flags, threads = _flags_and_threads(pid)
    return flags is not None and bool(flags & _PF_FORKNOEXEC) and threads == 1


def _flags_and_threads(pid: int) -> tuple[int | None, int]:
    """The kernel's flags of the process, and how many threads it has; (None, 0) if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return int(fields[6]), int(fields[17])
    except (OSError, IndexError, ValueError):
        return None, 0


def is_64_bit(pid: int) -> bool | None:
    """Whether the program is a 64-bit ELF; None if it can't be read."""
    try:
        with open(f"/proc/{pid}/exe", "rb") as f:
            head = f.read(5)
    except OSError:
        return None
    return head[:4] == b"\x7fELF" and head[4:] == b"\x02"


def parent(pid: int) -> int:
    """0 if it has none, or has ended."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return int(f.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def family(pid: int) -> list[int]:
    """The other live processes of the service that the process leads.

    As in service/guardian.py: those in the session that it leads, those with its mark (all that identifies a
    daemon whose parent has ended), and all their descendants.
    """
    table = {}  # pid -> (parent, session, start)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as f:
                fields = f.read().rpartition(")")[2].split()
            table[int(name)] = int(fields[1]), int(fields[3]), int(fields[19])
        except (OSError, IndexError, ValueError):
            continue
    if pid not in table:
        return []
    children: dict[int, list[int]] = {}
    for number, (parent, _, _) in table.items():
        children.setdefault(parent, []).append(number)
    _, session, began = table[pid]
    mark = _mark(pid) if session == pid else None  # if it leads no session, it may have inherited it
    queue = [
        number
        for number, (_, session, start) in table.items()
        if session == pid or (mark is not None and start >= began and _mark(number) == mark)
    ]
    found = {pid}
    queue.append(pid)
    while queue:
        number = queue.pop()
        queue += [child for child in children.get(number, ()) if child not in found]
        found.add(number)
    return list(found - {pid})


def _mark(pid: int) -> bytes | None:
    """The variable in its environment that marks a service launched by pytest; None without one."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            return next((v for v in f.read().split(b"\0") if v.startswith(_MARK)), None)
    except OSError:
        return None


def cpu_time(pid: int) -> int | None:
    """ns of CPU used, or None. Read from the process's own clock, which includes threads that have ended."""
    try:
        # clock_getcpuclockid(3), which Python lacks; CPUCLOCK_SCHED counts in ns.
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        return None


class Threads:
    """Reads the threads of a process repeatedly. Their files stay open, since opening them costs the most, up
    to a number that leaves the agent enough descriptors.
    """

    most_kept = 0  # threads whose files stay open, over all processes; see keep_open
    _kept = 0

    @classmethod
    def keep_open(cls) -> None:
        """Raises this process's limit on descriptors as far as allowed."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = min(hard, _MOST_FDS) if hard != resource.RLIM_INFINITY else _MOST_FDS
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        cls.most_kept = max(0, allowed - _OTHER_FDS) // 2

    def __init__(self, pid: int) -> None:
        self._base = f"/proc/{pid}/task"
        self._files: dict[str, list[int]] = {}  # tid -> descriptors of its stat and its schedstat

    def look(self, states: bool) -> tuple[list[tuple[str, int]], int]:
        """[(tid, ns spent runnable but waiting for a CPU)], and how many threads run or wait for a CPU now. 0
        ns if the kernel doesn't report it. states: whether to count the second, which takes most of the time;
        0 if not. There may be thousands of threads.
        """
        waits, running = [], 0
        try:
            tids = os.listdir(self._base)
        except OSError:
            tids = []
        for tid in self._files.keys() - tids:
            self._drop(tid)
        files, pread = self._files, os.pread
        for tid in tids:
            try:
                stat, schedstat = files.get(tid) or self._open(tid)
                if states:
                    text = pread(stat, 512, 0)
                    running += text[text.rindex(b")") + 2] == _RUNNING
                waits.append((tid, int(pread(schedstat, 64, 0).split()[1]) if TELLS_WAITS else 0))
                if Threads._kept > Threads.most_kept:
                    self._drop(tid)
            except (OSError, ValueError, IndexError):  # it has ended
                self._drop(tid)
        return waits, running

    def close(self) -> None:
        for tid in list(self._files):
            self._drop(tid)

    def _open(self, tid: str) -> list[int]:
        # Kept at once: if the thread ends before the second is open, the first one is dropped, too.
        files = self._files[tid] = []
        Threads._kept += 1
        for name in _OF_THREADS:
            files.append(os.open(f"{self._base}/{tid}/{name}", os.O_RDONLY))
        return files

    def _drop(self, tid: str) -> None:
        files = self._files.pop(tid, None)
        if files is not None:
            Threads._kept -= 1
            for fd in files:
                os.close(fd)


def epoll_instances(pid: int) -> dict[int, list[Registration]]:
    """{epoll fd: [Registration]} for all epoll instances of the process."""
    instances: dict[int, list[Registration]] = {}
    base = f"/proc/{pid}"
    try:
        fds = os.listdir(base + "/fd")
    except OSError:
        return instances
    for fd in fds:
        if link(pid, int(fd)) == "anon_inode:[eventpoll]":
            instances[int(fd)] = registrations(pid, int(fd))
    return instances


def registrations(pid: int, epfd: int) -> list[Registration]:
    """The registrations with one epoll instance."""
    try:
        with open(f"/proc/{pid}/fdinfo/{epfd}") as f:
            text = f.read()
    except OSError:
        return []
    return [
        Registration(int(tfd), int(events, 16), int(data, 16), int(inode, 16), int(device, 16))
        for tfd, events, data, inode, device in _TFD.findall(text)
    ]


class Memory:
    """Reads a process's memory; a read of an unmapped address returns None."""

    def __init__(self, pid: int) -> None:
        self._file = open(f"/proc/{pid}/mem", "rb", buffering=0)  # noqa: SIM115

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, address: int, size: int) -> bytes | None:
        try:
            data = os.pread(self._file.fileno(), size, address)
        except (OSError, OverflowError):
            return None
        return data if len(data) == size else None


def mappings(pid: int, executable: bool = True) -> list[Mapping]:
    """The file-backed mappings, either of code or of everything else."""
    found: list[Mapping] = []
    try:
        with open(f"/proc/{pid}/maps") as f:
            lines = f.readlines()
    except OSError:
        return found
    for line in lines:
        fields = line.rstrip("\n").split(None, 5)
        if len(fields) < 6 or ("x" in fields[1]) != executable:
            continue
        start, _, end = fields[0].partition("-")
        found.append(Mapping(int(start, 16), int(end, 16), int(fields[2], 16), fields[5]))
    return found


def link(pid: int, fd: int) -> str | None:
    """What the descriptor is, such as "socket:[4711]" or a path; None if it is closed."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return None


def network(pid: int) -> int:
    """The process's network namespace; 0 if it is unknown or the process has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def udp_checksum_errors(pid: int) -> int | None:
    """UDP datagrams that the process's network namespace dropped for a wrong checksum, over IPv4 and IPv6."""
    try:
        with open(f"/proc/{pid}/net/snmp") as f:
            names, values = (line.split() for line in f if line.startswith("Udp: "))
        total = int(values[names.index("InCsumErrors")])
        if os.path.exists(f"/proc/{pid}/net/snmp6"):
            with open(f"/proc/{pid}/net/snmp6") as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith("Udp6InCsumErrors"))
    except (OSError, ValueError, IndexError):
        return None
    return total


def unix_paths(pid: int, inodes: Collection[int]) -> dict[int, str]:
    """{inode: path} of unix sockets in the process's network namespace; "" for those without a path."""
    paths: dict[int, str] = {}
    try:
        with open(f"/proc/{pid}/net/unix") as f:
            next(f, None)
            # There may be thousands, so never hold all of them in memory.
            for line in f:
                fields = line.rstrip("\n").split(None, 7)
                if int(fields[6]) in inodes:
                    paths[int(fields[6])] = fields[7] if len(fields) > 7 else ""
    except (OSError, ValueError, IndexError):
        pass
    return paths
