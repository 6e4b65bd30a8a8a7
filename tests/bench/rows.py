"""The rows of the benchmark: what is attached while others measure.

Each is a context manager: it is attached to the services and works when it is entered, and leaves nothing
behind at its end. A row that isn't available raises RowError, which says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import privilege
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.options import Config
from pytest_netpoll.service.service import Service

HERE = Path(__file__).parent
ATTACH_DEADLINE = 20.0  # s
DETACH_DEADLINE = 30.0
TRACEFS = Path("/sys/kernel/tracing")
CHUNK = 1 << 16  # bytes read at once


class RowError(Exception):
    """The row could not be attached, or saw nothing."""


@dataclass
class Attached:
    """What a row reports about itself.

    pid: of the watching process, None if there is none. seen: proof that it worked; set when it is detached.
    figures: name -> value, numbers that only this row has.
    """

    pid: int | None = None
    seen: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def memory(self) -> float | None:
        """Resident, in MiB; None without a process."""
        if self.pid is None or not psutil.pid_exists(self.pid):
            return None
        return psutil.Process(self.pid).memory_info().rss / 2**20


GoReady = Literal["auto", "off"]
Attach = Callable[[Sequence[Service]], AbstractContextManager[Attached]]


@dataclass(frozen=True)
class Row:
    """ours: judged by our targets. before: of another checkout. peer: what ours must be ahead of."""

    title: str
    attach: Attach
    kind: Literal["base", "floor", "ours", "before", "peer"]


@contextlib.contextmanager
def nothing(_: Sequence[Service]) -> Iterator[Attached]:
    yield Attached()


@contextlib.contextmanager
def floor(_: Sequence[Service]) -> Iterator[Attached]:
    """An empty raw tracepoint on sys_exit: the least that a BPF program there can cost."""
    stub = privilege.bpf_sources() / "stub"
    argv = [str(privilege.SYSTEM_PYTHON), "-I", str(HERE / "floor.py"), str(stub)]
    with tracer(argv) as process:
        process.wait_until(lambda: "attached" in process.output())
        yield (attached := Attached(process.pid))
        if "sys_exit" not in links(process.pid):
            raise RowError("the kernel knows of no raw tracepoint of its on sys_exit")
        attached.seen = "its link to sys_exit"


def links(pid: int) -> str:
    """What the kernel reports about the BPF links that the process holds."""
    return "".join(info for info in fdinfo(pid) if "link_type" in info)


def fdinfo(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            yield path.read_text()


@contextlib.contextmanager
def ours(goready: GoReady, services: Sequence[Service]) -> Iterator[Attached]:
    """pytest-netpoll, with a window open, as during a marked test."""
    meter = Meter(dataclasses.replace(Config.default(), goready=goready), Symbolizer(HERE))
    try:
        meter.start()
        for service in services:
            meter.watch(service)
        window = meter.open()
        yield (attached := Attached(meter.agent_pid))
        measured = meter.close(window, services)
        attached.seen = evidence(measured, goready)
        resolved = total(measured, "productive_wakeups") + total(measured, "spurious_wakeups")
        attached.figures["wakeups unresolved (%)"] = 100 - 100 * resolved / total(measured, "wakeups")
        attached.figures["its maps in the kernel (MiB)"] = map_memory(attached.pid)
        attached.figures["a window (ms)"] = window_cost(meter, services)
    finally:
        meter.stop()


@contextlib.contextmanager
def before(checkout: Path, goready: GoReady, services: Sequence[Service]) -> Iterator[Attached]:
    """The same from another checkout, in a separate Python."""
    argv = [sys.executable, str(HERE / "before.py"), str(checkout), goready, *(str(s.pid) for s in services)]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as process,
    ):
        output = process.stdout
        assert process.stdin
        assert output

        def said() -> dict[str, Any]:
            line = output.readline()
            if not line:
                complaints.seek(0)
                raise RowError(last_line(complaints.read()))
            heard: dict[str, Any] = json.loads(line)
            return heard

        try:
            yield (attached := Attached(said()["pid"]))
        finally:
            process.stdin.close()
        last = said()
        attached.seen, attached.figures = last["seen"], last["figures"]


def window_cost(meter: Meter, services: Sequence[Service], times: int = 10) -> float:
    """The mean time in ms for opening a window, closing it and reading its numbers."""
    started = time.monotonic()
    for _ in range(times):
        meter.close(meter.open(), services)
    return (time.monotonic() - started) / times * 1e3


def evidence(measured: Sequence[Measurement], goready: GoReady) -> str:
    for measurement in measured:
        if measurement.unmeasured or not measurement.wakeups:
            raise RowError(measurement.unmeasured or f"no wakeup of {measurement.service} was seen")
    seen = f"{total(measured, 'wakeups'):,} wakeups"
    if goready == "off":
        return seen
    if not (calls := total(measured, "ready_calls")):
        raise RowError("no ready call was seen")
    return f"{seen}, {calls:,} ready calls"


def total(measured: Sequence[Measurement], counter: str) -> int:
    return sum(measurement.snapshot.counters.get(counter, 0) for measurement in measured)


def map_memory(pid: int | None) -> float:
    """MiB of kernel memory that the BPF maps of the process take."""
    assert pid is not None
    sizes = (re.search(r"^memlock:\s*(\d+)", info, re.M) for info in fdinfo(pid) if "map_type" in info)
    return sum(int(size[1]) for size in sizes if size) / 2**20


@contextlib.contextmanager
def bpftrace(services: Sequence[Service]) -> Iterator[Attached]:
    """Both services run the same program, and uprobes belong to its file."""
    argv = ["bpftrace", str(HERE / "ready.bt"), services[0].executable]
    with tracer(argv) as process:
        process.wait_until(lambda: "attached" in process.output())
        yield (attached := Attached(process.pid))
        said = process.end()
        counts = {name: counted(rf"@{name}: (\d+)", said) for name in ("waits", "readies")}
        attached.seen = ", ".join(f"{count:,} {name}" for name, count in counts.items())


@contextlib.contextmanager
def perf_trace(services: Sequence[Service]) -> Iterator[Attached]:
    """Only a summary at the end, because printing each call costs much more."""
    argv = ["perf", "trace", "-s", "-e", "epoll_pwait", "-p", ",".join(str(s.pid) for s in services)]
    with tracefs(), tracer(argv) as process:
        process.wait_until(process.has_perf_events)
        yield (attached := Attached(process.pid))
        calls = counted(r"epoll_pwait +(\d+)", process.end())
        attached.seen = f"{calls:,} epoll_pwait"


@contextlib.contextmanager
def strace(services: Sequence[Service]) -> Iterator[Attached]:
    pids = [word for service in services for word in ("-p", str(service.pid))]
    with tracer(["strace", "-f", "-c", "-e", "trace=epoll_pwait", *pids]) as process:
        process.wait_until(lambda: process.output().count(" attached") >= len(services))
        yield (attached := Attached(process.pid))
        calls = counted(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) .*epoll_pwait$", process.end())
        attached.seen = f"{calls:,} epoll_pwait"


@contextlib.contextmanager
def go_trace(services: Sequence[Service]) -> Iterator[Attached]:
    """Go's own execution trace, read and discarded, because keeping it would only cost more."""
    sizes: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for service in services:
            try:
                connection = stack.enter_context(socket.create_connection(service.address, ATTACH_DEADLINE))
                # Longer than any turn; it ends when we close the connection, hence HTTP/1.0.
                connection.sendall(b"GET /debug/pprof/trace?seconds=600 HTTP/1.0\r\n\r\n")
                # There is something to read once a second, which proves that it works.
                sizes[service.name] = len(connection.recv(CHUNK))
            except OSError as error:
                raise RowError(f"no trace of {service.name}: {error}") from None
            reader = threading.Thread(target=read_to_the_end, args=(service.name, connection, sizes))
            reader.start()
            stack.callback(reader.join)
            stack.callback(connection.shutdown, socket.SHUT_WR)
        yield (attached := Attached())
    if min(sizes.values()) < 2 * CHUNK:
        raise RowError(f"the traces are all but empty: {sizes} bytes")
    attached.seen = f"{sum(sizes.values()) / 1e6:,.0f} MB of events"


def read_to_the_end(name: str, connection: socket.socket, sizes: dict[str, int]) -> None:
    while data := connection.recv(CHUNK):
        sizes[name] += len(data)


@contextlib.contextmanager
def tracefs() -> Iterator[None]:
    """perf looks up its tracepoints there, and not every machine has it mounted."""
    if any(TRACEFS.iterdir()):
        yield
        return
    subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(TRACEFS)], check=True)


def counted(pattern: str, said: str) -> int:
    """The sum of what the pattern finds; RowError if that is nothing."""
    count = sum(int(number) for number in re.findall(pattern, said, re.M))
    if not count:
        raise RowError(f"it was attached, and saw nothing: {last_line(said)}")
    return count


def last_line(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1]


class Tracer:
    """A program that traces until it gets SIGINT, and then prints what it saw."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self.name = name
        self.process = process
        self.pid = process.pid
        self._said = said

    def output(self) -> str:
        """All of the output so far, including errors."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")

    def has_perf_events(self) -> bool:
        """Whether it has opened all of them: none was added for a while."""

        def opened() -> int:
            return sum("perf_event" in str(fd.readlink()) for fd in Path(f"/proc/{self.pid}/fd").iterdir())

        with contextlib.suppress(OSError):
            before = opened()
            time.sleep(0.1)
            return 0 < before == opened()
        return False

    def wait_until(self, attached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ATTACH_DEADLINE
        while not attached():
            if self.process.poll() is not None:
                raise RowError(f"{self.name} ended: {last_line(self.output())}")
            if time.monotonic() > deadline:
                raise RowError(f"not attached after {ATTACH_DEADLINE:.0f} s: {last_line(self.output())}")
            time.sleep(0.02)

    def end(self) -> str:
        """Its complete output; RowError if it had stopped working."""
        if self.process.poll() is not None:
            raise RowError(f"{self.name} ended while others measured: {last_line(self.output())}")
        self.interrupt()
        return self.output()

    def interrupt(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(DETACH_DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RowError(f"still there {DETACH_DEADLINE:.0f} s after SIGINT; killed") from None


@contextlib.contextmanager
def tracer(argv: Sequence[str]) -> Iterator[Tracer]:
    if os.geteuid() != 0:
        raise RowError("needs root: sudo make bench")
    if shutil.which(argv[0]) is None:
        raise RowError(f"{argv[0]} is not installed")
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            # It ends with us if we are killed.
            ["setpriv", "--pdeathsig", "INT", "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # only we should get Ctrl-C
        ) as process,
    ):
        running = Tracer(argv[0], process, said)
        try:
            yield running
        finally:
            running.interrupt()


ROWS: dict[str, Row] = {
    "nothing": Row("nothing", nothing, "base"),
    "nothing-again": Row("nothing, a second time", nothing, "base"),
    "floor": Row("an empty raw tracepoint on sys_exit", floor, "floor"),
    "ours": Row("pytest-netpoll, goready off", partial(ours, "off"), "ours"),
    "ours-goready": Row("pytest-netpoll, goready auto", partial(ours, "auto"), "ours"),
    "bpftrace": Row("bpftrace, netpollblock and netpollready", bpftrace, "peer"),
    "perf": Row("perf trace -s -e epoll_pwait", perf_trace, "peer"),
    "strace": Row("strace -f -c -e trace=epoll_pwait", strace, "peer"),
    "go-trace": Row("Go's execution trace", go_trace, "peer"),
}


def compare_with(checkout: Path) -> None:
    """Add the rows of another checkout's pytest-netpoll."""
    ROWS["before"] = Row("before, goready off", partial(before, checkout, "off"), "before")
    ROWS["before-goready"] = Row("before, goready auto", partial(before, checkout, "auto"), "before")
