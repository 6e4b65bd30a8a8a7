"""Real Go services, really measured: `launch` one of services/, `measure` what it does."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_netpoll.agent.constants import BUDGET_SHIFT
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import agent_client, privilege
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.histogram import bucket_bounds
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.options import Config
from pytest_netpoll.service.build import Builder
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from tests.waiting import fall_asleep

SERVICES = Path(__file__).parent / "services"

# s: several agents may have to compile at once, on a machine that others use, too.
agent_client.START_DEADLINE = 300.0
agent_client.ANSWER_DEADLINE = 60.0


@pytest.fixture(scope="session")
def meter() -> Iterator[Meter]:
    meter = Meter(dataclasses.replace(Config.default(), response="on"), Symbolizer(SERVICES))
    meter.start()
    yield meter
    meter.stop()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="session")
def built(cache_dir: Path) -> Callable[..., str]:
    """built("echo", go=path, flags=[…], env={…}) is the executable of tests/bpf/services/echo."""

    def built(name: str, go: str | None = None, flags: Sequence[str] = (), env: Any = None) -> str:
        builder = Builder(cache_dir, None)
        return str(builder.build(f"./{name}", base=SERVICES, go=go, flags=list(flags), env=env or {}))

    return built


@pytest.fixture(scope="session")
def session_factory(cache_dir: Path, meter: Meter) -> Iterator[ServiceFactory]:
    factory = ServiceFactory(
        rootdir=SERVICES,
        cache_dir=cache_dir,
        on_spawn=meter.watch,
        on_exit=meter.unwatch,
    )
    yield factory
    factory.stop_all()


@pytest.fixture
def factory(session_factory: ServiceFactory) -> Iterator[ServiceFactory]:
    """Makes services, Go or not; they end with the test."""
    yield session_factory
    for service in reversed(session_factory.services.copy()):
        service.stop()


@pytest.fixture
def kept_port() -> Iterator[Callable[[], int]]:
    """kept_port() is a port of 127.0.0.1 that nobody gets by chance during the test."""
    with contextlib.ExitStack() as stack:

        def kept_port() -> int:
            # It doesn't listen: whoever sets SO_REUSEADDR, as Go does, may bind this port, too.
            keeper = stack.enter_context(socket.socket())
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeper.bind(("127.0.0.1", 0))
            port: int = keeper.getsockname()[1]
            return port

        yield kept_port


@pytest.fixture
def new_meter(factory: ServiceFactory) -> Iterator[Callable[..., Meter]]:
    """new_meter(max_fds=64): a meter with its own agent; the test has to tell it which services to watch."""
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, factory, "on_spawn", factory.on_spawn)
        stack.callback(setattr, factory, "on_exit", factory.on_exit)
        factory.on_spawn = factory.on_exit = None

        def new_meter(**options: object) -> Meter:
            meter = Meter(dataclasses.replace(Config.default(), **options), Symbolizer(SERVICES))
            stack.callback(meter.stop)
            return meter

        yield new_meter


@pytest.fixture
def lacking(
    new_meter: Callable[..., Meter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Meter]:
    """lacking({"bpf/btf.py": "…"}) is a meter whose agent has these lines at the end of its modules."""
    agent = shutil.copytree(privilege.AGENT, tmp_path / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(privilege.bpf_sources(), tmp_path / "bpf")
    command = privilege.command
    monkeypatch.setattr(
        privilege,
        "command",
        lambda *given: [str(agent) if word == str(privilege.AGENT) else word for word in command(*given)],
    )

    def lacking(lines: Mapping[str, str], **options: object) -> Meter:
        for module, line in lines.items():
            with (agent / module).open("a") as file:
                file.write(f"\n{line}\n")
        return new_meter(**options)

    return lacking


@pytest.fixture
def client() -> Iterator[Callable[[Service, str], socket.socket]]:
    """client(service, "idle") is a connection that services/keep handles in that way; closed with the
    test."""
    with contextlib.ExitStack() as stack:

        def client(service: Service, how: str) -> socket.socket:
            connection = stack.enter_context(socket.create_connection(service.address, timeout=20))
            connection.sendall(f"{how}\n".encode())
            assert connection.recv(100) == f"{how}\n".encode()
            return connection

        yield client


@pytest.fixture
def launch(factory: ServiceFactory) -> Callable[..., Service]:
    """launch("echo", "-cpu", "1", go=path, build_flags=[…]) is tests/bpf/services/echo, running."""

    def launch(name: str, *args: object, **options: Any) -> Service:
        options.setdefault("ready", re.compile("ready on"))  # the whole service is ready; it listens earlier
        return factory(f"./{name}", args=["-addr", "127.0.0.1:{port}", *args], **options)

    return launch


class Stretch:
    """What `measure` gives: stretch(service) is the service's measurement, once the block has ended."""

    def __init__(self) -> None:
        self.measurements: dict[str, Measurement] = {}

    def unmeasured(self, service: Service) -> str:
        """Why the service could not be measured."""
        reason = self.measurements[service.name].unmeasured
        assert reason is not None, self.measurements[service.name]
        return reason

    def __call__(self, service: Service) -> Measurement:
        measurement = self.measurements[service.name]
        assert measurement.unmeasured is None, measurement.unmeasured
        return measurement


@pytest.fixture
def measure(
    meter: Meter, factory: ServiceFactory
) -> Callable[..., contextlib.AbstractContextManager[Stretch]]:
    """with measure() as stretch: …; the laws that always hold are checked for every service in it."""

    @contextlib.contextmanager
    def measure(offences: Collection[Offence] = ()) -> Iterator[Stretch]:
        window = meter.open(offences=offences)
        stretch = Stretch()
        try:
            yield stretch
        finally:
            for m in meter.close(window, factory.services):
                stretch.measurements[m.service] = m
                assert_laws(m)

    return measure


# metric -> the part of the timeline that adds up to it
TIMELINE = {
    "wakeups": "wakeups",
    "productive_wakeups": "productive",
    "spurious_wakeups": "spurious",
    **{
        name: name
        for name in (
            "polls",
            "blocking_polls",
            "timed_polls",
            "nonblocking_polls",
            "empty_polls",
            "timeout_polls",
            "break_polls",
        )
    },
}


def assert_delays_add_up(m: Measurement) -> None:
    delays = m.snapshot.delays
    samples = {name: sum(delay.histogram.values()) for name, delay in delays.items()}
    assert samples["poll_delay"] <= samples["queue_delay"]
    assert samples["handling"] == samples["response"] <= m.snapshot.answered <= m.snapshot.requests
    for name in ("queue_delay", "response"):
        least: Counter[int] = Counter()
        most: Counter[int] = Counter()
        for bucket, count in delays[name].histogram.items():
            low, high = bucket_bounds(bucket)
            least[bucket >> BUDGET_SHIFT] += low * count
            most[bucket >> BUDGET_SHIFT] += high * count
        for budget, parts in delays[name].budget.items():
            assert least[budget] <= parts.total < most[budget]
        assert least.keys() == delays[name].budget.keys()
    # Data that was unread at the end is only in the histogram.
    assert sum(point.reads for point in m.timeline) <= samples["queue_delay"]
    assert sum(point.answers for point in m.timeline) == samples["response"]
    handling = sum(point.handling_ns for point in m.timeline)
    assert sum(parts.handling for parts in delays["response"].budget.values()) == handling
    for part in ("poll_delay_ns", "wake_to_run_ns"):
        attribute = {"poll_delay_ns": "poll", "wake_to_run_ns": "run"}[part]
        parts = sum(getattr(parts, attribute) for parts in delays["queue_delay"].budget.values())
        assert sum(getattr(point, part) for point in m.timeline) == parts

    slow = {name: [answer for answer in m.slow_answers if answer.what == name] for name in delays}
    for answer in m.slow_answers:
        parts = answer.poll_delay_ns + answer.wake_to_run_ns + answer.unparked_ns + answer.handling_ns
        assert answer.ns == parts
    assert len(slow["response"]) == min(8, samples["response"])
    if slow["response"]:
        assert slow["response"][0].ns == m.snapshot.delays["response"].max_ns
    if slow["queue_delay"]:
        assert slow["queue_delay"][0].ns <= m.queue_delay_max


def assert_laws(m: Measurement) -> None:
    if m.snapshot.delays:
        assert_delays_add_up(m)
    resolved = m.productive_wakeups + m.spurious_wakeups
    assert m.wakeups == resolved + m.abandoned_wakeups + m.pending_wakeups
    assert m.pending_wakeups >= 0
    assert m.polls == m.blocking_polls + m.timed_polls + m.nonblocking_polls
    assert sum(m.snapshot.histogram.values()) == resolved
    assert m.io_calls == sum(m.snapshot.io_outcomes.values())
    assert m.futile_calls == sum(m.snapshot.futile.values()) <= m.io_calls
    assert m.empty_polls <= m.nonblocking_polls
    assert m.timeout_polls <= m.timed_polls
    # Each event has one direction or two, and each direction found one state of its pollDesc.
    directions = m.wakeups + m.unclaimed_events + m.duplicate_events + m.parking_events
    assert m.events <= directions <= 2 * m.events
    assert len(m.slowest) == min(8, resolved)
    for total, part in TIMELINE.items():
        assert getattr(m, total) == sum(getattr(point, part) for point in m.timeline)
    assert m.run_delay_seconds == pytest.approx(sum(point.run_delay_ns for point in m.timeline) / 1e9)
    if resolved:
        assert m.slowest[0].latency_ns == m.latency_max
        assert 0 < m.latency_p50 <= m.latency_p90 <= m.latency_p99 <= m.latency_p999 <= m.latency_max


def fds_at_rest(agent: psutil.Process) -> int:
    """How many descriptors the agent has after no window has been open for a while."""
    time.sleep(2)
    fds: int = agent.num_fds()
    return fds


@pytest.fixture
def connect(parked: Callable[[], None]) -> Iterator[Callable[..., socket.socket]]:
    """connect(service.address) is a connection without Nagle's delay; closed with the test."""
    with contextlib.ExitStack() as stack:

        def connect(address: tuple[str, int] | str) -> socket.socket:
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            connection = stack.enter_context(socket.socket(family))
            connection.settimeout(20)
            connection.connect(address)
            if family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # It is accepted, and its reader parked, before anything is counted.
            ping(connection)
            parked()
            return connection

        yield connect


def ping(connection: socket.socket, message: bytes = b"ping") -> None:
    connection.sendall(message)
    answer = b""
    while len(answer) < len(message) and (more := connection.recv(len(message) - len(answer))):
        answer += more
    assert answer == message


@pytest.fixture
def commands(parked: Callable[[], None]) -> Iterator[Callable[[Service], Callable[[int], str]]]:
    """command = commands(service); command(20) makes a service that takes commands do its work 20 times."""
    with contextlib.ExitStack() as stack:

        def commands(service: Service) -> Callable[[int], str]:
            connection = stack.enter_context(socket.create_connection(service.address, timeout=300))
            wire = stack.enter_context(connection.makefile("rw"))

            def command(n: int) -> str:
                wire.write(f"{n}\n")
                wire.flush()
                return wire.readline().strip()

            parked()  # its reader
            return command

        yield commands


@pytest.fixture
def parked(session_factory: ServiceFactory) -> Callable[[], None]:
    """parked() returns when all goroutines that were about to park have done so."""

    return lambda: fall_asleep(*(service.pid for service in session_factory.services))


@pytest.fixture
def spaced_pings(parked: Callable[[], None]) -> Callable[[socket.socket, int], None]:
    """Pings, each after the reader has parked again: exactly one wakeup each."""

    def spaced_pings(connection: socket.socket, count: int) -> None:
        for _ in range(count):
            ping(connection)
            parked()

    return spaced_pings


@pytest.fixture
def command() -> Callable[..., list[str]]:
    """command(connection, 100, answers=2) sends a command of services/hog and returns the words of its
    answer."""

    def command(connection: socket.socket, number: int, answers: int = 1) -> list[str]:
        connection.sendall(b"%d\n" % number)
        answer = b""
        # Byte by byte, because what comes after belongs to the next read.
        while answer.count(b"\n") < answers and (more := connection.recv(1)):
            answer += more
        return answer.decode().split()

    return command
