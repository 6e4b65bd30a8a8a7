"""Uprobes on the goready path of the watched programs, at places that pytest's side found and the agent
proved.

For root a probe is attached to the program's file. It sees every process that runs it, forked or exec'ed
later too, from the first instruction on; the BPF program ignores those that aren't watched.

For a user it is attached to one process of that user, and changes no other memory: neither of other users who
run the file, nor of another file behind it. So a child, or a program that was exec'ed, has probes only once
the agent has seen it. What it did before isn't counted, and the window in which it began reports no ready
calls.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Optional, Union

from bpf import machine, prologue, uprobe
from bpf.program import UPROBES, LoadFailed
from constants import SAMPLE_READY_CALLS
from processes import functions, proc
from security import plain

if TYPE_CHECKING:
    from bpf.program import Kernel
    from counters.windows import Window
    from processes.watched import Process
    from security.privileges import Invoker

    _Program = Optional[tuple[int, int]]  # Process.program
    _Key = Union[_Program, int]  # what has probes: a program or an owner

# In the order of `attach`'s parameters.
READY, DEADLINE = UPROBES
NAMES = {READY: "runtime.ready", DEADLINE: "runtime.netpollgoready"}

# Memory and file must be equal for this many bytes before and behind the place.
_AROUND = 16


class BadPlace(Exception):
    """No probe can be placed there; the message says why."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


class Attached:
    """The probes on one program, or in one process. at: since when, monotonic ns. fds: keep them attached."""

    def __init__(self, pid: int, fds: list[int], deadlines: bool) -> None:
        self.at = time.monotonic_ns()
        self.pid = pid
        self.fds = fds
        self.deadlines = deadlines


class Probes:
    """may_watch: whether the user may watch a process."""

    def __init__(self, kernel: Kernel, user: Invoker, may_watch: Callable[[int], bool]) -> None:
        self._kernel = kernel
        self._user = user
        self._may_watch = may_watch
        self._places: dict[_Program, tuple[int, int]] = {}  # -> offsets of READY and DEADLINE
        self._attached: dict[_Key, Attached] = {}
        self._refused: set[int] = set()  # owners whose processes `follow` could not attach to
        self._detaching: list[threading.Thread] = []
        self._stacks_of_one_in: dict[int, int] = {}  # window -> one stack in this many, 0: none

    def attach(self, process: Process, ready: int, deadline: int) -> None:
        """Counts ready calls in all processes that run this one's program. Raises BadPlace. ready, deadline:
        offsets in the file; deadlines aren't counted if that is 0.
        """
        if self._key(process) not in self._attached:
            self._attached[self._key(process)] = self._attach(process, ready, deadline)
            self._places[process.program] = ready, deadline

    def follow(self, processes: Iterable[Process]) -> None:
        """Attaches to an ordinary user's children that run a program whose places are known."""
        for process in processes if self._own_only else ():
            places = self._places.get(process.program)
            if places is None or process.exited or process.foreign:
                continue
            if process.owner in self._attached or process.owner in self._refused:
                continue
            try:
                self.attach(process, *places)
            except BadPlace:
                self._refused.add(process.owner)

    @property
    def _own_only(self) -> bool:
        return not self._user.is_root

    def _key(self, process: Process) -> _Key:
        """After an exec a process is another owner: its memory is new and has no probes."""
        return process.owner if self._own_only else process.program

    def of(self, process: Process) -> Attached | None:
        return self._attached.get(self._key(process))

    def open(self, window: int, stacks_of_one_in: int) -> None:
        """Keeps the stack of one ready call in that many from now on, of none for 0."""
        self._stacks_of_one_in[window] = stacks_of_one_in
        self._kernel.sample(SAMPLE_READY_CALLS, max(self._stacks_of_one_in.values()))

    def keeps_stacks(self, window: int) -> bool:
        """Whether stacks are kept for the window."""
        return bool(self._stacks_of_one_in[window])

    def close(self, window: int) -> None:
        del self._stacks_of_one_in[window]
        self._kernel.sample(SAMPLE_READY_CALLS, max(self._stacks_of_one_in.values(), default=0))

    def unprobed(self, processes: Iterable[Process], window: Window, children: int) -> int:
        """How many children forked in the window ended without their ready calls being counted.

        processes: the root's living descendants. children: those forked in the window.
        """
        if not self._own_only:
            return 0
        here = [p for p in processes if p.forked is not None and p.forked >= window.opened and p.program]
        return max(0, children - len(here))

    def counted(self, process: Process, window: Window, counters: Mapping[str, int]) -> dict[str, int | None]:
        """The bank's counters of the goready path; None if the process did more than was counted."""
        ready_calls, deadline_wakeups = counters["ready_calls"], counters["deadline_wakeups"]
        if process.program is None and not self._own_only:
            # It came and went: only what was counted is known.
            return {"ready_calls": ready_calls, "deadline_wakeups": deadline_wakeups}
        attached = self.of(process)
        # A program first seen in the window gets probes only after its process has run for a moment.
        if attached is None or attached.at > max(window.opened, process.since):
            return {"ready_calls": None, "deadline_wakeups": None}
        return {
            "ready_calls": ready_calls,
            "deadline_wakeups": deadline_wakeups if attached.deadlines else None,
        }

    def release(self, processes: Collection[Process]) -> None:
        """Detaches from programs that no process runs any more. processes: all watched ones."""
        self._let_go(self._attached.keys() - {self._key(process) for process in processes})
        self._refused &= {process.owner for process in processes}
        programs = {process.program for process in processes}
        self._places = {program: at for program, at in self._places.items() if program in programs}

    def reap(self, processes: Iterable[Process]) -> None:
        """Detaches the probes of single processes that have ended."""
        if self._own_only:
            self._let_go(self._attached.keys() - {self._key(process) for process in processes})

    def _let_go(self, keys: Iterable[_Key]) -> None:
        for key in keys:
            # The kernel takes 0.1 s for each; nobody needs to wait for it.
            thread = threading.Thread(target=self._detach, args=(self._attached.pop(key).fds,))
            thread.start()
            self._detaching.append(thread)

    @staticmethod
    def _detach(fds: Iterable[int]) -> None:
        for fd in fds:
            os.close(fd)

    def _attach(self, process: Process, ready: int, deadline: int) -> Attached:
        if uprobe.crashed():
            raise BadPlace(
                "this kernel has had an oops since it booted (see dmesg) and may hang at uprobes", "reboot"
            )
        # Through /proc: the file may have been replaced, or be in another namespace.
        try:
            fd = os.open(f"/proc/{process.pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadPlace(f"its program cannot be read: {error}") from error
        try:
            status = os.fstat(fd)
            if self._own_only:
                self._refuse_suspicious(fd, status)
                if not proc.has_execed(process.pid):
                    raise BadPlace("it is still a copy of its parent")
            if (status.st_dev, status.st_ino) != process.program:
                raise BadPlace("it now runs another program")
            # The file that was checked, whatever the process runs meanwhile.
            return self._attach_to(process, f"/proc/self/fd/{fd}", ready, deadline)
        except BadPlace as error:
            if not self._kernel.is_current(process):  # the error may concern another program
                raise BadPlace("it now runs another program") from error
            raise
        finally:
            os.close(fd)

    def _refuse_suspicious(self, fd: int, status: os.stat_result) -> None:
        if status.st_uid != self._user.uid:
            raise BadPlace("its program belongs to another user", "run pytest as root")
        try:
            suspicion = plain.suspicion(fd)
        except OSError as error:
            raise BadPlace(f"its program can't be inspected: {error}") from error
        if suspicion is not None:
            raise BadPlace(suspicion, "run pytest as root")

    def _attach_to(self, process: Process, path: str, ready: int, deadline: int) -> Attached:
        places = [(READY, ready)] + ([(DEADLINE, deadline)] if deadline else [])
        for function, offset in places:
            address, code = prove(process.pid, path, offset)
            if self._own_only:
                prove_function(process.pid, address, code, NAMES[function])
        # The program that it ran before may have left its own probes.
        self._let_go([key for key, attached in self._attached.items() if attached.pid == process.pid])
        # A probe that is still there would count twice.
        while self._detaching:
            self._detaching.pop().join()
        pid = process.pid if self._own_only else uprobe.EVERYBODY
        fds: list[int] = []
        try:
            for function, offset in places:
                fds.append(self._kernel.attach_uprobe(path.encode(), offset, function, pid))
        except LoadFailed as error:
            self._detach(fds)
            raise BadPlace(f"the kernel refuses a uprobe: {error}", error.fix) from error
        # Another process may have taken over its pid in between.
        if self._own_only and not (self._kernel.is_current(process) and self._may_watch(process.pid)):
            self._detach(fds)
            raise BadPlace("the process has ended")
        return Attached(pid, fds, bool(deadline))


def prove_function(pid: int, address: int, code: bytes, name: str) -> None:
    """Raises BadPlace unless the address is just behind the entry of the Go function of that name.

    address: in the process's memory. code: the file's bytes from there on; in memory there may be a
    breakpoint.
    """
    own = proc.executable(pid)
    data = [mapping for mapping in proc.mappings(pid, executable=False) if mapping.path == own]
    try:
        with proc.Memory(pid) as memory:
            function = functions.Functions(memory, data).at(address)
            before = memory.read(function.entry, min(address - function.entry, prologue.LONGEST))
    except (OSError, LookupError, ValueError) as error:
        raise BadPlace(f"its functions are not known: {error}") from error
    if function.name != name:
        raise BadPlace(f"{address:#x} is in {function.name}, not in {name}")
    if before is None or prologue.cheap_place(before + code, os.uname().machine) != address - function.entry:
        raise BadPlace(f"{address:#x} is not where {name} begins")


def prove(pid: int, path: str, offset: int) -> tuple[int, bytes]:
    """Checks that the process runs the file's code there, and that a probe is cheap. Returns (the address in
    its memory, the file's bytes from there on). Raises BadPlace.
    """
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
        raise BadPlace(f"its program cannot be read: {error}") from error
    if live is None:
        raise BadPlace(f"nothing executable is mapped at offset {offset:#x}")
    if not machine.emulated(code[_AROUND:]):
        raise BadPlace(f"the instruction at offset {offset:#x} is not one that the kernel emulates")
    breakpoint = machine.BREAKPOINT_SIZE
    for part in (slice(_AROUND), slice(_AROUND + breakpoint, None)):
        if live[part] != code[part]:
            raise BadPlace(f"the memory at offset {offset:#x} is not what the program's file holds")
    return mapped[0], code[_AROUND:]
