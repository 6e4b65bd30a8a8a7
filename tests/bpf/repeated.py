"""How often each rule is broken: by its fault in every window, by healthy services in none.

    python tests/bpf/repeated.py [-n 50] [NAME ...]

A row for each service: the rules that its windows broke. NP404 (machine-busy) is the machine's on which this
runs. As root.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.diagnosis import findings, unchecked
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.options import Config
from pytest_netpoll.service.build import Builder
from pytest_netpoll.service.service import Service, ServiceFactory
from tests.bpf import test_diagnosis, test_rules, test_runtime_numbers

SERVICES = Path(__file__).parent / "services"
EXAMPLE = test_diagnosis.SERVER
ONE_CPU = test_diagnosis.ONE_CPU


class Case(NamedTuple):
    """code: the rule that it is to break; None where it is healthy. act: what a window measures."""

    name: str
    code: str | None
    service: str
    args: Sequence[str]
    act: Callable[[Service], object]
    env: Mapping[str, str] = MappingProxyType({})
    prefix: Sequence[str] = ()
    around: Callable[[Service], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


def command(n: int, service: Service) -> None:
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(b"%d\n" % n)
        assert connection.makefile().readline()


def get(service: Service) -> None:
    for _ in range(50):
        urllib.request.urlopen(f"http://{service.address[0]}:{service.address[1]}/").read()


def connections(service: Service) -> None:
    for _ in range(100):
        with test_diagnosis.connected(service, 3):
            time.sleep(0.003)


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


def come(how: bytes, data: bytes, leave: bool, service: Service) -> None:
    for _ in range(4):
        connection = socket.create_connection(service.address, timeout=20)
        connection.sendall(how + b"\n")
        connection.recv(100)
        if data:
            connection.sendall(data)
        if leave:
            connection.close()
        else:
            _kept.append(connection)


@contextlib.contextmanager
def hogs(_: Service) -> Iterator[None]:
    with test_diagnosis.hogs():
        yield


@contextlib.contextmanager
def spread(service: Service) -> Iterator[None]:
    test_diagnosis.spread_workers(service)
    yield


@contextlib.contextmanager
def favored(service: Service) -> Iterator[None]:
    """It has most of its CPU: else its threads wait for others rather than for each other."""
    with contextlib.suppress(OSError):  # the scheduler may share the CPU out by sessions
        Path(f"/proc/{service.pid}/autogroup").write_text("-10")
    yield


@contextlib.contextmanager
def throttled(service: Service) -> Iterator[None]:
    """Much less CPU than a busy machine leaves it: else it's the machine that it waits for."""
    with test_runtime_numbers.made_quota(5) as path:
        (path / "cgroup.procs").write_text(str(service.pid))
        yield


def causes(name: str, code: str | None, act: Callable[[Service], object], **more: object) -> Case:
    return Case(name, code, "causes", ("-do", name), act, **more)  # type: ignore[arg-type]


def example(
    fault: str, code: str | None, act: Callable[[Service], object], name: str = "", **more: object
) -> Case:
    return Case(name or fault, code, "", ("-fault", fault), act, **more)  # type: ignore[arg-type]


run = functools.partial
udp, ask, pings = test_rules.udp_pings, test_rules.ask, test_rules.pings
faults = {fault: act for fault, (act, _, _) in test_diagnosis.FAULTS.items()}
CASES = (
    *(example("none", None, faults[name], f"none {name}") for name in ("dup", "tickers", "stale")),
    example("none", None, lambda _: time.sleep(0.5), "none idle"),
    example("none", None, connections, "none connections"),
    Case("http", None, "http", (), get),
    Case("echo", None, "echo", (), lambda s: test_diagnosis.ping(s, 200)),
    Case("tls", None, "tls", (), lambda s: socket.create_connection(s.address).close()),
    causes("plain", None, run(udp, count=30)),
    causes("bulk", None, large),
    causes("compute", None, run(command, 500)),
    causes("nodelay", None, run(ask, count=10, n=40)),
    Case("at once", None, "causes", ("-do", "nagle"), run(ask, count=20, at_once=True)),
    causes("beside", None, run(ask, count=100)),
    causes("thief", None, connections),
    *(
        Case(f"io {kind}", None, "io", ("-do", kind), run(command, 3000))
        for kind in ("check", "alternate", "reopen")
    ),
    Case("keep idle", None, "keep", (), run(come, b"idle", b"", True)),
    Case("keep open", None, "keep", (), run(come, b"channel", b"", False)),
    Case("keep low", None, "keep", (), run(come, b"low 100", b"hello", False)),
    example("dup", "NP101", faults["dup"]),
    example("herd", "NP102", connections, around=spread),
    example("stale", "NP103", faults["stale"]),
    causes("unixgram", "NP104", run(command, 300)),
    causes("errqueue", "NP105", udp),
    causes("refused", "NP106", run(command, 200)),
    Case("damaged", "NP107", "causes", ("-do", "plain"), lambda s: test_rules.damaged(s.port, 50)),
    Case("io eagain", "NP201", "io", ("-do", "eagain"), run(command, 3000)),
    Case("io eof", "NP202", "io", ("-do", "eof"), run(command, 3000)),
    Case("io error", "NP203", "io", ("-do", "error"), run(command, 3000)),
    causes("select", "NP204", run(command, 500)),
    example("unbuffered", "NP205", small),
    example("tickers", "NP301", faults["tickers"]),
    example("busy-poll", "NP302", faults["busy-poll"]),
    example("starve", "NP401", lambda s: test_diagnosis.ping(s, 25, 0.05)),
    causes("yield", "NP402", pings, env={"GOMAXPROCS": "1"}),
    Case(
        "quota", "NP403", "causes", ("-do", "spin"), run(pings, count=20), {"GOMAXPROCS": "2"}, (), throttled
    ),
    causes("locked", "NP405", run(ask, count=200)),
    causes("worker", "NP405", run(ask, count=200)),
    causes(
        "spin", "NP406", lambda _: time.sleep(0.3), env={"GOMAXPROCS": "8"}, prefix=ONE_CPU, around=favored
    ),
    causes("gc", "NP407", run(command, 300)),
    causes("nagle", "NP408", run(ask, count=20)),
    Case("keep channel", "NP501", "keep", (), run(come, b"channel", b"", True)),
    Case("keep stuck", "NP502", "keep", (), run(come, b"stuck", b"hello", False)),
    Case("busy", "NP404", "echo", ("-work", "50"), crowd, {}, ONE_CPU, hogs),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=50, help="windows of each (default 50)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    given = parser.parse_args()
    evidence = resolve([((), {"forbid": "all"})], "t").offences
    meter = Meter(Config.default(), Symbolizer(SERVICES))
    with tempfile.TemporaryDirectory() as built:
        factory = ServiceFactory(
            rootdir=SERVICES, cache_dir=Path(built), on_spawn=meter.watch, on_exit=meter.unwatch
        )
        try:
            meter.start()
            for case in CASES:
                if not given.names or case.name in given.names:
                    repeat(case, given.n, meter, factory, Path(built), evidence)
        finally:
            factory.stop_all()
            meter.stop()


def repeat(case: Case, n: int, meter: Meter, factory: ServiceFactory, built: Path, evidence: set) -> None:
    package = str(EXAMPLE) if not case.service else f"./{case.service}"
    ready = {"ready": re.compile("ready on")} if case.service else {}
    args = ["-addr", "127.0.0.1:{port}", *case.args]
    if case.prefix:
        program = str(Builder(built, None).build(package, base=SERVICES, go=None, flags=[], env={}))
        service = factory(command=[*case.prefix, program, *args], env=case.env, **ready)
    else:
        service = factory(package, args=args, env=case.env, **ready)
    broken: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    unmeasured: Counter[str] = Counter()
    told: dict[str, str] = {}
    began = time.monotonic()
    with case.around(service):
        for _ in range(n):
            window = meter.open(offences=evidence)
            case.act(service)
            [m] = meter.close(window, [service])
            if m.unmeasured is not None:
                unmeasured[str(m.unmeasured)] += 1
            broken.update(found.rule.code for found in findings(m))
            told.update((found.rule.code, str(found)) for found in findings(m))
            missing.update(rule.rule.code for rule in unchecked(m))
    service.stop()
    took = time.monotonic() - began
    print(f"{case.name:18} {case.code or '':6} {n} windows, {took:.0f} s: {dict(broken)}", flush=True)
    for what, found in (("not checked", missing), ("unmeasured", unmeasured)):
        if found:
            print(f"    {what}: {dict(found)}", flush=True)
    for code, text in told.items():
        if code not in (case.code, "NP404"):
            print(f"    {text}", flush=True)


if __name__ == "__main__":
    main()
