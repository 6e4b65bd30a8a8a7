"""Services that break a rule, or none, for repeated.py: each with what a window measures of it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pytest_netpoll.service.service import Service
from tests.bpf import test_diagnosis, test_rules, test_runtime_numbers
from tests.cpu_time import burners, until_fed
from tests.plugin import test_recipes
from tests.waiting import fall_asleep, suspend

ONE_CPU = test_diagnosis.ONE_CPU
EXAMPLE = str(test_diagnosis.SERVER)


class Case(NamedTuple):
    """code: the rule that it is to break; None where it is healthy. act: what a window measures.

    service: a directory of services/, the path of a package, or one of RECIPE_SERVICES. In args, {built} is a
    directory with RECIPE_CONFIG, {upstream} a free port.
    """

    name: str
    code: str | None
    service: str
    args: Sequence[str]
    act: Callable[[Service], object]
    env: Mapping[str, str] = MappingProxyType({})
    prefix: Sequence[str] = ()
    around: Callable[[Service], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


RECIPE_SERVICES = {
    "recipe-http": test_recipes.HTTP_SERVICE,
    "recipe-config": test_recipes.CONFIGURED_SERVICE,
}
RECIPE_CONFIG = {"listen": "127.0.0.1:0"}  # in config.json
run = functools.partial
udp, ask, pings = test_rules.udp_pings, test_rules.ask, test_rules.pings
FAULTS = {fault: act for fault, (act, _, _) in test_diagnosis.FAULTS.items()}


def command(n: int, service: Service) -> None:
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(b"%d\n" % n)
        assert connection.makefile().readline()


def ones(n: int, service: Service) -> None:
    """Commands to do it once, without a pause."""
    test_rules.pings(service, n, 0, b"1\n")


def one_by_one(service: Service) -> None:
    for _ in range(12):
        command(100, service)


def fed(share: float, act: Callable[[Service], object]) -> Callable[[Service], None]:
    """For faults that need the CPU."""
    return lambda service: until_fed(service.pid, share, lambda: act(service))


def echoes(
    service: Service, count: int, pause: float = 0.0, message: bytes = b"ping", connections: int = 1
) -> None:
    """As example_project's tests do."""
    for _ in range(connections):
        with socket.create_connection(service.address, timeout=20) as connection:
            for _ in range(count):
                connection.sendall(message)
                assert connection.recv(len(message), socket.MSG_WAITALL) == message
                time.sleep(pause)


def get(service: Service) -> None:
    for _ in range(50):
        urllib.request.urlopen(f"http://{service.address[0]}:{service.address[1]}/").read()


def get_on_a_kept_connection(service: Service) -> None:
    connection = http.client.HTTPConnection(*service.address, timeout=20)
    for _ in range(100):
        connection.request("GET", "/")
        assert connection.getresponse().read() is not None
        time.sleep(0.001)
    connection.close()


def silent(service: Service) -> None:
    with test_diagnosis.connected(service, 50):
        time.sleep(0.3)


def connections(service: Service) -> None:
    for _ in range(60):
        with test_diagnosis.connected(service, 3):
            time.sleep(0.003)


def out_of_descriptors(service: Service) -> None:
    with test_diagnosis.connected(service, 40):
        time.sleep(0.3)


def before_deadlines(service: Service) -> None:
    """Of services/deadline: a byte for each read, long before its deadline."""
    with socket.create_connection(service.address, timeout=20) as connection:
        connection.settimeout(0.002)
        connection.sendall(b"30\n")
        for _ in range(1000):  # some may be read with the command
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(10) == b"0\n"
                break


def small(service: Service) -> None:
    with socket.create_connection(service.address, timeout=20) as connection:
        for _ in range(20):
            connection.sendall(b"x" * 99 + b"\n")
            assert connection.recv(100)
            time.sleep(0.002)


def large(service: Service) -> None:
    with socket.create_connection(service.address, timeout=20) as connection:
        connection.sendall(b"4096\n" + bytes(4096 << 10))
        assert connection.recv(4) == b"done"


def crowd(service: Service) -> None:
    with test_diagnosis.connected(service) as clients:
        for _ in range(5):
            test_diagnosis.ask_all(clients, b"ping", b"ping")


_kept: list[socket.socket] = []


def come(how: bytes, data: bytes, service: Service, leave: Callable[[socket.socket], object] | None) -> None:
    """leave: None for clients that stay."""
    for _ in range(4):
        connection = socket.create_connection(service.address, timeout=20)
        connection.sendall(how + b"\n")
        connection.recv(100)
        if data:
            connection.sendall(data)
        if leave is not None:
            leave(connection)
        _kept.append(connection)


def stopped(service: Service) -> None:
    """The service does not get round to data, nor to clients that have left."""
    os.kill(service.pid, signal.SIGCONT)
    gone = [socket.create_connection(service.address, timeout=20) for _ in range(4)]
    for connection in gone:
        connection.sendall(b"idle\n")
        connection.recv(100)
    fall_asleep(service.pid)
    suspend(service.pid)
    gone[0].sendall(b"hello")
    for connection in gone[1:]:
        connection.close()
    _kept.append(gone[0])


def half_closed(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


@functools.cache
def upstream_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def lose_upstream(_: Service) -> None:
    """The service dials it until it has its links, and loses them and it."""
    with socket.create_server(("127.0.0.1", upstream_port()), backlog=100) as listener:
        listener.settimeout(20)
        links = [listener.accept()[0] for _ in range(10)]
        listener.shutdown(socket.SHUT_RDWR)
    for link in links:
        link.close()
    time.sleep(0.3)


@contextlib.contextmanager
def hogs(_: Service) -> Iterator[None]:
    with test_diagnosis.hogs():
        yield


@contextlib.contextmanager
def some_hogs(n: int, _: Service) -> Iterator[None]:
    """Processes that share ONE_CPU with the service, each in a session of its own."""
    with burners(n, ONE_CPU):
        yield


@contextlib.contextmanager
def spread(service: Service) -> Iterator[None]:
    test_diagnosis.spread_workers(service)
    yield


@contextlib.contextmanager
def throttled(service: Service) -> Iterator[None]:
    """Much less CPU than a busy machine leaves it: else it's the machine that it waits for."""
    with test_runtime_numbers.made_quota(5) as path:
        (path / "cgroup.procs").write_text(str(service.pid))
        yield


@contextlib.contextmanager
def resumed(service: Service) -> Iterator[None]:
    try:
        yield
    finally:
        os.kill(service.pid, signal.SIGCONT)


def causes(name: str, code: str | None, act: Callable[[Service], object], **more: object) -> Case:
    return Case(name, code, "causes", ("-do", name), act, **more)  # type: ignore[arg-type]


def example(
    fault: str, code: str | None, act: Callable[[Service], object], name: str = "", **more: object
) -> Case:
    return Case(name or fault, code, EXAMPLE, ("-fault", fault), act, **more)  # type: ignore[arg-type]


def healthy(name: str, act: Callable[[Service], object], *args: str) -> Case:
    return Case(f"example {name}", None, EXAMPLE, args, act)


def io(kind: str, code: str | None) -> Case:
    return Case(f"io {kind}", code, "io", ("-do", kind), run(command, 3000))


def keep(name: str, code: str | None, how: bytes, data: bytes = b"", leave: object = None) -> Case:
    return Case(f"keep {name}", code, "keep", (), run(come, how, data, leave=leave))


TWO_PS, EIGHT_PS = {"GOMAXPROCS": "2"}, {"GOMAXPROCS": "8"}
ONE_P = {"GOMAXPROCS": "1"}

HEALTHY = (
    # example_project's service, with what each of its tests does.
    healthy("messages", run(echoes, count=200)),
    healthy("one by one", run(echoes, count=1, pause=0.005, connections=50)),
    healthy("seldom", run(echoes, count=5, pause=0.1)),
    healthy("spaced", run(echoes, count=50, pause=0.002)),
    healthy("pieces", FAULTS["stale"]),
    healthy("descriptors", out_of_descriptors, "-files", "32"),
    healthy("lost upstream", lose_upstream, "-upstream", "127.0.0.1:{upstream}", "-links", "10"),
    healthy("lines", run(echoes, count=50, pause=0.002, message=b"x" * 100)),
    healthy("crowd of connections", connections),
    healthy("idle", lambda _: time.sleep(0.3)),
    # The recipes, and other services.
    Case("recipe HTTP", None, "recipe-http", (), get_on_a_kept_connection),
    Case("recipe TCP", None, EXAMPLE, (), run(echoes, count=100, pause=0.001)),
    Case("recipe TCP, silent", None, EXAMPLE, (), silent),
    Case(
        "recipe config file",
        None,
        "recipe-config",
        ("-config", "{built}/config.json"),
        run(echoes, count=50, pause=0.001),
    ),
    Case("http", None, "http", (), get),
    Case("echo", None, "echo", (), lambda s: test_diagnosis.ping(s, 200)),
    Case("tls", None, "tls", (), lambda s: socket.create_connection(s.address).close()),
    # What looks like a fault: see "alike" in the rules.
    causes("plain", None, run(udp, count=30)),  # NP105
    causes("errapart", None, run(udp, count=30)),
    causes("thief", None, connections),  # NP102
    Case("twice, few of many", None, "causes", ("-do", "twice"), test_rules.few_of_many),  # NP102
    Case("deadline", None, "deadline", (), run(command, 15)),  # NP103, NP302
    Case("deadline, far", None, "deadline", ("-wait", "10s"), before_deadlines),
    io("check", None),  # NP201 to NP203
    io("alternate", None),
    io("reopen", None),
    causes("cancel", None, fed(0.3, run(command, 200))),
    Case("one end of file per command", None, "io", ("-do", "eof"), run(ones, 1000)),
    Case("one error per command", None, "io", ("-do", "error"), run(ones, 1000)),
    causes("compute", None, fed(0.3, run(command, 300))),  # NP204, NP407
    causes("hub", None, fed(0.3, run(command, 300))),  # NP204
    causes("pipeline", None, fed(0.3, run(command, 300))),
    causes("bulk", None, large),  # NP205
    causes("late", None, run(pings, count=500, pause=0)),
    causes("packets", None, run(command, 400)),
    causes("pacer", None, run(command, 500)),  # NP301
    causes("expire", None, run(command, 400)),
    causes("batch", None, fed(0.6, pings), env=TWO_PS),  # NP401
    Case("crowd", None, "echo", ("-work", "50"), crowd, ONE_P),  # NP401
    Case(
        "steadily", None, "echo", ("-work", "600"), test_rules.steadily, ONE_P, ONE_CPU, run(some_hogs, 6)
    ),  # NP402
    Case("one by one, computed", None, "causes", ("-do", "compute"), fed(0.8, one_by_one), ONE_P),
    causes("beside", None, run(ask, count=100)),  # NP405
    Case(
        "bursts", None, "echo", ("-work", "150"), test_rules.bursts, EIGHT_PS, ONE_CPU, run(some_hogs, 1)
    ),  # NP406
    Case(
        "spin on one P", None, "causes", ("-do", "spin"), lambda _: time.sleep(0.3), ONE_P, ONE_CPU
    ),  # NP406
    causes("kernel", None, lambda _: time.sleep(0.3), env=EIGHT_PS, prefix=ONE_CPU),
    causes("free", None, run(ones, 2)),  # NP407
    causes("nodelay", None, run(ask, count=10, n=40)),  # NP408
    Case("nagle, at once", None, "causes", ("-do", "nagle"), run(ask, count=20, at_once=True)),
    keep("idle", None, b"idle", leave=socket.socket.close),  # NP501
    keep("open", None, b"channel"),
    keep("half", None, b"channel", leave=half_closed),
    keep("upstream", None, b"upstream"),
    keep("low", None, b"low 100", b"hello"),  # NP502
    Case("keep, stopped", None, "keep", (), stopped, {}, (), resumed),
)
FAULTY = (
    example("dup", "NP101", FAULTS["dup"]),
    example("herd", "NP102", connections, around=spread),
    example("stale", "NP103", FAULTS["stale"]),
    causes("unixgram", "NP104", run(command, 300)),
    causes("errqueue", "NP105", udp),
    causes("errread", "NP105", udp),
    causes("refused", "NP106", run(command, 200)),
    Case("damaged", "NP107", "causes", ("-do", "plain"), lambda s: test_rules.damaged(s, 50)),
    io("eagain", "NP201"),
    causes("nonblock", "NP201", run(pings, count=20, pause=0.005)),  # and not NP103
    io("eof", "NP202"),
    io("error", "NP203"),
    Case("out of descriptors", "NP203", EXAMPLE, ("-fault", "spin", "-files", "32"), out_of_descriptors),
    causes("select", "NP204", fed(0.3, run(command, 300))),
    example("unbuffered", "NP205", small),
    example("tickers", "NP301", run(echoes, count=10, pause=0.05)),
    Case("deadlines", "NP302", "deadline", (), run(command, 80)),
    example("busy-poll", "NP302", run(echoes, count=10, pause=0.05)),
    example("starve", "NP401", fed(0.5, lambda s: test_diagnosis.ping(s, 20, 0.05))),
    causes("yield", "NP402", fed(0.8, pings), env=ONE_P),
    Case("quota", "NP403", "causes", ("-do", "spin"), run(pings, count=16), TWO_PS, (), throttled),
    Case("busy", "NP404", "echo", ("-work", "50"), crowd, {}, ONE_CPU, hogs),
    causes("locked", "NP405", run(ask, count=200)),
    causes("worker", "NP405", run(ask, count=200)),
    causes("spin", "NP406", fed(0.4, lambda _: time.sleep(0.3)), env=EIGHT_PS, prefix=ONE_CPU),
    causes("gc", "NP407", fed(0.5, run(command, 300))),
    causes("nagle", "NP408", run(ask, count=10)),
    keep("channel", "NP501", b"channel", leave=socket.socket.close),
    keep("stuck", "NP502", b"stuck", b"hello"),
    keep("peek", "NP502", b"peek 10", b"hello"),
)
CASES = (*HEALTHY, *FAULTY)
