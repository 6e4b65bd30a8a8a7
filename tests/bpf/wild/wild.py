"""Measures real-world Go servers under load on loopback, and prints a Markdown table.

    make test-wild ARGS='[--seconds N] [name ...]'

The first run downloads what it needs, from Debian's archive (stripped binaries, Go 1.19) and through the
Go module proxy (newest releases), into .tools/wild; nothing is installed into the system. Needs root, BCC,
wrk and dnsperf, and apt-get for the Debian rows. Exit status 1 when a row is not exact: unmeasured, more than
1 % of its wakeups unresolved, I/O calls that do not add up, or a wrong number of futile calls.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from pytest_netpoll.errors import NetpollError, ServiceError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.options import Config
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.readiness import Ready
from pytest_netpoll.service.service import Service

HERE = Path(__file__).parent
TOOLS = HERE.parents[2] / ".tools"
CACHE = TOOLS / "wild"
UNRESOLVED = 0.01

Fetch = Callable[[], str]


def debian(package: str, program: str) -> Fetch:
    """A program from a Debian package, unpacked but not installed, so that its daemon is not started."""

    def fetch() -> str:
        root = CACHE / package
        if not (root / program).exists():
            root.mkdir(parents=True, exist_ok=True)
            run("apt-get", "download", package, cwd=root)
            run("dpkg-deb", "-x", *(str(deb) for deb in root.glob("*.deb")), str(root))
        return str(root / program)

    return fetch


def module(program: str, version: str) -> Fetch:
    """A program built from a module of the Go module proxy, stripped as releases are."""

    def fetch() -> str:
        # Programs are called "server" and "client": a directory each.
        into = CACHE / f"{program.replace('/', '_')}@{version}"
        if not any(into.glob("*")):
            print(f"wild: building {program}@{version}", file=sys.stderr)
            environ = {**os.environ, "GOBIN": str(into), "GOTOOLCHAIN": "local", "GOROOT": ""}
            run(newest_go(), "install", "-ldflags=-s -w", f"{program}@{version}", env=environ)
        (built,) = into.glob("*")
        return str(built)

    return fetch


def system(program: str) -> Fetch:
    return lambda: program


def own(directory: str) -> Fetch:
    """The few lines around a library: a directory beside this file, with the versions in its go.mod."""

    def fetch() -> str:
        built = CACHE / "own" / directory
        built.parent.mkdir(parents=True, exist_ok=True)
        environ = {**os.environ, "GOTOOLCHAIN": "local", "GOROOT": ""}
        run(newest_go(), "build", "-buildvcs=false", "-o", str(built), ".", cwd=HERE / directory, env=environ)
        return str(built)

    return fetch


@dataclass(frozen=True)
class Row:
    """A server, and the commands that load it together; under: the load in a few words.

    In args, load and files: {port} is the port of readiness, {port2} and {port3} are others, {dir} is a
    temporary directory, {seconds} the length of the load. futile: its true number of futile calls, if known.
    """

    name: str
    server: Fetch
    args: str
    load: Sequence[tuple[Fetch, str]]
    under: str
    ready: Ready = "tcp"
    files: dict[str, str] = field(default_factory=dict)
    futile: int | None = None


def wrk(target: str, connections: int = 64, *, keep: bool = True) -> tuple[Fetch, str]:
    """keep: its connections; else a new one for each request."""
    close = "" if keep else "-H 'Connection: close' "
    return system("wrk"), f"-t2 -c{connections} -d{{seconds}} {close}{target}"


URL = "http://127.0.0.1:{port}"
URL2 = "http://127.0.0.1:{port2}"

ETCD = (
    "--data-dir {dir} --listen-client-urls http://127.0.0.1:{port} --advertise-client-urls "
    "http://127.0.0.1:{port} --listen-peer-urls http://127.0.0.1:{port2} --initial-advertise-peer-urls "
    "http://127.0.0.1:{port2} --initial-cluster default=http://127.0.0.1:{port2}"
)
# A proxy in front of a file server, in one process: io.Copy between sockets, and sendfile.
CADDYFILE = """{
    admin off
    auto_https off
}
http://127.0.0.1:{port} {
    reverse_proxy 127.0.0.1:{port2}
}
http://127.0.0.1:{port2} {
    root * {dir}
    file_server
}
"""
CADDY = {"Caddyfile": CADDYFILE, "small.txt": "ok\n", "large.bin": "x" * (1 << 20)}
CADDY_LOAD = (wrk(URL + "/small.txt"), wrk(URL2 + "/large.bin", 16))
NATS_BENCH = module("github.com/nats-io/nats.go/examples/nats-bench", "v1.55.0")
NATS_UNDER = "nats-bench, 8 publishers, 8 subscribers"
NATS_LOAD = ((NATS_BENCH, "-s nats://127.0.0.1:{port} -np 8 -ns 8 -n 4000000 -ms 128 wild"),)
PROMETHEUS = "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: self\n  static_configs:\n  - targets: ['127.0.0.1:{port}']\n"

ROWS = (
    Row(
        "etcd-3.4",
        debian("etcd-server", "usr/bin/etcd"),
        ETCD,
        [
            (debian("etcd-client", "usr/bin/etcdctl"), "--endpoints 127.0.0.1:{port} check perf --load m"),
            wrk(URL + "/health", 8),
        ],
        under="etcdctl check perf, and wrk",
        ready="http:/health",
    ),
    Row(
        "prometheus-2.42",
        debian("prometheus", "usr/bin/prometheus"),
        "--config.file {dir}/prometheus.yml --storage.tsdb.path {dir}/data --web.listen-address 127.0.0.1:{port}",
        [wrk(URL + "/metrics", 16), wrk(URL + "/api/v1/query?query=up", 16)],
        under="wrk on /metrics, and on a query",
        ready="http:/-/ready",
        files={"prometheus.yml": PROMETHEUS},
    ),
    Row(
        "caddy-2.6",
        debian("caddy", "usr/bin/caddy"),
        "run --config {dir}/Caddyfile --adapter caddyfile",
        CADDY_LOAD,
        under="wrk through its proxy, and on a file of 1 MB",
        files=CADDY,
    ),
    Row(
        "nats-2.9",
        debian("nats-server", "usr/sbin/nats-server"),
        "-a 127.0.0.1 -p {port}",
        NATS_LOAD,
        under=NATS_UNDER,
    ),
    Row(
        "caddy-2.11",
        module("github.com/caddyserver/caddy/v2/cmd/caddy", "v2.11.9"),
        "run --config {dir}/Caddyfile --adapter caddyfile",
        CADDY_LOAD,
        under="wrk through its proxy, and on a file of 1 MB",
        files=CADDY,
    ),
    Row(
        "nats-2.15",
        module("github.com/nats-io/nats-server/v2", "v2.15.2"),
        "-a 127.0.0.1 -p {port}",
        NATS_LOAD,
        under=NATS_UNDER,
    ),
    Row(
        "grpc-1.85",
        module("google.golang.org/grpc/benchmark/server", "v1.85.0"),
        "-port {port} -test_name wild",
        [
            (
                module("google.golang.org/grpc/benchmark/client", "v1.85.0"),
                "-port {port} -d {seconds} -w 0 -c 8 -r 4 -test_name wild",
            )
        ],
        under="its benchmark's client, 8 connections",
        futile=0,
    ),
    Row(
        "coredns-1.15",
        module("github.com/coredns/coredns", "v1.15.0"),
        "-conf {dir}/Corefile",
        [
            (
                system("dnsperf"),
                "-s 127.0.0.1 -p {port} -d {dir}/queries -l {seconds} -c 16",
            )
        ],
        under="dnsperf, 16 clients over UDP",
        files={"Corefile": ".:{port} {\n    bind 127.0.0.1\n    whoami\n}\n", "queries": "wild.test A\n"},
    ),
    Row(
        "fasthttp-prefork",
        own("fasthttp-prefork"),
        "-addr 127.0.0.1:{port}",
        [wrk(URL + "/", keep=False)],
        under="wrk, a connection per request",
    ),
    Row(
        "fasthttp-reuseport",
        own("fasthttp-prefork"),
        "-addr 127.0.0.1:{port} -reuseport",
        [wrk(URL + "/", keep=False)],
        under="wrk, a connection per request",
    ),
    Row(
        "gnet",
        own("gnet"),
        "-http 127.0.0.1:{port} -addr 127.0.0.1:{port2}",
        [wrk(URL, 8), wrk(URL2)],
        under="wrk on net/http, and on its own loop",
    ),
    Row(
        "cloudwego",
        own("cloudwego"),
        "-http 127.0.0.1:{port} -addr 127.0.0.1:{port2}",
        [wrk(URL, 8), wrk(URL2)],
        under="wrk on net/http, and on its own loop",
    ),
)


def newest_go() -> str:
    found = TOOLS.glob("go-*/bin/go")
    return str(max(found, key=lambda go: [int(n) for n in re.findall(r"\d+", go.parts[-3])], default="go"))


def run(*command: str, **options: object) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise ServiceError(
            f"cannot have {command[-1]}",
            why=f"{shlex.join(command)} ended with exit status {done.returncode}",
            detail=done.stdout[-2000:],
        )


@contextlib.contextmanager
def running(row: Row, seconds: int, factory: ServiceFactory) -> Iterator[tuple[Service, list[list[str]]]]:
    """Yields the server, ready and idle, and the commands that load it for that many seconds."""
    loads = [(fetch(), arguments) for fetch, arguments in row.load]
    server = row.server()
    with tempfile.TemporaryDirectory(prefix="netpoll-wild-") as directory:
        known = {
            "{dir}": directory,
            "{seconds}": str(seconds),
            "{port2}": str(factory.free_port()),
            "{port}": str(factory.free_port()),
        }

        def filled(text: str) -> str:
            for name, value in known.items():
                text = text.replace(name, value)
            return text

        for name, text in row.files.items():
            (Path(directory) / name).write_text(filled(text))
        command = [server, *filled(row.args).split()]
        service = factory(command=command, name=row.name, ready=row.ready, cwd=directory, timeout=60)
        try:
            time.sleep(1)  # its start, such as an election, is over
            yield service, [[program, *shlex.split(filled(arguments))] for program, arguments in loads]
        finally:
            service.stop()


def measure(row: Row, seconds: int, meter: Meter, factory: ServiceFactory) -> Measurement:
    """All of the load is in the window, including the beginning and end of its connections."""
    with running(row, seconds, factory) as (service, loads):
        window = meter.open()
        load(seconds, loads)
        time.sleep(0.2)
        (measurement,) = meter.close(window, [service])
    return measurement


def load(seconds: int, commands: Sequence[Sequence[str]]) -> None:
    """Runs the commands side by side until they end, or the time is over."""
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    deadline = time.monotonic() + seconds + 2
    for process in running:
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
        else:
            if status:
                print(f"wild: {' '.join(process.args)} ended with status {status}", file=sys.stderr)  # type: ignore[arg-type]


COLUMNS = ("wakeups", "spurious", "stale_retries", "polls_per_event", "lost")


def unresolved(m: Measurement) -> float:
    return (m.abandoned_wakeups + m.pending_wakeups) / m.wakeups if m.wakeups else 0.0


def cells(row: Row, m: Measurement) -> list[str]:
    shown = {name: METRICS[name].format(m.metrics[name]) for name in COLUMNS}
    return [
        row.name,
        (m.go_version or "?").removeprefix("go"),
        row.under,
        shown["wakeups"],
        shown["spurious"],
        f"{100 * unresolved(m):.3f} %",
        shown["stale_retries"],
        shown["polls_per_event"],
        shown["lost"],
    ]


HEADERS = (
    "server",
    "Go",
    "load",
    "wakeups",
    "spurious",
    "abandoned + pending",
    "stale retries",
    "polls / event",
    "lost",
)


def detail(m: Measurement) -> str:
    lines = [
        f"{m.service}: " + ", ".join(f"{name} {METRICS[name].format(v)}" for name, v in m.metrics.items())
    ]
    for offender in m.offenders[:5]:
        where = " < ".join(f"{f.function}:{f.line}" for f in offender.stack[:6])
        lines.append(
            f"  {offender.offence} {offender.count} ({offender.share:.0%}) {offender.direction} "
            f"{offender.syscall} {offender.fd_type}: {where}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure Go servers of the wild; print a Markdown table.")
    parser.add_argument("names", nargs="*", metavar="name", help="; ".join(row.name for row in ROWS))
    parser.add_argument("--seconds", type=int, default=8, help="length of each load (default: 8)")
    parser.add_argument("-v", "--verbose", action="store_true", help="every metric, and the offenders")
    options = parser.parse_args()
    unknown = set(options.names) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(r.name for r in ROWS)}")
    meter = Meter(Config.default(), Symbolizer(HERE))
    factory = ServiceFactory(rootdir=HERE, cache_dir=CACHE, on_spawn=meter.watch, on_exit=meter.unwatch)
    table, bad = [], 0
    try:
        for row in ROWS:
            if options.names and row.name not in options.names:
                continue
            try:
                m = measure(row, options.seconds, meter, factory)
            except NetpollError as error:
                print(f"wild: {row.name}: {error}", file=sys.stderr)
                bad = 1
                continue
            table.append(cells(row, m))
            if m.io_calls != sum(m.snapshot.io_outcomes.values()) or row.futile not in (None, m.futile_calls):
                bad = 1
                print(
                    f"wild: {row.name}: {m.futile_calls} futile of {m.snapshot.io_outcomes}", file=sys.stderr
                )
            if m.unmeasured or unresolved(m) > UNRESOLVED:
                bad = 1
                print(f"wild: {row.name}: {m.unmeasured or 'too much is unresolved'}", file=sys.stderr)
            if options.verbose:
                print(detail(m), file=sys.stderr)
    finally:
        factory.stop_all()
        meter.stop()
    print(tabulate(table, HEADERS, tablefmt="github", disable_numparse=True))
    return bad


if __name__ == "__main__":
    sys.exit(main())
