"""The BPF program in the kernel: compiled or from the cache, loaded, attached; typed access to its maps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import constants
from bpf import (
    binding,
    btf,
    cache,
    compiler,
    cpu,
    image,
    layouts,
    machine,
    tracing,
    uprobe,
)
from bpf.features import Features, Lacking
from constants import SLOT_BITS, STACKS
from processes import namespaces
from security import privileges
from security.store import Store, Unusable

if TYPE_CHECKING:
    from bpf import structs

# Joined in this order; each uses only what comes before it.
SOURCES = (
    "maps.c",
    "arguments.c",
    "state.c",
    "descriptors.c",
    "offenders.c",
    "trace.c",
    "times.c",
    "slowest.c",
    "inboxes.c",
    "answers.c",
    "waits.c",
    "io_calls.c",
    "calibration.c",
    "polls.c",
    "woken.c",
    "held.c",
    "netpoll.c",
    "children.c",
    "goready.c",
    "cpu.c",
)
_PARTS = (".c", ".h", ".py")
AT_SYS_EXIT, AT_ARRIVAL, AT_DESCRIPTOR = b"syscall_returned", b"data_ready", b"note_descriptor"
CONTINUATIONS = (b"drain_events", b"record_woken", b"look_at_write")  # bpf/polls.c numbers them
UPROBES = (b"ready_called", b"deadline_woke")
_REFUSED = "this kernel rejects the program that records when data arrives"


def slot_of(owner: int) -> int:
    return (owner & (1 << SLOT_BITS) - 1) - 1


class LoadFailed(Exception):
    """The program could not be compiled, loaded or attached; the details went to stderr."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


class Kernel:
    """The loaded program; everything is attached when the constructor returns. Raises LoadFailed, and Unable
    if there is no BCC but it is needed.

    BCC's module and values from maps have no types, so they are Any.
    sources: the directory that holds SOURCES, their headers and stub/.
    served: the uid of the only user whose processes may be watched; None for root, who may watch any.
    kept: where compiled programs are kept, None for nowhere. times_answers: whether to record when data
    arrives and is answered, which costs time on each request. traced: how many records of single events a
    window keeps, 0 for none. compiled: whether it was compiled, not read from the cache. not_kept: why the
    cache could not be used. not_filled: why the program could not be stored there.
    """

    def __init__(
        self,
        sources: str,
        max_processes: int,
        max_fds: int,
        served: int | None = None,
        kept: Store | None = None,
        times_answers: bool = False,
        traced: int = 0,
    ) -> None:
        name = machine.current()
        if name not in machine.NUMBERS:
            raise LoadFailed(
                f"this machine ({name}) has no table of syscalls; "
                f"known are {', '.join(sorted(machine.NUMBERS))}"
            )
        if max_processes >= 1 << SLOT_BITS:
            raise LoadFailed(f"{max_processes} processes are more than {(1 << SLOT_BITS) - 1}")
        self.signed = name == "x86_64"
        self.max_processes = max_processes
        self.max_fds = max_fds
        self.traced = traced
        tracing.lift_memory_limit()
        self.compiled, self.typed = True, False
        self.bcc = self.not_kept = self.not_filled = ""
        key, entry = "", None
        if kept is not None:
            variant = (max_processes, max_fds, served is not None, times_answers, traced > 0)
            key = cache.key(_parts(sources), name, *variant)
            entry = self._recall(kept, key)
        types = btf.Answers(entry.answers if entry is not None else None)
        try:
            self._features = features = Features(
                types, name, max_processes, max_fds, served, times_answers, traced > 0
            )
        except Lacking as error:
            raise LoadFailed(str(error), error.fix) from error
        self.follows_children = features.follows_children
        self.sees_sockets = features.sees_sockets
        self.sees_held_writes = features.sees_held_writes
        self.no_arrivals = features.no_arrivals
        self._translator: namespaces.Translator | None = None
        self._walker: int | None = None
        if entry is None or not self._load_kept(entry, served):
            entry = self._compile(sources, served, types)
            if kept is not None:
                self._keep(kept, key, entry)
        if len(features.variants) > 1 and list(entry.flags) == features.variants[-1]:
            self.no_arrivals = _REFUSED
        self.bcc = entry.bcc
        self.cpu = cpu.Sampler(lambda: self.image.load(b"cpu_sampled", tracing.PERF_EVENT))
        table = self.image.table
        self.watched = table(b"watched")
        self.targets = table(b"targets")
        self.pollers = table(b"pollers")
        self._settings = table(b"settings")
        self._current = self._settings.Leaf()
        self._kept_epochs = table(b"kept_epochs")
        self.counts = table(b"counts")
        self.latencies = table(b"latencies")
        self.delays = table(b"delays")
        self.inboxes = None if self.no_arrivals else table(b"inboxes")
        self.slowest = table(b"slowest")
        self.slow_answers = table(b"slow_answers")
        self.io_failures = table(b"io_failures")
        self.polls_by_events = table(b"polls_by_events")
        self._stacks = (table(b"stacks"), table(b"more_stacks"))
        self.offenders = table(b"offenders")
        self.switches = table(b"switches")
        self.free_slots = table(b"free_slots")
        self._sampling = table(b"sampling")
        self._parked_stacks = table(b"parked_stacks")
        if traced:
            self.trace_records = table(b"trace_records")
            self.trace_dropped = table(b"trace_dropped")
        self._fill(table(b"roles"), table(b"layouts"), name)
        if not namespaces.in_initial_pids():
            self._translator = namespaces.Translator(table)

    def _recall(self, kept: Store, key: str) -> cache.Entry | None:
        try:
            entry = cache.recall(kept, key)
        except Unusable as error:
            self.not_kept = str(error)
            return None
        changed = binding.changed(entry.files)
        if changed is not None:
            self.not_kept = f"{changed} is not the one that it was compiled with"
            return None
        return entry

    def _load_kept(self, entry: cache.Entry, served: int | None) -> bool:
        if list(entry.flags) not in self._features.variants:
            self.not_kept = "it was compiled for other sizes, or another kernel"
            return False
        try:
            self._load(entry.compiled, self._features.tracepoint if entry.typed else None, served)
        except (OSError, KeyError, ValueError) as error:
            self.not_kept = f"the kernel rejects the cached program: {error}"
            return False
        self.compiled = False
        return True

    def _keep(self, kept: Store, key: str, entry: cache.Entry) -> None:
        try:
            cache.keep(kept, key, entry)
        except Unusable as error:
            self.not_filled = str(error)

    def _compile(self, sources: str, served: int | None, types: btf.Answers) -> cache.Entry:
        """Loads the first variant that the kernel accepts, with types if possible. Raises LoadFailed.

        Kernels and versions of BCC accept different ones.
        """
        bcc = binding.load()
        os.environ["BCC_KERNEL_SOURCE"] = os.path.join(sources, "stub")
        text = b""
        for source in SOURCES:
            with open(os.path.join(sources, source), "rb") as f:
                text += f.read()
        tracepoint = self._features.tracepoint
        failed: Exception | None = None
        for flags in self._features.variants:
            for point in (tracepoint, None) if tracepoint is not None else (None,):
                given = ["-I" + sources, *flags, *([] if point is None else ["-DTYPED_ARGS"])]
                try:
                    compiled = compiler.compile(bcc, text, given)
                    self._load(compiled, point, served)
                except Exception as error:  # BCC raises bare Exception
                    failed = error
                else:
                    files = binding.files(bcc)
                    return cache.Entry(
                        flags, types.known, point is not None, bcc.__version__, files, compiled
                    )
        raise LoadFailed(str(failed)) from failed

    def _load(self, compiled: compiler.Compiled, tracepoint: int | None, served: int | None) -> None:
        """Loads and attaches everything: it does nothing while no process is watched. Raises OSError,
        ValueError.

        tracepoint: the number of sys_exit's type; None to load without types.
        """
        loaded = image.Image(compiled, {"trace_records": self.traced})
        with contextlib.ExitStack() as undo:
            undo.callback(loaded.close)
            if served is not None:
                loaded.table(b"served_uid")[ctypes.c_int(0)] = ctypes.c_uint32(served)
            entry, *others = loaded.load_together(
                *(
                    functools.partial(loaded.load, name, tracing.RAW_TRACEPOINT)
                    if tracepoint is None
                    else functools.partial(loaded.load_typed, name, tracepoint)
                    for name in (AT_SYS_EXIT, *CONTINUATIONS)
                ),
                # Loaded now, with privileges; attached once a program is known.
                *(functools.partial(loaded.load, name, tracing.KPROBE) for name in UPROBES),
            )
            for number, program in enumerate(others[: len(CONTINUATIONS)]):
                loaded.table(b"continuations")[ctypes.c_int(number)] = ctypes.c_uint32(program)
            loaded.attach_named()
            if AT_ARRIVAL.decode() in compiled.programs:
                if tracepoint is None or self._features.arrival is None:
                    loaded.attach(AT_ARRIVAL, b"sk_data_ready")
                else:
                    loaded.attach_typed(loaded.load_typed(AT_ARRIVAL, self._features.arrival))
            if AT_DESCRIPTOR.decode() in compiled.programs and self._features.iterator is not None:
                with contextlib.suppress(OSError):  # without it, older sockets are unknown: note_sockets
                    self._walker = loaded.load_iterator(AT_DESCRIPTOR, self._features.iterator)
            if tracepoint is None:
                loaded.attach(AT_SYS_EXIT, b"sys_exit")
            else:
                loaded.attach_typed(entry)
            undo.pop_all()
        self.image, self.typed = loaded, tracepoint is not None

    def tgid_of(self, pid: int) -> int:
        """The process's number in the initial pid namespace, as BPF sees it; 0 if there is none."""
        return pid if self._translator is None else self._translator.tgid(pid)

    def _fill(self, roles: Any, layout_table: Any, name: str) -> None:
        for number, role in machine.roles(name).items():
            roles[ctypes.c_int(number)] = ctypes.c_uint32(role)
        for i, layout in enumerate(layouts.LAYOUTS):
            layout_table[ctypes.c_int(i)] = self.layout_value(layout, layout_table.Leaf)
        for slot in range(self.max_processes):
            self.free_slots.push(ctypes.c_uint32(slot))

    @staticmethod
    def layout_value(layout: layouts.Layout, leaf: Callable[..., structs.Layout]) -> structs.Layout:
        return leaf(right=layout.right, left=layout.left, tag_bits=layout.tag_bits, waiters=layout.waiters)

    def works(self) -> bool:
        """Whether this process may use the maps."""
        try:
            self.home(0)
        except OSError:
            return False
        return True

    def keep_epochs(self, epochs: Sequence[int]) -> None:
        """epochs: the epoch of each bank, 0 if no window needs it."""
        leaf = self._kept_epochs.Leaf()
        leaf.of_bank[:] = epochs
        self._kept_epochs[ctypes.c_int(0)] = leaf

    def set_epoch(self, epoch: int) -> None:
        self._current.epoch = epoch
        self._settings[ctypes.c_int(0)] = self._current

    def keep(
        self, culprits: bool, unclaimed: bool, futile_calls: bool, io_calls: bool, held_writes: bool
    ) -> None:
        """Chooses what to record: spurious and slow wakeups, events that found nobody, futile I/O calls or
        all of them, writes that are held back.
        """
        self._current.keeping = (
            culprits * constants.KEEP_CULPRITS
            | unclaimed * constants.KEEP_UNCLAIMED
            | futile_calls * constants.KEEP_FUTILE_CALLS
            | io_calls * constants.KEEP_IO_CALLS
            | (culprits and self.traced > 0) * constants.KEEP_TRACE
            | held_writes * constants.KEEP_HELD_WRITES
        )
        self._settings[ctypes.c_int(0)] = self._current

    def forget_culprits(self) -> None:
        self.offenders.clear()
        self.switches.clear()
        self._parked_stacks.clear()
        self._free_stacks(lambda _: True)

    def make_room_for_stacks(self, still_wanted: Collection[int]) -> None:
        """Drops all other stacks once a quarter of the room is taken. still_wanted: stack ids. A stack that
        is recorded at the same moment may be lost.
        """
        taken = sum(len(table) for table in self._stacks)
        if taken > STACKS * len(self._stacks) // 4:
            self._free_stacks(lambda number: number not in still_wanted)

    def _free_stacks(self, unwanted: Callable[[int], bool]) -> None:
        for i, table in enumerate(self._stacks):
            for place in [key.value for key in table.keys()]:  # noqa: SIM118 - no dict
                if unwanted(i * STACKS + place):
                    with contextlib.suppress(KeyError):
                        del table[ctypes.c_int(place)]

    def stack(self, number: int) -> list[int]:
        """The stack's addresses, innermost first; empty if it was not kept."""
        table, place = divmod(ctypes.c_int(number).value, STACKS)
        if table not in range(len(self._stacks)):
            return []
        try:
            return list(itertools.takewhile(bool, self._stacks[table][ctypes.c_int(place)].ip))
        except KeyError:
            return []

    def parked_stack(self, number: int) -> list[int]:
        """As `stack`, for a woken goroutine."""
        try:
            return list(itertools.takewhile(bool, self._parked_stacks[ctypes.c_uint64(number)].pc))
        except KeyError:
            return []

    def forget_parked_stacks(self, still_wanted: Collection[int]) -> None:
        """Drops all stacks of woken goroutines once half of the room is taken."""
        numbers = [key.value for key in self._parked_stacks.keys()]  # noqa: SIM118 - a table of BCC's
        for number in numbers if len(numbers) > constants.PARKED_STACKS // 2 else ():
            if number not in still_wanted:
                with contextlib.suppress(KeyError):
                    del self._parked_stacks[ctypes.c_uint64(number)]

    def sample(self, what: int, every: int) -> None:
        """Records one in `every` events, none for 0. what: constants.SAMPLE_…"""
        self._sampling[ctypes.c_int(what)] = ctypes.c_uint32(every)

    def attach_uprobe(self, path: bytes, offset: int, function: bytes, pid: int = uprobe.EVERYBODY) -> int:
        """Runs the BPF function whenever this process (or any) executes the file at the offset. Returns the
        file descriptor that keeps it attached. Raises LoadFailed.
        """
        try:
            program = self.image.load(function, tracing.KPROBE)
            with privileges.raised("SYS_ADMIN"):
                return uprobe.attach(path, offset, program, pid)
        except PermissionError as error:
            fix = "run pytest as root, or give it CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN)"
            raise LoadFailed(str(error), fix) from error
        except (OSError, ValueError) as error:
            raise LoadFailed(str(error)) from error

    def take_slot(self) -> int | None:
        """A free slot's number, or None."""
        try:
            slot: int = self.free_slots.pop().value
        except KeyError:
            return None
        return slot

    def give_slot(self, slot: int) -> None:
        self.targets[ctypes.c_int(slot)] = self.targets.Leaf()
        self.free_slots.push(ctypes.c_uint32(slot))

    def home(self, tgid: int) -> tuple[int, int]:
        """(tgid, owner) in the place where this tgid would go; (0, 0) if that is free."""
        value: int = self.watched[self._place(tgid)].value
        return value >> 32, value & 0xFFFFFFFF

    def _place(self, tgid: int) -> ctypes.c_int:
        return ctypes.c_int(tgid % len(self.watched))

    def lives(self, tgid: int) -> bool:
        """Whether the process is watched, whatever program it runs."""
        return self.home(tgid)[0] == tgid

    def is_current(self, process: structs.Known) -> bool:
        """Whether the process, or target, still runs the program that was recorded for it. Ask after reading
        its memory: it may have exec'ed a program that its user may not inspect.
        """
        return self.home(process.tgid) == (process.tgid, process.owner)

    def has_ended(self, process: structs.Known) -> bool:
        """Whether the process, or target, was watched until it ended, and not only until it exec'ed a program
        that its user may not inspect.
        """
        target = self.target(slot_of(process.owner))
        is_foreign = (target.tgid, target.owner) == (process.tgid, process.owner) and bool(target.foreign)
        return not self.lives(process.tgid) and not is_foreign

    def settle(
        self, slot: int, tgid: int, pid: int, root: int, capabilities: int, accepted: Iterable[int] = ()
    ) -> structs.Target:
        """Starts watching the process, in a slot taken for it. Returns its target. capabilities: a mask; if
        they change, the process no longer counts as its user's. accepted: see note_accepted.
        """
        now = time.monotonic_ns()
        # The bits above the slot distinguish this owner from the slot's former ones.
        owner = (now >> 10) << SLOT_BITS & 0xFFFFFFFF | slot + 1
        target: structs.Target = self.targets.Leaf(
            tgid=tgid, root=root, owner=owner, kept=1, local=pid, capabilities=capabilities, since=now
        )
        self.targets[ctypes.c_int(slot)] = target
        self._note_accepted(slot, owner, accepted)
        self.watched[self._place(tgid)] = ctypes.c_uint64(tgid << 32 | owner)
        return target

    def _note_accepted(self, slot: int, owner: int, fds: Iterable[int]) -> None:
        """Notes that these descriptors come from accept. Call it before the process is watched: data may come
        there before note_sockets runs, and a connection that dials has no responses.
        """
        waits = self.image.table(b"waits")
        for fd in fds:
            if fd < self.max_fds:
                waits[ctypes.c_int((slot * self.max_fds + fd) * 2)] = waits.Leaf(
                    owner=owner, socket=constants.SOCKET_ACCEPTED
                )

    def note_sockets(self, pid: int, listening: Collection[int]) -> bool:
        """Records arrivals on the process's existing sockets from now on, if any are to be recorded. Returns
        whether all those sockets are known.

        pid: of a watched process. listening: its listening TCP ports; connections there were accepted.
        """
        if self.no_arrivals is not None:
            return True
        if self._walker is None:
            return False
        ports = self.image.table(b"listening")
        ports.clear()
        try:
            for port in listening:
                ports[ctypes.c_uint16(port)] = ctypes.c_uint8(1)
            tracing.walk(self._walker, pid)
        except OSError:  # it has ended, or listens on more ports than there is room for
            return False
        return True

    def evict(self, tgid: int) -> None:
        if self.lives(tgid):
            self.watched[self._place(tgid)] = ctypes.c_uint64(0)

    def target(self, slot: int) -> structs.Target:
        target: structs.Target = self.targets[ctypes.c_int(slot)]
        return target

    def poller(self, target: structs.Target) -> structs.Poller:
        """What is known about the process's poller; nothing if it belongs to a former owner."""
        poller: structs.Poller = self.pollers[_slot(target)]
        if poller.owner == target.owner:
            return poller
        poller = self.pollers.Leaf(owner=target.owner, epfd=-1)
        for candidate in poller.candidates:
            candidate.epfd = -1
        return poller

    def set_poller(self, poller: structs.Poller) -> None:
        """Sets what is known about the poller; valid while the process has this owner, until it execs."""
        self.pollers[_slot(poller)] = poller


def _parts(sources: str) -> Iterator[str]:
    """The files that a compiled program depends on: the C, and the modules that compile and load it."""
    here = os.path.dirname(os.path.abspath(__file__))
    yield constants.__file__
    for top in (here, sources):
        for directory, below, files in os.walk(top):
            below[:] = sorted(name for name in below if name != "__pycache__")
            yield from (os.path.join(directory, name) for name in sorted(files) if name.endswith(_PARTS))


def _slot(owned: structs.Owned) -> ctypes.c_int:
    return ctypes.c_int(slot_of(owned.owner))
