"""Probes on the goready path of the watched programs: where pytest's side found a place, once it is proven.

A probe belongs to the program's file. It sees every process of it, forked or exec'ed later, from its
first instruction on; the BPF program tells the watched ones from others.
"""

import os
import threading
import time

import machine
import proc
import uprobe
from kernel import UPROBES, LoadFailed

# In the order in which `attach` takes their places.
READY, DEADLINE = UPROBES

# So much before and behind the place must be in memory what it is in the file.
_AROUND = 16


class BadPlace(Exception):
    """No probe can be placed there; the message says why."""

    def __init__(self, what, fix=None):
        super().__init__(what)
        self.fix = fix


class Attached:
    """The probes on one program. at: since when, monotonic ns. fds: what keeps them there."""

    def __init__(self, fds, deadlines):
        self.at = time.monotonic_ns()
        self.fds = fds
        self.deadlines = deadlines


class Probes:
    """may_probe: tells from the status of a program's file whether probes in it are for the user we serve."""

    def __init__(self, kernel, may_probe):
        self._kernel = kernel
        self._may_probe = may_probe
        self._by_program = {}  # (device, inode) -> Attached
        self._detaching = []  # threads
        self._stacks_of_one_in = {}  # window -> ready calls, 0 for no stacks

    def attach(self, process, ready, deadline):
        """Counts in all processes that run this one's program. Raises BadPlace.

        ready, deadline: offsets in the file; no deadline is counted where that is 0.
        """
        if process.program not in self._by_program:
            self._by_program[process.program] = self._attach(process, ready, deadline)

    def of(self, process):
        """Attached, or None."""
        return self._by_program.get(process.program)

    def open(self, window, stacks_of_one_in):
        """From here on the stack of one ready call in so many is kept, of none for 0."""
        self._stacks_of_one_in[window] = stacks_of_one_in
        self._kernel.sample_ready_stacks(max(self._stacks_of_one_in.values()))

    def keeps_stacks(self, window):
        """Whether stacks are kept for it."""
        return bool(self._stacks_of_one_in[window])

    def close(self, window):
        del self._stacks_of_one_in[window]
        self._kernel.sample_ready_stacks(max(self._stacks_of_one_in.values(), default=0))

    def counted(self, process, window, counters):
        """What the bank's counters hold of the goready path; None where the process did more than that."""
        ready_calls, deadline_wakeups = counters["ready_calls"], counters["deadline_wakeups"]
        if process.program is None:  # it came and went: all that can be said is what was counted
            return {"ready_calls": ready_calls, "deadline_wakeups": deadline_wakeups}
        attached = self.of(process)
        # A program that is first seen in the window is attached only when its process has run for a moment.
        counts = attached is not None and attached.at <= max(window.opened, process.since)
        return {
            "ready_calls": ready_calls if counts else None,
            "deadline_wakeups": deadline_wakeups if counts and attached.deadlines else None,
        }

    def release(self, processes):
        """Detaches from what none of these processes, all that are watched, runs."""
        needed = {process.program for process in processes}
        for program in self._by_program.keys() - needed:
            # The kernel takes its time, a tenth of a second for each; nobody need wait for it.
            thread = threading.Thread(target=self._detach, args=(self._by_program.pop(program).fds,))
            thread.start()
            self._detaching.append(thread)

    @staticmethod
    def _detach(fds):
        for fd in fds:
            os.close(fd)

    def _attach(self, process, ready, deadline):
        if uprobe.crashed():
            raise BadPlace(
                "this kernel has had an oops since it booted (see dmesg) and may hang at uprobes", "reboot"
            )
        # By the process's own name for it: the file may have been replaced, or be in another namespace.
        try:
            fd = os.open("/proc/%d/exe" % process.pid, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadPlace("its program cannot be read: %s" % error) from error
        try:
            status = os.fstat(fd)
            # A probe is in all processes of the file; in the wrong place it would break others' of them.
            if not self._may_probe(status):
                raise BadPlace("its program is not this user's", "run pytest as root")
            if (status.st_dev, status.st_ino) != process.program:
                raise BadPlace("it runs another program by now")
            # The file that was looked at, whatever the process runs meanwhile.
            return self._attach_to(process, "/proc/self/fd/%d" % fd, ready, deadline)
        finally:
            os.close(fd)

    def _attach_to(self, process, path, ready, deadline):
        places = [(READY, ready)] + ([(DEADLINE, deadline)] if deadline else [])
        for _, offset in places:
            prove(process.pid, path, offset)
        # One that is still there would count a second time.
        while self._detaching:
            self._detaching.pop().join()
        fds = []
        try:
            for function, offset in places:
                fds.append(self._kernel.attach_uprobe(path.encode(), offset, function))
        except LoadFailed as error:
            self._detach(fds)
            raise BadPlace("the kernel refuses a uprobe: %s" % error, error.fix) from error
        return Attached(fds, bool(deadline))


def prove(pid, path, offset):
    """Raises BadPlace unless the process runs what the file holds there, and a probe is cheap."""
    own = proc.executable(pid)
    mapped = [
        start + offset - at
        for start, end, at, name in proc.mappings(pid)
        if name == own and at <= offset < at + end - start
    ]
    try:
        with open(path, "rb") as f:
            code = os.pread(f.fileno(), 2 * _AROUND, offset - _AROUND) if offset >= _AROUND else b""
        with proc.Memory(pid) as memory:
            live = memory.read(mapped[0] - _AROUND, 2 * _AROUND) if mapped else None
    except (OSError, ValueError) as error:
        raise BadPlace("its program cannot be read: %s" % error) from error
    if live is None:
        raise BadPlace("nothing executable is mapped at offset %#x" % offset)
    if not machine.emulated(code[_AROUND:]):
        raise BadPlace("the instruction at offset %#x is not one that the kernel emulates" % offset)
    breakpoint = machine.BREAKPOINT_SIZE
    for part in (slice(_AROUND), slice(_AROUND + breakpoint, None)):
        if live[part] != code[part]:
            raise BadPlace("the memory at offset %#x is not what the program's file holds" % offset)
