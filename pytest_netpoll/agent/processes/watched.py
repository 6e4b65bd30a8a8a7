"""The watched processes, their parents, and what calibration proved about each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bpf import layouts, structs
from processes import calibrate, namespaces, proc, sockets
from processes.calibrate import Calibration

if TYPE_CHECKING:
    from bpf.program import Kernel
    from counters.windows import Windows

_MOST_ENDED = 1024  # programs to remember: a service's children may run any number of them
_FURTHER = f"one of more than {_MOST_ENDED:,} programs"


class Refused(Exception):
    """The process cannot be watched; the message says why."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


class Process:
    """One watched process. tgid: its number in BPF. pid: our number for it. root: the pid of the watched
    process it descends from. owner: its number in BPF while it runs this program. since: when that began,
    monotonic ns. forked: when the kernel reported it as a new child; None for one that was there before.
    """

    def __init__(self, slot: int, target: structs.Target, forked: int | None = None) -> None:
        self.slot = slot
        self.tgid = target.tgid
        self.pid = target.local or target.tgid
        self.root = target.root
        self.owner = target.owner
        self.since = target.since
        self.forked = forked
        self.executable: str | None = None
        self.program: tuple[int, int] | None = None  # (device, inode)
        self.mappings: list[proc.Mapping] = []
        # owner -> mappings of this program, and of those that it ran before
        self.lives: dict[int, list[proc.Mapping]] = {}
        self.exited = False
        self.epfd = -1
        self.layout: layouts.Layout | None = None
        self.proven = 0
        self.unproven = 0
        self.more_pollers = 0  # registrations that prove another runtime
        self.why_not: str | None = None  # what calibration from outside saw, when it failed
        self.others = 0  # registrations that it saw, beside what may be the runtime's own, when it failed
        self.unwatched = 0  # children forked and not watched
        self.adopted = 0  # how many of those are watched by now or have ended
        self.foreign = False  # runs as another user now, such as root: not reported
        # Whether it has sockets from before it was watched on which arrivals can't be recorded.
        self.older_sockets = False
        # As of the last sample.
        self.cpu = 0  # ns used
        self.waited = 0  # ns runnable but waiting for a CPU, over all threads there were
        self.threads = 0
        self.running = 0  # threads on a CPU or waiting for one
        self._threads = proc.Threads(self.pid)
        self._waited: dict[str, int] = {}  # tid -> ns

    def look(self) -> None:
        """Updates what it runs, with paths that we can open; if it is gone, the last known values stay."""
        path = proc.executable(self.pid)
        root = namespaces.root_of(self.pid, path) if path else ""
        self.executable = root + path if path else self.executable
        found = [mapping._replace(path=root + mapping.path) for mapping in proc.mappings(self.pid)]
        self.mappings = self.lives[self.owner] = found or self.mappings
        self.program = proc.program(self.pid) or self.program

    def disown(self) -> None:
        """Stops reporting what it runs and uses: it now runs as another user."""
        self.foreign = True
        self.executable = self.program = None
        self.mappings = []

    def calibration(self) -> dict[str, Any]:
        """What has been proven about the process's poller, as JSON."""
        return {
            "layout": self.layout and self.layout.name,
            "epfd": self.epfd,
            "proven": self.proven,
            "unproven": self.unproven,
            "more_pollers": self.more_pollers,
            "why_not": self.why_not if self.layout is None else None,
            "others": self.others if self.layout is None else 0,
        }

    def sample(self, is_watched: Callable[[], bool], states: bool = True) -> None:
        """Reads its CPU time and threads; keeps the last values once it has ended. is_watched: asked after
        reading, since it may have exec'ed a program that its user may not inspect. states: whether to count
        running threads.
        """
        if self.exited or self.foreign:
            self.threads = self.running = 0
            self.rest()
            return  # the pid of a process that exited may be reused
        cpu = proc.cpu_time(self.pid) or self.cpu
        waits, running = self._threads.look(states)
        if not is_watched():
            return
        self.cpu, self.running = cpu, running
        # Thread by thread: else the time that a thread waited would be lost when it ends, and the sum would
        # shrink. A thread that execs takes over the main thread's id, with a smaller count.
        self.waited += sum(max(0, waited - self._waited.get(tid, 0)) for tid, waited in waits)
        self._waited = dict(waits)
        self.threads = len(waits)

    def rest(self) -> None:
        """Closes its files: it won't be looked at for a while."""
        self._threads.close()


def passed(before: tuple[int, int], after: tuple[int, int]) -> dict[str, int | None]:
    """CPU time between two Processes.times, as JSON; null for time waited if the kernel doesn't report it."""
    return {
        "cpu_ns": after[0] - before[0],
        "run_delay_ns": after[1] - before[1] if proc.TELLS_WAITS else None,
    }


def difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


class Processes:
    """Mirrors the kernel's targets. may_watch: whether the user may watch a process."""

    def __init__(self, kernel: Kernel, windows: Windows, may_watch: Callable[[int], bool]) -> None:
        self._kernel = kernel
        self._windows = windows
        self._may_watch = may_watch
        self._by_slot: dict[int, Process] = {}
        # root -> (cpu, waited) of its processes that were dropped
        self._past: dict[int, tuple[int, int]] = {}
        # (root, program's path) -> when such a process was last dropped while a window was open, monotonic ns
        self._ended: dict[tuple[int, str], int] = {}

    def of(self, root: int) -> list[Process]:
        return [p for p in self._by_slot.values() if p.root == root]

    def slots(self) -> list[int]:
        return list(self._by_slot)

    def roots(self) -> set[int]:
        return {p.root for p in self._by_slot.values()}

    def times(self, root: int) -> tuple[int, int]:
        """(ns of CPU used, ns waited for one) by all the root's processes so far, as of the last sample."""
        cpu, waited = self._past.get(root, (0, 0))
        processes = self.of(root)
        return cpu + sum(p.cpu for p in processes), waited + sum(p.waited for p in processes)

    def ended(self, root: int, since: int) -> list[str]:
        """The paths of the programs of the root's processes that have ended since then, and that never
        polled: nothing is left of them. since: monotonic ns, in a window that is or was open.
        """
        return sorted(path for (of, path), at in self._ended.items() if of == root and at >= since)

    def _note_end(self, process: Process) -> None:
        # A child that runs one thread may not have exec'ed its program yet. With Go there are always more.
        if self._windows.any_open and process.executable and process.threads > 1:
            key = (process.root, process.executable)
            if key not in self._ended and len(self._ended) >= _MOST_ENDED:
                key = (process.root, _FURTHER)
            self._ended[key] = time.monotonic_ns()

    def _drop(self, process: Process) -> None:
        """Drops the process, except for what it used."""
        del self._by_slot[process.slot]
        process.rest()
        cpu, waited = self._past.get(process.root, (0, 0))
        self._past[process.root] = cpu + process.cpu, waited + process.waited
        if not self.of(process.root):
            del self._past[process.root]

    def watch(self, pid: int) -> None:
        """Watches the process and all its descendants. Raises Refused."""
        if not proc.alive(pid):
            raise _does_not_run(pid)
        self.refresh()
        try:
            # The root first: the kernel follows what it forks from here on.
            self._admit(pid, pid)
            self._admit_descendants(pid)
        except Refused:
            self._undo(self.of(pid))
            raise
        for process in self.of(pid):
            if proc.has_execed(process.pid):
                known = self._kernel.note_sockets(process.pid, sockets.listening(process.pid))
                process.older_sockets = not known and bool(sockets.inodes(process.pid))
            self.calibrate(process)

    def _admit_descendants(self, root: int) -> None:
        """Watches those forked before we watched, or when there was no slot; repeats until nothing new
        appears.
        """
        # Of a shell that started us through sudo we are descendants, which its user may not inspect.
        ours = self._our_own()
        while True:
            known = {p.pid for p in self._by_slot.values() if not p.exited} | ours
            new = [child for child in proc.family(root) if child not in known and proc.alive(child)]
            if not new:
                return
            for child in new:
                try:
                    self._admit(child, root)
                except Refused:
                    if proc.alive(child):
                        raise
            self.refresh()

    def _our_own(self) -> set[int]:
        """The agent, and the sudo above it: those that the user may not watch."""
        found: set[int] = set()
        pid = os.getpid()
        while pid and pid not in found and not self._may_watch(pid):
            found.add(pid)
            pid = proc.parent(pid)
        return found

    def adopt(self) -> None:
        """Watches children that could not be watched before; there may be room now."""
        if self._windows.any_open:
            return  # that window lacked them, and has to report that
        for root in self.roots():
            processes = self.of(root)
            if not any(p.unwatched for p in processes) and self._kernel.follows_children:
                continue
            try:
                self._admit_descendants(root)
            except Refused:
                continue
            for process in processes:
                process.adopted += process.unwatched
                process.unwatched = 0

    def miss_children(self) -> None:
        """Counts unreported processes that poll as unwatched, until the next refresh."""
        if self._kernel.follows_children:
            return
        known = {p.pid for p in self._by_slot.values() if not p.exited}
        for root in self.roots():
            process = self.of(root)[0]
            new = [child for child in proc.family(root) if child not in known]
            process.unwatched += sum(self._polls(child) for child in new)

    def _polls(self, pid: int) -> bool:
        """Whether an unwatched process is a Go program that waits for the network."""
        try:
            found = calibrate.calibrate(pid, self._kernel.signed)
        except calibrate.Unreadable:
            return False  # most likely it has ended
        return found.layout is not None or found.strange is not None

    def unwatch(self, root: int) -> None:
        for process in self.of(root):
            self._kernel.evict(process.tgid)
            process.exited = True
        self.reap()

    def refresh(self) -> None:
        """Reads what changed in the kernel: children forked, programs exec'ed, layouts proven."""
        for slot in range(self._kernel.max_processes):
            target = self._kernel.target(slot)
            process = self._by_slot.get(slot)
            if process is not None and process.tgid != target.tgid:
                self._note_end(process)
                self._drop(process)
                process = None
            if not target.tgid or not target.owner:
                continue  # free, or being filled in at this moment
            known = process is not None
            if process is None:
                process = self._by_slot[slot] = Process(slot, target, target.since)
            if target.owner != process.owner:
                process.owner, process.since = target.owner, target.since
                known = False
            # A process that was unwatched during a window does not come back, though it still runs.
            process.exited = process.exited or bool(target.exited)
            process.unwatched = target.lost_children - process.adopted
            self._note(process, self._kernel.poller(target))
            if target.foreign:
                process.disown()
            elif not known and not process.exited and not self._look(process) and proc.alive(process.pid):
                self._kernel.evict(process.tgid)
                process.disown()
            # If the kernel can neither follow children nor report exits.
            if not process.exited and not proc.alive(process.pid):
                self._kernel.evict(process.tgid)
                process.exited = True

    def _note(self, process: Process, poller: structs.Poller) -> None:
        process.epfd = poller.epfd
        process.layout = self._named(poller.layout)
        process.proven = poller.proven
        process.unproven = poller.unproven
        process.more_pollers = poller.more_pollers
        if process.epfd < 0:
            process.unproven = sum(candidate.unproven for candidate in poller.candidates)

    def _look(self, process: Process) -> bool:
        """Updates what the process runs. Returns whether the user may know; asks before and after, since it
        may exec or its pid may be reused meanwhile.
        """
        if not self._may_watch(process.pid):
            return False
        process.look()
        return self._may_watch(process.pid)

    def _undo(self, processes: Sequence[Process]) -> None:
        """Removes the processes as if they had never been watched; no open window reports them."""
        for process in processes:
            self._kernel.evict(process.tgid)
        self.free(processes)

    def reap(self) -> None:
        """Frees the slots of processes that are gone, once no window needs them."""
        if not self._windows.any_open:
            self._ended.clear()
            self.free([process for process in self._by_slot.values() if process.exited])

    def free(self, ended: Iterable[Process]) -> None:
        """Frees the slots of these processes, which no window needs."""
        for process in ended:
            if self._by_slot.get(process.slot) is not process:
                continue
            self._drop(process)
            # If it never polled, the kernel freed its slot itself and may have reused it.
            if self._kernel.target(process.slot).tgid != process.tgid:
                continue
            self._windows.wipe(process.slot)
            self._kernel.give_slot(process.slot)

    def calibrate(self, process: Process) -> None:
        """Proves the layout from outside, from what was registered before we watched."""
        if process.layout is not None or process.exited or process.foreign:
            return
        if proc.is_64_bit(process.pid) is False:
            process.why_not = "it is a 32-bit program, only 64-bit ones can be measured"
            return
        for attempt in range(5):
            before = self._kernel.target(process.slot)
            if before.tgid != process.tgid:
                return
            try:
                found = calibrate.calibrate(process.pid, self._kernel.signed)
            except calibrate.Unreadable as error:
                process.why_not = str(error)
                return
            if not self._kernel.is_current(before):
                continue  # what was read may belong to another program
            process.why_not = found.strange
            process.others = found.others
            if not self._teach(process, found, before):
                # A connection that closes between the two reads looks like a contradiction.
                if found.strange is None:
                    return
                time.sleep(0.005 * attempt)

    def _teach(self, process: Process, found: Calibration, target: structs.Target) -> bool:
        """Passes the findings to the kernel. Returns whether to look again, because of changes in between.
        target: the process's target as it was before the search.
        """
        poller = self._kernel.poller(target)
        if poller.epfd >= 0:
            return False
        known = {candidate.epfd for candidate in poller.candidates}
        new = [item for item in found.candidates.items() if item[0] not in known]
        for epfd, wakeup in new:
            candidate = poller.candidates[poller.candidates_seen % len(poller.candidates)]
            candidate.epfd, candidate.fd, candidate.data = epfd, wakeup.fd, wakeup.data
            candidate.unproven = 0
            poller.candidates_seen += 1
        if found.layout is not None:
            poller.layout = self._kernel.layout_value(found.layout, type(poller.layout))
            poller.break_data = found.break_data
            poller.epfd = found.epfd
            poller.proven = found.registered
            poller.more_pollers = found.more
        elif not new:
            return False
        self._kernel.set_poller(poller)
        self._note(process, poller)
        # After an exec it is another owner, to which the findings don't apply.
        return found.layout is None or self._kernel.target(process.slot).owner != target.owner

    def _admit(self, pid: int, root: int) -> None:
        if not self._may_watch(pid):
            raise _not_for_this_user(pid, root)
        tgid = self._kernel.tgid_of(pid)
        if not tgid:
            raise _does_not_run(pid)
        home, _ = self._kernel.home(tgid)
        if home == tgid:
            self._refuse_a_second_root(pid, root)
            return
        # In another pid namespace it has a different pid, so we can't check here whether it lives.
        neighbour = next((p.pid for p in self._by_slot.values() if p.tgid == home), home)
        if home and proc.alive(neighbour):
            raise Refused(f"process {pid} cannot be watched beside process {neighbour}", "start it again")
        slot = self._kernel.take_slot()
        if slot is None:
            raise Refused(
                f"already watching {self._kernel.max_processes} processes, the maximum",
                f"--netpoll-max-processes={2 * self._kernel.max_processes}",
            )
        self._windows.wipe(slot)
        # Look only once the kernel reports execs: pytest's child may be in the middle of one, with nothing
        # mapped yet.
        process = self._by_slot[slot] = self._settle(slot, tgid, pid, root)
        # Ask about the process that is watched now: another one may have had the number before.
        if not self._look(process):
            self._undo([process])
            raise _not_for_this_user(pid, root)

    def _settle(self, slot: int, tgid: int, pid: int, root: int) -> Process:
        times_answers = self._kernel.no_arrivals is None
        accepted = sockets.accepted(pid) if times_answers and proc.has_execed(pid) else ()
        return Process(slot, self._kernel.settle(slot, tgid, pid, root, proc.capabilities(pid), accepted))

    def _refuse_a_second_root(self, pid: int, root: int) -> None:
        """Raises Refused: a process may belong to one service only."""
        other = next((p.root for p in self._by_slot.values() if p.pid == pid and not p.exited), root)
        if pid == root != other:
            raise Refused(
                f"process {pid} is already watched, as a child of process {other}",
                f"limit the service that process {other} is",
            )

    @staticmethod
    def _named(value: structs.Layout) -> layouts.Layout | None:
        fields = (value.right, value.left, value.tag_bits, value.waiters)
        for layout in layouts.LAYOUTS:
            if fields == tuple(layout)[1:]:
                return layout
        return None


def _not_for_this_user(pid: int, root: int) -> Refused:
    if not proc.alive(pid):
        return _does_not_run(pid)
    below = "" if pid == root else f", a descendant of process {root},"
    return Refused(
        f"process {pid}{below} belongs to another user, or has more privileges than its user",
        "run pytest as root",
    )


def _does_not_run(pid: int) -> Refused:
    return Refused(f"process {pid} is not running")
