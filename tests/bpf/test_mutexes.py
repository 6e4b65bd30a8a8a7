"""How long goroutines wait for mutexes, and where: against what they time themselves."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.waiting import undisturbed

ROUNDS = 12


def ask(connection, command):
    connection.sendall(f"{command}\n".encode())
    return int(connection.makefile().readline())


def waited(service, *commands):
    """Gives all commands at once, on connections of their own; the seconds that they waited, together."""
    with ExitStack() as stack, ThreadPoolExecutor(len(commands)) as pool:
        connections = [
            stack.enter_context(socket.create_connection(service.address, timeout=60)) for _ in commands
        ]
        return sum(pool.map(ask, connections, commands)) / 1e9


def places(m, offence, **wanted):
    """{function: offender} of the places that wait, or unlock."""
    return {
        o.stack[0].function: o
        for o in m.offenders
        if o.offence == offence and o.stack and all(getattr(o, n) == value for n, value in wanted.items())
    }


@undisturbed
def test_waits_for_mutexes_are_what_their_goroutines_timed_and_have_their_lines(
    launch, measure, go_toolchain
):
    service = launch("locks", go=str(go_toolchain.go))
    # In this rhythm the runtime's own estimate is far off in every third run.
    with measure(["mutex", "ready"]) as crowd:
        truth = waited(service, *[f"rhythm {ROUNDS}"] * 8)
    m = crowd(service)
    if int(go_toolchain.version.split(".")[1]) < 20:
        assert m.mutex_wait_seconds is None
        assert "before Go 1.20" in m.absent["mutex_wait_seconds"].what
        assert places(m, "mutex") == {}
        return
    assert 0.6 * truth <= m.mutex_wait_seconds <= 1.6 * truth
    assert m.estimates == ()
    found = places(m, "mutex")
    assert found["main.enter"].lock == "sync.Mutex.Lock"
    assert found["main.enter"].share > 0.9
    (holder,) = places(m, "ready", unlocks=True).values()
    assert holder.stack[0].function == "main.leave"
    assert holder.woken_stack[0].function == "main.enter"

    with measure(["mutex"]) as both:
        truth = waited(service, *[f"write {ROUNDS}"] * 4, *[f"read {4 * ROUNDS}"] * 4)
    m = both(service)
    assert 0.6 * truth <= m.mutex_wait_seconds <= 1.6 * truth
    found = places(m, "mutex")
    assert found["main.write"].lock == "sync.RWMutex.Lock"
    assert found["main.read"].lock == "sync.RWMutex.RLock"


@undisturbed
def test_a_deadlock_is_measured_while_it_lasts_and_other_waits_are_none(launch, measure, meter, newest_go):
    service = launch("locks", "-goroutines", 3000, go=str(newest_go.go))
    with measure(["mutex"]) as healthy:
        waited(service, *["alone 50"] * 3)
    m = healthy(service)
    assert (m.mutex_wait_seconds, m.estimates, places(m, "mutex")) == (0, (), {})
    with measure(["mutex"]) as crowd:
        truth = waited(service, *[f"mutex {ROUNDS}"] * 8)
    assert 0.6 * truth <= crowd(service).mutex_wait_seconds <= 1.6 * truth

    begun = time.monotonic()
    with measure(["mutex"]) as locked, measure() as unasked:
        waited(service, "deadlock 1")
        deadlocked = time.monotonic()
        time.sleep(0.3)
        least = 2 * (time.monotonic() - deadlocked)
    most = 2 * (time.monotonic() - begun)
    m = locked(service)
    # On a busy machine they lock a little after the answer.
    assert 0.7 * least <= m.mutex_wait_seconds <= most
    assert sum(o.share for o in m.offenders if o.lock == "sync.Mutex.Lock") > 0.9
    # The runtime counts a wait when it ends.
    m = unasked(service)
    assert (m.mutex_wait_seconds, m.estimates) == (0, ("mutex_wait_seconds",))
    _, answer = meter.end(meter.open(), [service])
    assert [process["mutexes"] for process in answer["services"][str(service.pid)]] == [None]
