"""The privileged side: loads the BPF program and answers questions about windows.

Run as `python3 -I agent` by the system's Python, which alone can import BCC. Speaks JSON, one message a
line, on stdin and stdout; stderr is for humans. Ends, and with it everything in the kernel, when stdin
closes, while it compiles too. It never starts a program. It writes no file but its cache of what it compiled,
and none at all where sudo starts it by a line of install-agent's. Once the program is loaded it drops its
privileges. For an ordinary user it measures that user's own processes only.

    → {"id": 0, "do": "load", "max_processes": 16, "max_fds": 16384, "uprobes": 1, "answers": 0}
    ← {"ready": {…}}   or   {"failed": {"what": …, "fix": …}}
    → {"id": 1, "do": "watch", "pid": 4242}
    ← {"id": 1, "ok": {…}}   or   {"id": 1, "error": {"what": …, "fix": …}}

Nothing is on the command line, so that a line in sudoers can allow exactly this and nothing else. Whoever
needs no such line may add

    --unverified [--cache=DIR|--cache=off]      for users who may run anything as root anyway
    --fill=MAX_PROCESSES,MAX_FDS                install-agent's: fills the installed agent's cache, for users
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pwd
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import handlers
import protocol
from bpf import binding, cache, cpus, footprint, program
from counters import sampler
from processes import proc, watched
from security import budget, hangup, privileges, seccomp, trust

# Says that the files need not be root's alone.
UNVERIFIED = "--unverified"
CACHE = "--cache="
FILL = "--fill="
OFF = "off"
REFRESH = "sudo python -m pytest_netpoll install-agent"
_NOBODY = 65534
HERE = os.path.dirname(os.path.abspath(__file__))


def serve(agent: handlers.Agent, lines: Iterable[str | None], send: Callable[[object], None]) -> None:
    """Answers until the lines end."""
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
    """Raises protocol.Unable unless nobody but root can change what runs here."""
    for path in (HERE, sources()):
        reason = trust.distrust(path)
        if reason is not None:
            raise protocol.Unable(
                f"the agent refuses to run as root where others can change it: {reason}",
                "remove it and install it again: python -m pytest_netpoll install-agent",
            )


def _take_place(user: privileges.Invoker, size: int) -> None:
    """Among this user's agents, for as long as this one lives. Raises protocol.Unable."""
    try:
        with hangup.ends_with(sys.stdin.fileno()):
            budget.take(user.uid, size)
    except budget.Refused as error:
        fix = "wait for others to end, use fewer workers (pytest -n), or run pytest as root"
        raise protocol.Unable(str(error), fix) from error


def kept(arguments: Sequence[str]) -> cache.Cache | None:
    """Where what was compiled is kept: the installed agent's beside it, where only install-agent writes."""
    if UNVERIFIED not in arguments:
        fill = any(argument.startswith(FILL) for argument in arguments)
        return cache.Cache(os.path.join(os.path.dirname(HERE), "cache"), 0, fill, REFRESH)
    uid = os.geteuid()
    directory = next((word[len(CACHE) :] for word in arguments if word.startswith(CACHE)), None)
    if directory == OFF:
        return None
    if directory is None:
        try:
            # Not by the environment, which is the user's. Some systems have a link where homes are.
            home = os.path.realpath(pwd.getpwuid(uid).pw_dir)
            directory = os.path.join(home, ".cache", "pytest-netpoll")
        except KeyError:
            return None
    return cache.Cache(os.path.abspath(directory), uid, True)


def load(
    user: privileges.Invoker,
    timers: sampler.Timers,
    keeper: cache.Cache | None,
    max_processes: int,
    max_fds: int,
    uprobes: int,
    answers: int,
) -> tuple[handlers.Agent, dict[str, Any]]:
    """The agent, and what to report about it, with the program loaded and privileges dropped.

    keeper: of what was compiled. uprobes: whether probes are to be placed in programs later, which takes a
    privilege more. answers: whether they are timed. Raises protocol.Unable.
    """
    started = time.monotonic()
    problem = privileges.why_not()
    if problem is not None:
        raise protocol.Unable(*problem)
    if not user.is_root:
        possible = cpus.possible()
        problem = footprint.too_large(max_processes, max_fds, possible, bool(answers))
        if problem is not None:
            raise protocol.Unable(*problem)
        # A user who has the capabilities anyway isn't limited by this agent.
        if os.geteuid() == 0:
            _take_place(user, footprint.size(max_processes, max_fds, possible, bool(answers)))
    try:
        # A second on an idle machine, many on a busy one; pytest may be killed meanwhile.
        with hangup.ends_with(sys.stdin.fileno()):
            served = None if user.is_root else user.uid
            loaded = program.Kernel(sources(), max_processes, max_fds, served, keeper, bool(answers))
    except program.LoadFailed as error:
        raise protocol.Unable(f"the BPF program could not be loaded: {error}", error.fix) from error
    kept = privileges.drop(user, loaded.works, privileges.PROBING if uprobes else ())
    proc.Threads.keep_open()
    if not user.is_root:
        # A kernel may be built without; then the capabilities are as few as ever.
        with contextlib.suppress(OSError):
            seccomp.restrict()
    agent = handlers.Agent(loaded, timers, user, lambda pid: user.is_root or privileges.owns(user, pid))
    return agent, {
        "protocol": protocol.VERSION,
        "bcc": loaded.bcc,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "capabilities": kept,
        "follows_children": loaded.follows_children,
        "typed": loaded.typed,
        "no_cpu_samples": loaded.cpu.why_not,
        "sees_sockets": loaded.sees_sockets,
        "no_arrivals": loaded.no_arrivals,
        "program": "compiled" if loaded.compiled else "cache",
        "not_cached": _not_cached(loaded, keeper),
        "startup_seconds": time.monotonic() - started,
        "resident_bytes": resident_bytes(),
    }


def _not_cached(loaded: program.Kernel, keeper: cache.Cache | None) -> dict[str, str | None] | None:
    """Why the program did not come from the cache, and what keeps it from being there by now."""
    if keeper is None or not loaded.compiled:
        return None
    why = [loaded.not_kept, loaded.not_filled if keeper.writes else ""]
    return {"what": "; ".join(filter(None, why)), "fix": keeper.fix}


def fill(sizes: str) -> dict[str, str]:
    """Compiles for users who come through sudo, proves that it can be loaded, and keeps it. Raises Unable."""
    keeper = kept([FILL])
    max_processes, max_fds = map(int, sizes.split(","))
    problem = privileges.why_not()
    if problem is not None or keeper is None:
        raise protocol.Unable(*(problem or ("there is no cache",)))
    for answers in (True, False):
        try:
            # For no particular user: it gets the user when it is loaded.
            loaded = program.Kernel(sources(), max_processes, max_fds, _NOBODY, keeper, answers)
        except program.LoadFailed as error:
            raise protocol.Unable(f"the BPF program could not be loaded: {error}", error.fix) from error
        if loaded.not_filled:
            raise protocol.Unable(loaded.not_filled)
    return {"kernel": platform.release(), "bcc": loaded.bcc, "directory": keeper.directory}


def main() -> int:
    user = privileges.invoker(os.environ)
    # The user decides nothing here: neither what BCC compiles and how, nor from where.
    os.environ.clear()
    os.environ["PATH"] = os.defpath
    os.chdir("/")
    # The protocol keeps stdout for itself: BCC and LLVM may print.
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
            if UNVERIFIED not in sys.argv[1:]:
                verify()
            if sys.argv[1:] and sys.argv[1].startswith(FILL):
                send({"filled": fill(sys.argv[1][len(FILL) :])})
                return 0
            _, command, arguments = protocol.parse(next(lines, ""))
            if command not in protocol.FIRST:
                raise protocol.BadMessage(f"the first command must be load, not {command}")
            if command == "about":
                send({"about": binding.about()})
                return 0
            agent, ready = load(user, timers, kept(sys.argv[1:]), **arguments)
        except (protocol.Unable, protocol.BadMessage) as error:
            send({"failed": {"what": str(error), "fix": getattr(error, "fix", None)}})
            return 1
        send({"ready": ready})
        serve(agent, lines, send)
    return 0


if __name__ == "__main__":
    sys.exit(main())
