"""Loads the program, gives up privileges, and answers messages until there are no more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import constants
import handlers
import protocol
from bpf import binding, cpus, footprint, program
from counters import sampler
from processes import proc, watched
from security import budget, hangup, privileges, seccomp, trust
from security.store import Store

_NOBODY = 65534
HERE = os.path.dirname(os.path.abspath(__file__))


def serve(agent: handlers.Agent, lines: Iterable[str | None], send: Callable[[object], None]) -> None:
    """Answers messages until the lines end."""
    for line in lines:
        identity = None
        try:
            identity, command, arguments = protocol.parse(line)
            if command in protocol.FIRST:
                raise protocol.BadMessage("the program is already loaded")
            send({"id": identity, "ok": getattr(agent, command)(**arguments)})
        except protocol.BadMessage as error:
            send({"id": identity, "error": {"what": f"the agent refused a message: {error}"}})
        except watched.Refused as error:
            send({"id": identity, "error": {"what": str(error), "fix": error.fix}})


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sources() -> str:
    """The directory of netpoll.c: beside the agent, or beside the package in a checkout."""
    parent = os.path.dirname(HERE)
    installed = os.path.join(parent, "bpf")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(parent), "bpf")


def verify() -> None:
    """Checks that only root can change the code that runs here. Raises protocol.Unable."""
    for path in (HERE, sources()):
        reason = trust.distrust(path)
        if reason is not None:
            raise protocol.Unable(
                f"the agent refuses to run as root where others can change it: {reason}",
                "remove it and install it again: python -m pytest_netpoll install-agent",
            )


def _take_place(user: privileges.Invoker, size: int) -> None:
    """Takes a slot among this user's agents, for as long as this one lives. Raises protocol.Unable."""
    try:
        with hangup.ends_with(sys.stdin.fileno()):
            budget.take(user.uid, size)
    except budget.Refused as error:
        raise protocol.Unable(str(error), error.fix) from error


def load(
    user: privileges.Invoker,
    timers: sampler.Timers,
    store: Store | None,
    max_processes: int,
    max_fds: int,
    uprobes: int,
    answers: int,
    trace: int,
) -> tuple[handlers.Agent, dict[str, Any]]:
    """Returns the agent and its report, with the program loaded and privileges dropped.

    store: where compiled programs are kept. uprobes: whether probes will be placed in programs later, which
    takes another privilege. answers: whether to time them. trace: how many records of single events a window
    keeps, 0 for none. Raises protocol.Unable.
    """
    started = time.monotonic()
    problem = privileges.why_not()
    if problem is not None:
        raise protocol.Unable(*problem)
    if not user.is_root:
        possible = cpus.possible()
        needed = (max_processes, max_fds, possible, bool(answers), trace)
        problem = footprint.too_large(*needed)
        if problem is not None:
            raise protocol.Unable(*problem)
        # A user who has the capabilities anyway isn't limited by this agent.
        if os.geteuid() == 0:
            _take_place(user, footprint.size(*needed))
    try:
        # This takes a second on an idle machine, many on a busy one; pytest may be killed meanwhile.
        with hangup.ends_with(sys.stdin.fileno()):
            served = None if user.is_root else user.uid
            loaded = program.Kernel(sources(), max_processes, max_fds, served, store, bool(answers), trace)
    except program.LoadFailed as error:
        raise protocol.Unable(f"the BPF program could not be loaded: {error}", error.fix) from error
    kept = privileges.drop(user, loaded.works, privileges.PROBING if uprobes else ())
    proc.Threads.keep_open()
    if not user.is_root:
        # The kernel may be built without seccomp; the capabilities are dropped all the same.
        with contextlib.suppress(OSError):
            seccomp.restrict()
    agent = handlers.Agent(loaded, timers, user, lambda pid: user.is_root or privileges.owns(user, pid))
    return agent, {
        "protocol": protocol.VERSION,
        "bcc": loaded.bcc,
        "python": sys.version.split()[0],
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "capabilities": kept,
        "follows_children": loaded.follows_children,
        "typed": loaded.typed,
        "no_cpu_samples": loaded.cpu.why_not,
        "sees_sockets": loaded.sees_sockets,
        "sees_held_writes": loaded.sees_held_writes,
        "no_arrivals": loaded.no_arrivals,
        "program": "compiled" if loaded.compiled else "cache",
        "not_cached": _not_cached(loaded, store),
        "startup_seconds": time.monotonic() - started,
        "resident_bytes": resident_bytes(),
    }


def _not_cached(loaded: program.Kernel, store: Store | None) -> dict[str, str | None] | None:
    """Why the program did not come from the cache, and why it could not be stored there."""
    if store is None or not loaded.compiled:
        return None
    not_filled = loaded.not_filled if store.writes else ""
    fix = "--netpoll-cache=DIR, with a directory that nobody else can write to" if not_filled else None
    return {"what": "; ".join(filter(None, [loaded.not_kept, not_filled])), "fix": store.fix or fix}


def fill(sizes: str, store: Store) -> dict[str, str]:
    """Compiles the program for users who come through sudo, loads it once, and stores it. Raises Unable."""
    max_processes, max_fds = map(int, sizes.split(","))
    problem = privileges.why_not()
    if problem is not None:
        raise protocol.Unable(*problem)
    for answers, trace in ((True, 0), (False, constants.TRACE_RECORDS), (False, 0)):
        try:
            # For no particular user: the user is filled in when the program is loaded.
            loaded = program.Kernel(sources(), max_processes, max_fds, _NOBODY, store, answers, trace)
        except program.LoadFailed as error:
            raise protocol.Unable(f"the BPF program could not be loaded: {error}", error.fix) from error
        if loaded.not_filled:
            raise protocol.Unable(loaded.not_filled)
    return {"kernel": os.uname().release, "bcc": loaded.bcc, "directory": store.directory}


def main(environment: Mapping[str, str], verified: bool, store: Store | None, sizes: str | None) -> int:
    """Returns the exit status. verified: whether only root may own the files. sizes: what to fill the cache
    for.
    """
    user = privileges.invoker(environment)
    # Only the protocol writes to stdout; BCC and LLVM may print, so they get stderr.
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C is pytest's to handle; the agent ends when its stdin does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(message: object) -> None:
        wire.write(json.dumps(message, separators=(",", ":")) + "\n")
        wire.flush()

    timers = sampler.Timers()
    lines = timers.lines(sys.stdin.fileno())
    with contextlib.suppress(BrokenPipeError):
        try:
            if verified:
                verify()
            if sizes is not None and store is not None:
                send({"filled": fill(sizes, store)})
                return 0
            _, command, arguments = protocol.parse(next(lines, ""))
            if command not in protocol.FIRST:
                raise protocol.BadMessage(f"the first command must be load, not {command}")
            if command == "about":
                send({"about": binding.about()})
                return 0
            agent, ready = load(user, timers, store, **arguments)
        except (protocol.Unable, protocol.BadMessage) as error:
            send({"failed": {"what": str(error), "fix": getattr(error, "fix", None)}})
            return 1
        send({"ready": ready})
        serve(agent, lines, send)
    return 0
