"""python -m pytest_netpoll dump: lists the goroutines of a running process that are parked on descriptors.

It looks from outside: the process keeps running, needs no handler, and may be stripped. Exit status 1 if it
can't be inspected, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_netpoll.clean import one_line
from pytest_netpoll.cli.arguments import positive, tcp_port
from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.gobinary.symbols import Frame, Symbolizer
from pytest_netpoll.meter.messages import Process
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.meter.processes import is_go, runs_goroutines, version
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import ParkedGoroutine
from pytest_netpoll.options import Config, add_agent_options
from pytest_netpoll.service import discovery
from pytest_netpoll.service.factory import ServiceFactory

# The others are about what is counted, and nothing is.
_OPTIONS = ("sudo", "max_fds", "max_processes", "python", "agent", "cache")
MOST_SHOWN = 5  # goroutines to list of a group


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status. Raises UsageError and other NetpollErrors."""
    arguments = _parse(argv)
    here = Path.cwd()
    meter = Meter(Config.from_arguments(arguments), Symbolizer(here))
    factory = ServiceFactory(rootdir=here, cache_dir=here, on_spawn=meter.watch, on_exit=meter.unwatch)
    with contextlib.ExitStack() as stack:
        stack.callback(meter.stop)
        pid = arguments.pid
        if pid is None:
            pid = discovery.find(discovery.by_port(arguments.port), 0, None)
        service = factory(pid=pid, ready=None)
        stack.callback(factory.stop_all)
        parked = meter.parked(service)
        running = list(filter(runs_goroutines, meter.processes()))
        if not running:
            raise UnmeasuredError(
                f"{service.executable or service.name} is not a Go program",
                fix="name the Go process: --pid=N, or --port=N where it listens",
            )
        subject = f"{service.name} (pid {pid}, {service.go_version})"
        if service.go_version is None:
            subject = f"{', '.join(map(_name, running))}, below {service.name} (pid {pid})"
    print(f"{subject}: {_number(parked)} parked on descriptors")
    for text in _groups(parked):
        print(f"\n{text}")
    return 0


def _name(process: Process) -> str:
    """ "server (pid 4242, go1.27.3)"."""
    known = [f"pid {process['pid']}", *([version(process)] if is_go(process) else [])]
    return f"{one_line(Path(process['executable'] or '?').name)} ({', '.join(known)})"


def _groups(parked: Sequence[ParkedGoroutine]) -> list[str]:
    """A text for each place, the one with most goroutines first."""
    places: dict[tuple[str, str | None, tuple[Frame, ...]], list[ParkedGoroutine]] = {}
    for goroutine in parked:
        places.setdefault((goroutine.direction, goroutine.fd_type, goroutine.stack), []).append(goroutine)
    texts = [
        (-len(found), _group(f"{direction} on {kind or 'a descriptor'}", stack, found))
        for (direction, kind, stack), found in places.items()
    ]
    return [text for _, text in sorted(texts)]


def _group(on: str, stack: Sequence[Frame], found: Sequence[ParkedGoroutine]) -> str:
    lines = [f"{_number(found)}, {on}:"]
    places = [f"{frame.file}:{frame.line}" for frame in stack]
    column = max(map(len, places), default=0)
    lines += [f"    {place:{column}}  {frame.function}" for place, frame in zip(places, stack, strict=True)]
    if not stack:
        lines.append("    location unknown: its memory doesn't look like a parked goroutine's")
    ordered = sorted(found, key=lambda each: (each.goroutine is None, each.goroutine or 0))
    lines += [f"  {_description(goroutine)}" for goroutine in ordered[:MOST_SHOWN]]
    if len(found) > MOST_SHOWN:
        lines.append(f"  … and {len(found) - MOST_SHOWN:,} more")
    return "\n".join(lines)


def _description(goroutine: ParkedGoroutine) -> str:
    arrow = " → " if goroutine.direction == "write" else " ← "
    ends = arrow.join(end for end in (goroutine.local, goroutine.peer) if end)
    gone = ", whose peer has closed" if goroutine.peer_gone else ""
    number = "?" if goroutine.goroutine is None else goroutine.goroutine
    return f"goroutine {number}  {ends}{gone}".rstrip()


def _number(parked: Sequence[ParkedGoroutine]) -> str:
    return f"{units.show(len(parked), 'count')} goroutine{'' if len(parked) == 1 else 's'}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_netpoll dump",
        description="Show which goroutines of a running Go process are parked on descriptors, grouped by "
        "stack. The process keeps running, and may be stripped.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--pid", type=positive, metavar="N", help="a running process and its children")
    which.add_argument("--port", type=tcp_port, metavar="N", help="the process that listens on this TCP port")
    add_agent_options(parser, _OPTIONS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
