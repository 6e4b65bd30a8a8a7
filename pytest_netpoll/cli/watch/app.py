"""python -m pytest_netpoll watch: shows live what a Go process's poller does; for debugging.

Exit status 0: ended by Ctrl-C, by --duration, or with a command that ended well; 1: the process died,
or could not be measured; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pytest_netpoll.cli.arguments import positive, tcp_port
from pytest_netpoll.cli.watch import table
from pytest_netpoll.cli.watch.prometheus import Exporter, alert_rules
from pytest_netpoll.errors import NetpollError, Reason, ServiceError, UsageError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.meter.processes import Watched
from pytest_netpoll.meter.window import Window
from pytest_netpoll.model import units
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.options import Config, add_agent_options
from pytest_netpoll.service import discovery
from pytest_netpoll.service.cgroup import Cgroup
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service

LOOK = 0.05  # seconds between checks whether the process still runs, and what is new in a cgroup
SHORTEST_INTERVAL = 0.1
# The share of an interval to wait, at most, for wakeups on their way to their syscall.
PATIENCE_SHARE, MOST_PATIENCE = 0.25, 0.25


class Subject(Protocol):
    """What is watched."""

    @property
    def watched(self) -> Watched: ...

    def describe(self) -> str:
        """Describes the subject for the heading, as of now."""
        ...

    def look(self) -> Ending | None:
        """Called every LOOK seconds; returns how the subject ended, or None."""
        ...


class Ending:
    """Why watching ended. failed: whether that is an error."""

    def __init__(self, reason: str, *, failed: bool = False, output: str = "") -> None:
        self.reason = reason
        self.failed = failed
        self.output = output


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    arguments, command = _parse(argv)
    if arguments.alerts:
        print(alert_rules(), end="")
        return 0
    try:
        return _run(arguments, command)
    except UsageError:
        raise
    except NetpollError as error:
        print(error, file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    config = Config.from_arguments(arguments)
    with contextlib.ExitStack() as stack:
        exporter = None
        if arguments.prometheus is not None:
            exporter = stack.enter_context(Exporter(*arguments.prometheus))
        meter = Meter(config, Symbolizer(Path.cwd()))
        stack.callback(meter.stop)
        subject = stack.enter_context(_subject(arguments, command, meter))
        asked = [name for name in ("goready", "response") if getattr(config, name) == "on"]
        view = table.View(sys.stdout, as_json=arguments.json, asked=asked)
        if exporter is not None:
            view.note(f"metrics for Prometheus at {exporter.url}")
        return _watch(subject, meter, view, exporter, arguments.interval, arguments.duration)


def _watch(
    subject: Subject,
    meter: Meter,
    view: table.View,
    exporter: Exporter | None,
    interval: float,
    duration: float | None,
) -> int:
    watched = [subject.watched]
    window = _open(meter)
    run = Accumulated()

    def show(measurement: Measurement) -> None:
        run.add(measurement)
        if exporter is not None:
            exporter.update(run.total, measurement)
        view.interval(subject.describe(), measurement, run)

    started = tick = time.monotonic()
    last = None if duration is None else started + duration
    with _interruptible() as interrupted, view:
        while True:
            tick += interval
            ending = _wait(subject, interrupted, tick if last is None else min(tick, last))
            if ending is None and last is not None and time.monotonic() >= last:
                ending = Ending(f"stopped after --duration={units.show(last - started, 's')}")
            if ending is not None:
                break
            patience = min(interval * PATIENCE_SHARE, MOST_PATIENCE)
            (measurement,), window = meter.lap(window, watched, patience)
            show(measurement)
            # Don't catch up on laps missed while this machine was asleep or too busy.
            if time.monotonic() - tick > interval:
                tick = time.monotonic()
        show(*meter.close(window, watched))
        view.summary(subject.describe(), run, ending.reason, ending.output)
    return 1 if ending.failed or run.total.unmeasured is not None else 0


def _open(meter: Meter) -> Window:
    """Opens a window. Raises UnmeasuredError if there is no agent, instead of showing a table of dashes."""
    window = meter.open()
    if window.failed is not None:
        meter.close(window, [])
        raise window.failed
    return window


def _wait(subject: Subject, interrupted: int, until: float) -> Ending | None:
    while True:
        left = until - time.monotonic()
        # Also if the last interval took too long: Ctrl-C has to work.
        if select.select([interrupted], [], [], max(0, min(left, LOOK)))[0]:
            return Ending("stopped by Ctrl-C")
        ending = subject.look()
        if ending is not None or left <= 0:
            return ending


@contextlib.contextmanager
def _interruptible() -> Iterator[int]:
    """A descriptor that Ctrl-C and the like make readable. An exception could interrupt a message to the
    agent, and a handler that takes a lock, as threading.Event does, could wait for what it interrupts.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)

    def interrupt(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is readable already
            os.write(writable, b"!")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield readable
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)


@contextlib.contextmanager
def _subject(arguments: argparse.Namespace, command: Sequence[str], meter: Meter) -> Iterator[Subject]:
    """The processes that the arguments name. A command is started, and stopped at the end of the block."""
    search = None
    if arguments.port is not None:
        search = discovery.by_port(arguments.port)
    elif arguments.process is not None:
        search = discovery.by_name(arguments.process)
    pid = arguments.pid if search is None else discovery.find(search, 0, None)
    if arguments.cgroup is not None:
        yield CgroupSubject(Cgroup(arguments.cgroup), meter)
        return
    here = Path.cwd()
    # Nothing is built, so the cache is not used.
    factory = ServiceFactory(rootdir=here, cache_dir=here, on_spawn=meter.watch, on_exit=meter.unwatch)
    try:
        if pid is not None:
            yield ServiceSubject(factory(pid=pid, ready=None))
        else:
            # The agent first, or the command would run its first second unwatched.
            meter.close(_open(meter), [])
            yield ServiceSubject(factory(command=command, ready=None), shlex.join(command))
    finally:
        factory.stop_all()


class ServiceSubject:
    """A running process, or a command that we started."""

    def __init__(self, service: Service, command: str | None = None) -> None:
        self.watched = service
        self._service = service
        self._command = command
        self._pid = service.pid

    def describe(self) -> str:
        return f"{self._service.name} (pid {self._pid}, {self._service.go_version or 'not Go'})"

    def look(self) -> Ending | None:
        service = self._service
        if service.running:
            return None
        try:
            service.check_alive()
        except ServiceError as error:
            # It is shown behind "Ended:".
            reason = Reason(f"service {service.name!r}", why=error.why, fix=error.fix)
        output = service.tail()
        # It has ended; what it did in its last interval counts.
        service.stop()
        if self._command is not None and service.returncode == 0:
            return Ending(f"{self._command} ended with exit status 0", output=output)
        return Ending(reason, failed=True, output=output)


class CgroupSubject:
    """A cgroup; finds its new processes."""

    def __init__(self, cgroup: Cgroup, meter: Meter) -> None:
        self.watched = cgroup
        self._cgroup = cgroup
        self._meter = meter
        self.look()

    def describe(self) -> str:
        programs = self._cgroup.programs
        go = [f"{p.name} {p.pid} ({p.go_version})" for p in programs if p.go_version is not None]
        others = [f"{p.name} {p.pid}" for p in programs if p.go_version is None]
        parts = [f"{what}: {', '.join(names)}" for what, names in (("Go", go), ("not Go", others)) if names]
        return f"{self._cgroup.name} ({'; '.join(parts) or 'no process'})"

    def look(self) -> Ending | None:
        for pid in self._cgroup.arrived():
            self._meter.follow(self._cgroup, pid)
        if not self._cgroup.path.is_dir():
            return Ending(f"the cgroup {self._cgroup.path} is gone", failed=True)
        return None


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the command after "--"."""
    options, command = list(argv), []
    if "--" in options:
        at = options.index("--")
        options, command = options[:at], options[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m pytest_netpoll watch",
        usage="%(prog)s [options]\n"
        "         (--pid N | --port N | --process NAME | --cgroup PATH | -- COMMAND …)",
        description="Show live what the network poller of a Go process does. {port} in COMMAND becomes a "
        "free port. The output of COMMAND is kept, and its last lines are shown if it dies.",
    )
    parser.add_argument("--pid", type=positive, metavar="N", help="a running process and its children")
    parser.add_argument(
        "--port", type=tcp_port, metavar="N", help="the process that listens on this TCP port"
    )
    parser.add_argument("--process", metavar="NAME", help="the process whose program has this name, or path")
    parser.add_argument("--cgroup", type=Path, metavar="PATH", help="all processes of a cgroup v2, as one")
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=1.0,
        metavar="TIME",
        help="time between two refreshes (default: 1s)",
    )
    parser.add_argument("--duration", type=_seconds, metavar="TIME", help="stop after this time")
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each interval, and one at the end"
    )
    parser.add_argument(
        "--prometheus",
        type=_endpoint,
        metavar="[HOST]:PORT",
        help="serve the metrics for Prometheus; without HOST on the loopback address only",
    )
    parser.add_argument("--alerts", action="store_true", help="print example alert rules for Prometheus")
    add_agent_options(parser)
    arguments = parser.parse_args(options)
    named = (arguments.pid, arguments.port, arguments.process, arguments.cgroup)
    given = [*(name is not None for name in named), bool(command)]
    if not arguments.alerts and sum(given) != 1:
        parser.error("give one of --pid N, --port N, --process NAME, --cgroup PATH, or a command after --")
    return arguments, command


def _seconds(text: str) -> float:
    try:
        seconds = units.parse(text, "s")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds < SHORTEST_INTERVAL:
        raise argparse.ArgumentTypeError(f"{text!r} is shorter than {SHORTEST_INTERVAL} s")
    return seconds


def _endpoint(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not [HOST]:PORT: write :9100")
    return host.strip("[]") or "127.0.0.1", int(port)
