"""The numbers of docs/claims.md that depend too much on the machine to be asserted; it prints the tables.

    ROUNDS=5 python -m pytest tests/bench/claims.py -s

Rows take turns within a round. A cell is the median of the rounds, and in brackets the median, minimum and
maximum of the ratios to the first row, round by round.
"""

from __future__ import annotations

import collections
import math
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pytest_netpoll import Service
from tests.bpf.conftest import SERVICES
from tests.bpf.test_claims import Upstream

SERVICE = str(SERVICES / "claims")
LINKS, OUTAGE = 100, 1.0
ROUNDS = int(os.environ.get("ROUNDS", "5"))


@pytest.fixture
def claims(go_service: Callable[..., Service]) -> Callable[..., Service]:
    """claims("-conn", "net", name="net") is services/claims with these flags."""

    def claims(*flags: object, name: str) -> Service:
        return go_service(SERVICE, args=["-addr", "127.0.0.1:{port}", *flags], name=name)

    return claims


def say(title: str, rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """rounds: row -> its {column: number} of each round."""
    first, *_ = rounds.values()
    print(f"\n{title}, {len(first)} rounds\n\n| | {' | '.join(first[0])} |\n|---|{'--:|' * len(first[0])}")
    for row, measured in rounds.items():
        cells = []
        for column in first[0]:
            cell = f"{statistics.median(one[column] for one in measured):,.5g}"
            # Of numbers from the same round.
            ratios = [
                one[column] / base[column] for one, base in zip(measured, first, strict=True) if base[column]
            ]
            if measured is not first and ratios:
                cell += f" (x {statistics.median(ratios):.3g}, {min(ratios):.3g} to {max(ratios):.3g})"
            cells.append(cell)
        print(f"| {row} | {' | '.join(cells)} |")


def run(netpoll: Any, service: Service, client: Service, pings: int, batch: int) -> dict[str, float]:
    """The cost of that many pings from the client on each of its 16 connections."""
    with socket.create_connection(client.address, timeout=120) as control, control.makefile("rw") as wire:
        with netpoll.measure() as window:
            wire.write(f"{pings}\n")
            wire.flush()
            seconds, p50, p99 = map(float, wire.readline().split())
        m = window[service]
        messages = 16 * pings * batch
        return {
            "messages/s": messages / seconds,
            "p50, µs": p50,
            "p99, µs": p99,
            "I/O calls a message": m.io_calls / messages,
            "futile": m.futile_calls,
            "CPU a message, µs": 1e6 * m.cpu_seconds / messages,
            "wakeups a message": m.wakeups / messages,
        }


@pytest.mark.parametrize(
    ("flags", "batch", "pings"), [([], 1, 3000), (["-answerers"], 16, 400)], ids=["alone", "shared"]
)
@pytest.mark.parametrize("procs", [0, 1])
def test_busy(
    claims: Callable[..., Service], netpoll: Any, flags: list[str], batch: int, pings: int, procs: int
) -> None:
    """Services side by side, one loaded at a time; a spinning one runs only during its turn."""
    rounds: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for _ in range(ROUNDS):
        for kind in ("net", "trylock", "nonblock"):
            service = claims("-conn", kind, "-cpu", procs, *flags, name=kind)
            client = claims("-target", f"127.0.0.1:{service.port}", "-batch", batch, name="client")
            rounds[kind].append(run(netpoll, service, client, pings, batch))
            client.stop()
            service.stop()
    say(f"busy, {flags}, GOMAXPROCS={procs or 'all'}", rounds)


def test_silent(claims: Callable[..., Service], netpoll: Any) -> None:
    """16 connections that are silent for a second."""
    rounds: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for _ in range(ROUNDS):
        for kind in ("net", "trylock", "nonblock"):
            service = claims("-conn", kind, name=kind)
            connections = [socket.create_connection(service.address) for _ in range(16)]
            with netpoll.measure() as window:
                time.sleep(1)
            m = window[service]
            rounds[kind].append({"I/O calls": m.io_calls, "futile": m.futile_calls, "CPU, s": m.cpu_seconds})
            for connection in connections:
                connection.close()
            service.stop()
    say("silent", rounds)


def waiting(listener: socket.socket) -> int:
    """How many connections wait to be accepted: for a listener, that is tcpi_unacked."""
    info: bytes = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack_from("=I", info, 24)[0]  # type: ignore[no-any-return]


def test_stampede(claims: Callable[..., Service], netpoll: Any) -> None:
    rounds: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for _ in range(ROUNDS):
        for redial in ("now", "backoff", "never"):
            upstream = Upstream()
            host, port = upstream.address
            service = claims("-upstream", f"{host}:{port}", "-links", LINKS, "-redial", redial, name=redial)
            upstream.accept(LINKS)
            with netpoll.measure() as window:
                upstream.go()
                time.sleep(OUTAGE)
                upstream.come_back()
                began = time.monotonic()
                time.sleep(0.02)
                soon = waiting(upstream.listener)
                while redial != "never" and waiting(upstream.listener) < LINKS:
                    time.sleep(0.001)
                back = time.monotonic() - began
            m = window[service]
            outcomes = m.snapshot.io_outcomes
            rounds[redial].append(
                {
                    "dials": outcomes.get("EINPROGRESS", 0) + outcomes.get("ECONNREFUSED", 0),
                    "wakeups": m.wakeups,
                    "I/O calls": m.io_calls,
                    "CPU, s": m.cpu_seconds,
                    "back within 20 ms": soon,
                    "all back after, ms": 1000 * back if redial != "never" else math.nan,
                }
            )
            upstream.go()
            upstream.listener.close()
            service.stop()
    say(f"stampede: {LINKS} links, {OUTAGE} s", rounds)
