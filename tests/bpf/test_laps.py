"""Windows that follow one another without a gap, as `watch` cuts them: each event counts exactly once."""

from __future__ import annotations

import threading
from functools import reduce
from operator import add
from pathlib import Path

import pytest

from pytest_netpoll.agent.constants import BANKS
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.options import Config
from pytest_netpoll.service.factory import ServiceFactory
from tests.waiting import undisturbed

SERVICES = Path(__file__).parent / "services"
PATIENCE = 1.0  # s, at most


@pytest.mark.parametrize("name", ["echo", "dup"])
@undisturbed
def test_laps_count_everything_exactly_once(launch, meter, measure, connect, spaced_pings, newest_go, name):
    """Pings go on all the time; a window around all laps has the true number."""
    server = launch(name, go=str(newest_go.go))
    connection = connect(server.address)
    measured = []
    with measure() as outer:
        window = meter.open()

        def ping():
            spaced_pings(connection, 300)
            while len(measured) <= BANKS:
                spaced_pings(connection, 10)

        pings = threading.Thread(target=ping)
        pings.start()
        while pings.is_alive():
            (m,), window = meter.lap(window, [server], PATIENCE)
            measured.append(m)
        measured += meter.close(window, [server])
    assert [m.unmeasured for m in measured if m.unmeasured] == []
    assert len(measured) > BANKS
    total = reduce(add, (m.snapshot for m in measured))
    expected = outer(server).snapshot
    assert total.counters["productive_wakeups"] >= 300
    assert total.counters == {**expected.counters, **polls(total)}
    assert total.histogram == expected.histogram
    assert total.latency_max_ns == expected.latency_max_ns


def polls(snapshot):
    """Polls that happen by themselves, also between the cuts of the laps and of the window around them."""
    return {name: count for name, count in snapshot.counters.items() if name.endswith("polls")}


@undisturbed
def test_each_lap_reports_only_its_own_offenders(launch, meter, connect, spaced_pings, newest_go):
    server = launch("dup", go=str(newest_go.go))
    connection = connect(server.address)
    window = meter.open()
    for pings in (30, 0, 20):
        spaced_pings(connection, pings)
        (m,), window = meter.lap(window, [server], PATIENCE)
        assert sum(offender.count for offender in m.offenders) == m.spurious_wakeups
        assert m.spurious_wakeups == pytest.approx(pings, abs=2)
        assert all(offender.stack[0].function == "services/kit.Echo" for offender in m.offenders)
    meter.close(window, [server])


@undisturbed
def test_stacks_of_former_laps_make_room(launch, meter, connect, spaced_pings, newest_go):
    server = launch("paths", go=str(newest_go.go))
    connection = connect(server.address)
    window = meter.open()
    for _ in range(8):  # each has other stacks
        spaced_pings(connection, 500)
        (m,), window = meter.lap(window, [server], PATIENCE)
        lost = sum(offender.count for offender in m.offenders if not offender.stack)
        assert lost <= 0.15 * m.spurious_wakeups
    meter.close(window, [server])


def test_ended_processes_make_room_for_others(cache_dir, newest_go):
    """More of them, one after the other, than can be watched at once."""
    config = Config(**{**vars(Config.default()), "max_processes": 3})
    meter = Meter(config, Symbolizer(SERVICES))
    factory = ServiceFactory(
        rootdir=SERVICES, cache_dir=cache_dir, on_spawn=meter.watch, on_exit=meter.unwatch
    )
    try:
        window = meter.open()
        for _ in range(8):
            server = factory("./echo", args=["-addr", "127.0.0.1:{port}"], go=str(newest_go.go))
            (m,), window = meter.lap(window, [server], PATIENCE)
            assert m.unmeasured is None
            server.stop()
        assert len(meter.roots) <= 2
    finally:
        factory.stop_all()
        meter.stop()
