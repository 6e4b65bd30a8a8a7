"""What the program can do on this kernel, by the kernel's type information, and the flags to compile it."""

from __future__ import annotations

from collections.abc import Mapping

import constants
from bpf import atomics, btf, footprint, layouts, machine
from processes import namespaces

# Why arrivals of data can't be recorded.
_NO_BTF = "this kernel has no type information (BTF), and without it sockets cannot be inspected"
_NO_MEMBER = "this kernel's type information (BTF) lacks a member of its sockets that the agent reads"
_NO_TRACEPOINT = "this kernel has no tracepoint sock:sk_data_ready, which came with Linux 6.3"
_NOT_ASKED = "answers were not timed"


class Lacking(Exception):
    """The kernel lacks something without which nothing may be measured; the message says what."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


class Features:
    """Raises Lacking. variants: flags for BCC, the preferred ones first; the last ones do without arrivals of
    data. tracepoint, arrival, iterator: the numbers of the types of sys_exit, of sk_data_ready and of the
    iterator over files; None if there are none, or they aren't needed. no_arrivals: why arrivals of data
    aren't recorded, or None. sees_sockets, sees_held_writes, follows_children: as in the agent's answer to
    load.
    """

    def __init__(
        self,
        types: btf.Answers,
        name: str,
        max_processes: int,
        max_fds: int,
        served: int | None,
        times_answers: bool,
        traced: bool,
    ) -> None:
        """name: the machine's. The others are as for program.Kernel."""
        tasks, files = types.offsets(btf.TASK_MEMBERS), types.offsets(btf.FILE_MEMBERS)
        self.follows_children = tasks is not None
        flags = [f"-DMAX_PROCESSES={max_processes}", f"-DMAX_FDS={max_fds}"]
        flags += machine.DEFINES[name]
        flags += _defines({**constants.MACROS, **machine.MACROS, "LAYOUTS": len(layouts.LAYOUTS)})
        if atomics.can_exchange():
            flags.append("-DATOMIC_EXCHANGE")
        if traced:
            flags.append("-DTRACE")
        sockets = types.offsets(btf.SOCKET_MEMBERS)
        registered = types.first_offsets(btf.REGISTRATIONS)
        self.sees_sockets = bool(files and sockets and registered)
        tcp = types.offsets(btf.TCP_MEMBERS) if files else None
        self.sees_held_writes = tcp is not None
        known = (tasks, files, sockets, registered, tcp)
        flags += _defines({name: at for group in known for name, at in (group or {}).items()})
        if served is not None:
            flags += _restriction(
                types.offsets(btf.CREDENTIAL_MEMBERS), types.first_offsets(btf.DUMPABLE_MEMBERS)
            )
        if not namespaces.in_initial_pids():
            flags += _translation(types.offsets(btf.PID_MEMBERS))
        self.tracepoint = types.typedef("btf_trace_sys_exit")
        self.arrival = types.typedef("btf_trace_sk_data_ready") if times_answers else None
        self.iterator = types.function("bpf_iter_task_file") if times_answers else None
        self.no_arrivals = _NOT_ASKED if not times_answers else None if files else _lack_of_types(types)
        if self.no_arrivals is None and not sockets:
            self.no_arrivals = _NO_MEMBER
        most = footprint.inboxes(max_processes, max_fds)
        arrivals = self._arrivals(types, most) if self.no_arrivals is None else []
        self.variants = [[*flags, *arrivals], flags] if arrivals else [flags]

    def _arrivals(self, types: btf.Answers, inboxes: int) -> list[str]:
        """The flags that make the program record arrivals of data; empty if this kernel can't."""
        members = types.offsets(btf.INBOX_MEMBERS)
        if members is None or self.arrival is None:
            self.no_arrivals = _NO_TRACEPOINT if self.arrival is None else _NO_MEMBER
            return []
        members.update(types.offsets(btf.MPTCP_MEMBERS) or {})
        return ["-DARRIVAL_TIMES", *_defines({**members, "INBOXES": inboxes})]


def _lack_of_types(types: btf.Answers) -> str:
    return _NO_MEMBER if any(answer is not None for answer in types.known.values()) else _NO_BTF


def _restriction(credentials: Mapping[str, int] | None, dumpable: Mapping[str, int] | None) -> list[str]:
    """The flags that keep an ordinary user's agent to that user's processes."""
    if credentials is None or dumpable is None:
        lacking = "keeps elsewhere whether a program is dumpable"
        if credentials is None:
            lacking = "has no BTF that describes credentials"
        raise Lacking(
            f"this kernel {lacking}, and without it the agent cannot check at an exec whether the "
            "program has more rights than its user",
            "run pytest as root",
        )
    return _defines({**credentials, **dumpable})


def _translation(offsets: Mapping[str, int] | None) -> list[str]:
    """The flags that translate the numbers of processes for an agent in a pid namespace of its own."""
    if not namespaces.proc_is_ours():
        raise Lacking(
            "the agent's pid namespace is not the one that /proc shows",
            "mount -t proc proc /proc; or run pytest in the host's (docker run --pid=host)",
        )
    if offsets is None:
        raise Lacking(
            "the agent is in its own pid namespace, and this kernel has no BTF for pid namespaces",
            "run pytest in the host's pid namespace (docker run --pid=host)",
        )
    return namespaces.defines(offsets)


def _defines(numbers: Mapping[str, int]) -> list[str]:
    return [f"-D{name}={number}" for name, number in sorted(numbers.items())]
