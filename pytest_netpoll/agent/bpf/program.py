"""The BPF program in the kernel: compile, load, attach; typed access to its maps."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import constants
from bpf import atomics, btf, cpu, footprint, layouts, machine, tracing, uprobe
from constants import SLOT_BITS, STACKS
from processes import namespaces
from security import privileges

if TYPE_CHECKING:
    from bpf import structs

# Joined in this order: each uses only what comes before it.
SOURCES = (
    "maps.c",
    "arguments.c",
    "state.c",
    "descriptors.c",
    "offenders.c",
    "times.c",
    "slowest.c",
    "inboxes.c",
    "answers.c",
    "waits.c",
    "io_calls.c",
    "calibration.c",
    "polls.c",
    "netpoll.c",
    "children.c",
    "goready.c",
    "cpu.c",
)
AT_SYS_EXIT, DRAIN, AT_ARRIVAL = b"syscall_returned", b"drain_events", b"data_ready"
UPROBES = (b"ready_called", b"deadline_woke")


# Why it is not known when data arrives: what, and the fix.
_NO_BTF = "this kernel has no type information (BTF), and without it sockets cannot be looked into"
_NO_TRACEPOINT = "this kernel has no tracepoint sock:sk_data_ready: Linux 6.3 brought it"
_REFUSED = "this kernel does not take the program that notes when data arrives"


def slot_of(owner: int) -> int:
    return (owner & (1 << SLOT_BITS) - 1) - 1


class LoadFailed(Exception):
    """The program could not be compiled, loaded or attached; the details went to stderr."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


class Kernel:
    """Everything is attached on return. Raises LoadFailed.

    bcc: the imported module. What of it has no types is Any: BPF objects, tables, and what is read from them.
    sources: the directory that holds SOURCES, their headers and stub/.
    served: the uid of the user whose processes alone are watched; None for root, who may have any.
    """

    def __init__(
        self, bcc: Any, sources: str, max_processes: int, max_fds: int, served: int | None = None
    ) -> None:
        name = machine.current()
        if name not in machine.NUMBERS:
            raise LoadFailed(
                f"this machine ({name}) has no table of syscalls; "
                f"known are {', '.join(sorted(machine.NUMBERS))}"
            )
        if max_processes >= 1 << SLOT_BITS:
            raise LoadFailed(f"{max_processes} processes are more than {(1 << SLOT_BITS) - 1}")
        self._bcc = bcc
        self.signed = name == "x86_64"
        self.max_processes = max_processes
        self.max_fds = max_fds
        types = btf.kernels()
        tasks, files = types.offsets(btf.TASK_MEMBERS), types.offsets(btf.FILE_MEMBERS)
        self.follows_children = tasks is not None
        self.typed = False  # whether sys_exit's arguments are
        self._translator: namespaces.Translator | None = None
        # Before 5.11 maps are charged to this limit, and the default is far too small.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.environ["BCC_KERNEL_SOURCE"] = os.path.join(sources, "stub")
        flags = ["-I" + sources, f"-DMAX_PROCESSES={max_processes}", f"-DMAX_FDS={max_fds}"]
        flags += machine.DEFINES[name]
        flags += _defines({**constants.MACROS, **machine.MACROS, "LAYOUTS": len(layouts.LAYOUTS)})
        if atomics.can_exchange():
            flags.append("-DATOMIC_EXCHANGE")
        flags += _defines({**(tasks or {}), **(files or {})})
        if served is not None:
            flags += self._restriction(served, types.offsets(btf.CREDENTIAL_MEMBERS))
        if not namespaces.in_initial_pids():
            flags += self._translation(types.offsets(btf.PID_MEMBERS))
        self.no_arrivals = None if files else _NO_BTF
        arrivals = [] if self.no_arrivals else self._arrivals(types)
        self._load(sources, flags, arrivals, types.typedef("btf_trace_sys_exit"))
        self.cpu = cpu.Sampler(lambda: self.bpf.load_func(b"cpu_sampled", bcc.BPF.PERF_EVENT).fd)
        table = self.bpf.get_table
        self.watched = table(b"watched")
        self.targets = table(b"targets")
        self.pollers = table(b"pollers")
        self.epochs = table(b"epochs")
        self._kept_epochs = table(b"kept_epochs")
        self.counts = table(b"counts")
        self.latencies = table(b"latencies")
        self.delays = table(b"delays")
        self.inboxes = None if self.no_arrivals else table(b"inboxes")
        self.slowest = table(b"slowest")
        self.slow_answers = table(b"slow_answers")
        self.io_failures = table(b"io_failures")
        self._stacks = (table(b"stacks"), table(b"more_stacks"))
        self.offenders = table(b"offenders")
        self.switches = table(b"switches")
        self.free_slots = table(b"free_slots")
        self._keeping = table(b"keeping")
        self._ready_sampling = table(b"ready_sampling")
        self._io_sampling = table(b"io_sampling")
        self._fill(table(b"roles"), table(b"layouts"), name)
        if not namespaces.in_initial_pids():
            self._translator = namespaces.Translator(self.bpf)

    def _arrivals(self, types: btf.Types) -> list[str]:
        """The flags with which the program notes when data arrives; none where this kernel cannot tell."""
        members = types.offsets(btf.INBOX_MEMBERS)
        if members is None or types.typedef("btf_trace_sk_data_ready") is None:
            self.no_arrivals = _NO_TRACEPOINT
            return []
        members.update(types.offsets(btf.MPTCP_MEMBERS) or {})
        most = footprint.inboxes(self.max_processes, self.max_fds)
        return ["-DARRIVAL_TIMES", *_defines({**members, "INBOXES": most})]

    def _load(self, sources: str, flags: list[str], arrivals: list[str], tracepoint: int | None) -> None:
        """Attaches everything at once: it does nothing while nobody is watched.

        arrivals: flags that can be done without. tracepoint: the number of sys_exit's type, None where the
        kernel has none.
        """
        text = b""
        for source in SOURCES:
            with open(os.path.join(sources, source), "rb") as f:
                text += f.read()
        cwd = os.getcwd()
        try:
            # Kernels and BCCs differ in what they take; then it is done as it always could be.
            if arrivals:
                with contextlib.suppress(Exception):
                    self._load_either(text, [*flags, *arrivals], tracepoint)
                    return
                self.no_arrivals = _REFUSED
            self._load_either(text, flags, tracepoint)
        except Exception as error:  # BCC raises bare Exception
            raise LoadFailed(str(error)) from error
        finally:
            os.chdir(cwd)

    def _load_either(self, text: bytes, flags: list[str], tracepoint: int | None) -> None:
        if tracepoint is not None:
            with contextlib.suppress(Exception):
                self._load_typed(text, flags, tracepoint)
                return
        self._load_untyped(text, flags)

    def _load_typed(self, text: bytes, flags: list[str], tracepoint: int) -> None:
        self.bpf = self._bcc.BPF(text=text, cflags=[*flags, "-DTYPED_ARGS"])
        with contextlib.ExitStack() as undo:
            undo.callback(self.bpf.cleanup)
            self._load_uprobes()
            programs: list[int] = []
            for name in (AT_SYS_EXIT, DRAIN):
                programs.append(tracing.load(name, self.bpf.dump_func(name), tracepoint))
                # Each keeps all the maps in the kernel, beside those that are made next.
                undo.callback(os.close, programs[-1])
            entry, drain = programs
            self._continue_with(drain)
            self._attach_arrivals()
            self._link = tracing.attach(entry)
            undo.pop_all()
        self.typed = True

    def _load_untyped(self, text: bytes, flags: list[str]) -> None:
        self.bpf = self._bcc.BPF(text=text, cflags=flags)
        with contextlib.ExitStack() as undo:
            undo.callback(self.bpf.cleanup)
            self._load_uprobes()
            self._continue_with(self.bpf.load_func(DRAIN, self._bcc.BPF.RAW_TRACEPOINT).fd)
            self._attach_arrivals()
            self.bpf.attach_raw_tracepoint(tp=b"sys_exit", fn_name=AT_SYS_EXIT)
            undo.pop_all()

    def _attach_arrivals(self) -> None:
        if self.no_arrivals is None:
            self.bpf.attach_raw_tracepoint(tp=b"sk_data_ready", fn_name=AT_ARRIVAL)

    def _continue_with(self, program: int) -> None:
        self.bpf.get_table(b"continuations")[ctypes.c_int(0)] = ctypes.c_int(program)

    def _load_uprobes(self) -> None:
        # Now, while we may: they are attached only when a program is known.
        for function in UPROBES:
            self.bpf.load_func(function, self._bcc.BPF.KPROBE)

    @staticmethod
    def _restriction(served: int, offsets: Mapping[str, int] | None) -> list[str]:
        if offsets is None:
            raise LoadFailed(
                "this kernel has no BTF, and without it the agent cannot tell at an exec whether the program "
                "has more rights than its user",
                "run pytest as root",
            )
        return [*_defines(offsets), f"-DSERVED_UID={served}U"]

    @staticmethod
    def _translation(offsets: Mapping[str, int] | None) -> list[str]:
        if not namespaces.proc_is_ours():
            raise LoadFailed(
                "the agent's pid namespace is not the one that /proc shows",
                "mount -t proc proc /proc; or run pytest in the host's (docker run --pid=host)",
            )
        if offsets is None:
            raise LoadFailed(
                "the agent is in a pid namespace of its own, and this kernel has no BTF to see through it",
                "run pytest in the host's pid namespace (docker run --pid=host)",
            )
        return namespaces.defines(offsets)

    def tgid_of(self, pid: int) -> int:
        """What the kernel calls the process, 0 when there is none: BPF knows no pid namespaces."""
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
        except KeyError:
            return False
        return True

    def keep_epochs(self, epochs: Sequence[int]) -> None:
        """epochs: those that have a bank, by bank; 0 where nobody asks for it."""
        leaf = self._kept_epochs.Leaf()
        leaf.of_bank[:] = epochs
        self._kept_epochs[ctypes.c_int(0)] = leaf

    def set_epoch(self, epoch: int) -> None:
        self.epochs[ctypes.c_int(0)] = ctypes.c_uint32(epoch)

    def keep(self, culprits: bool, unclaimed: bool, futile_calls: bool, io_calls: bool) -> None:
        """What is recorded: who was woken for nothing or latest; on which descriptors events found nobody;
        who made futile I/O calls, or any.
        """
        flags = (
            culprits * constants.KEEP_CULPRITS
            | unclaimed * constants.KEEP_UNCLAIMED
            | futile_calls * constants.KEEP_FUTILE_CALLS
            | io_calls * constants.KEEP_IO_CALLS
        )
        self._keeping[ctypes.c_int(0)] = ctypes.c_uint32(flags)

    def forget_culprits(self) -> None:
        self.offenders.clear()
        self.switches.clear()
        self._free_stacks(lambda _: True)

    def make_room_for_stacks(self, still_wanted: Collection[int]) -> None:
        """Forgets all others where a quarter of the room is taken. still_wanted: stack ids.

        One that is kept at this very moment may be lost.
        """
        taken = sum(len(table) for table in self._stacks)
        if taken > STACKS * len(self._stacks) // 4:
            self._free_stacks(lambda number: number not in still_wanted)

    def _free_stacks(self, unwanted: Callable[[int], bool]) -> None:
        # One by one: what BCC calls clear() does nothing to them.
        for i, table in enumerate(self._stacks):
            for place in [key.value for key in table.keys()]:  # noqa: SIM118 - a table of BCC's
                if unwanted(i * STACKS + place):
                    with contextlib.suppress(KeyError):
                        del table[ctypes.c_int(place)]

    def stack(self, number: int) -> list[int]:
        """Addresses, innermost first; empty where it was not kept."""
        table, place = divmod(ctypes.c_int(number).value, STACKS)
        if table not in range(len(self._stacks)):
            return []
        try:
            # At once: BCC's walk() asks the kernel for the whole stack again for every frame.
            return list(itertools.takewhile(bool, self._stacks[table][ctypes.c_int(place)].ip))
        except KeyError:
            return []

    def sample_ready_stacks(self, every: int) -> None:
        """Keeps the stack of one ready call in `every`, of none for 0."""
        self._ready_sampling[ctypes.c_int(0)] = ctypes.c_uint32(every)

    def sample_io_stacks(self, every: int) -> None:
        """Records the stack of one I/O call in `every` of those that are to be recorded, of none for 0."""
        self._io_sampling[ctypes.c_int(0)] = ctypes.c_uint32(every)

    def attach_uprobe(self, path: bytes, offset: int, function: bytes, pid: int = uprobe.EVERYBODY) -> int:
        """Runs the BPF function where the program's file is executed at the offset, by this process or all.

        Returns the file descriptor that keeps it attached. Raises LoadFailed.
        """
        try:
            program = self.bpf.load_func(function, self._bcc.BPF.KPROBE)
            with privileges.raised("SYS_ADMIN"):
                return uprobe.attach(path, offset, program.fd, pid)
        except PermissionError as error:
            fix = "run pytest as root, or give it CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN)"
            raise LoadFailed(str(error), fix) from error
        except Exception as error:  # BCC raises bare Exception
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
        """(tgid, owner) that lives where this tgid would; (0, 0) when nobody does."""
        value: int = self.watched[self._place(tgid)].value
        return value >> 32, value & 0xFFFFFFFF

    def _place(self, tgid: int) -> ctypes.c_int:
        return ctypes.c_int(tgid % len(self.watched))

    def lives(self, tgid: int) -> bool:
        """Whether it is watched, whatever program it runs."""
        return self.home(tgid)[0] == tgid

    def is_current(self, process: structs.Known) -> bool:
        """Whether the process, or target, runs the program that it is known with.

        Asked after its memory was read: that may have been the memory of what it has exec'ed since, which
        need not be for its user to know.
        """
        return self.home(process.tgid) == (process.tgid, process.owner)

    def settle(self, slot: int, tgid: int, pid: int, root: int, capabilities: int) -> structs.Target:
        """Starts watching the process, in a slot that was taken for it. Returns its target.

        capabilities: bits of those that it has; with others it is its user's no more.
        """
        now = time.monotonic_ns()
        # The number above the slot tells what the slot's former processes left behind.
        owner = (now >> 10) << SLOT_BITS & 0xFFFFFFFF | slot + 1
        target: structs.Target = self.targets.Leaf(
            tgid=tgid, root=root, owner=owner, kept=1, local=pid, capabilities=capabilities, since=now
        )
        self.targets[ctypes.c_int(slot)] = target
        self.watched[self._place(tgid)] = ctypes.c_uint64(tgid << 32 | owner)
        return target

    def evict(self, tgid: int) -> None:
        if self.lives(tgid):
            self.watched[self._place(tgid)] = ctypes.c_uint64(0)

    def target(self, slot: int) -> structs.Target:
        target: structs.Target = self.targets[ctypes.c_int(slot)]
        return target

    def poller(self, target: structs.Target) -> structs.Poller:
        """What is known of its poller: nothing, where what is there is a former owner's."""
        poller: structs.Poller = self.pollers[_slot(target)]
        if poller.owner == target.owner:
            return poller
        poller = self.pollers.Leaf(owner=target.owner, epfd=-1)
        for candidate in poller.candidates:
            candidate.epfd = -1
        return poller

    def set_poller(self, poller: structs.Poller) -> None:
        """Of use only while the process has this owner, that is, until it execs."""
        self.pollers[_slot(poller)] = poller


def _defines(numbers: Mapping[str, int]) -> list[str]:
    return [f"-D{name}={number}" for name, number in sorted(numbers.items())]


def _slot(owned: structs.Owned) -> ctypes.c_int:
    return ctypes.c_int(slot_of(owned.owner))
