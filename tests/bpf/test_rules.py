"""Each rule is proven by a service with that fault, not by one with the same totals for another reason."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.model.diagnosis import findings, unchecked
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.rules.loops import LEAST_BURNT, LEAST_FUTILE, LEAST_READS, READS_PER_WAKEUP
from pytest_netpoll.model.rules.scheduling import LEAST_HELD
from pytest_netpoll.model.rules.timers import TIMER_RATE
from tests.bpf.test_diagnosis import ONE_CPU, ask_all, connected
from tests.cpu_time import before_others, burners, until_fed
from tests.waiting import attempts, fall_asleep, suspend, undisturbed

SERVER = Path(__file__).parents[2] / "example_project" / "server"
# The evidence that forbidden rules ask for.
EVIDENCE = resolve([((), {"forbid": "all"})], "t").offences
# What a busy machine, or the quota of its container, may add to what a service breaks. There, too, a loop may
# get too little CPU, and readers may park too late, so that some need several attempts.
MACHINE = {"NP403", "NP404"}


@pytest.fixture
def broken(meter, factory):
    """broken(service, act): the measurement while act() runs, and {code: Finding}."""

    def broken(service, act):
        window = meter.open(offences=EVIDENCE)
        act()
        [m] = [m for m in meter.close(window, factory.services) if m.service == service.name]
        assert m.unmeasured is None
        found = {f.rule.code: f for f in findings(m) if f.rule.code not in MACHINE}
        for code in found:
            assert found[code].proof.evidence, code
            assert found[code].line or code == "NP501", code
        return m, found

    return broken


@pytest.fixture
def causes(launch, newest_go):
    """causes("gc"): services/causes with that fault."""
    return lambda do, **options: launch("causes", "-do", do, go=str(newest_go.go), **options)


@pytest.fixture
def told(causes, commands, broken):
    """told("gc", 500, "NP407", cpu=0.5): the measurement while it runs for 500 ms, or more often if it had
    less than that share of a CPU, and the rule that must be proven, in a later attempt if necessary; no other
    rule may be. enough: what else the measurement needs.
    """

    def told(do, n, code=None, cpu=0.0, enough=lambda _: True):
        service = causes(do)
        command = commands(service)
        for _ in attempts():
            m, found = broken(service, lambda: until_fed(service.pid, cpu, lambda: command(n)))
            assert found.keys() <= {code}, [str(finding) for finding in found.values()]
            if not code or (found and enough(m)):
                break
        assert found.keys() == ({code} if code else set())
        assert enough(m)
        return m, found.get(code)

    return told


def function(finding):
    return finding.proof.stack[0].function


def udp_pings(service, count=50):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        for _ in range(count):
            client.sendto(b"ping", service.address)
            assert client.recv(64) == b"ping"
            fall_asleep(service.pid)  # its reader has parked again


@undisturbed
def test_unread_timestamps_are_not_a_second_reader(causes, broken):
    service, read = causes("errqueue"), causes("errread")
    # Who reads them is woken all the same, unless nobody waits on that socket.
    for each in (read, service):
        for _ in attempts():
            m, found = broken(each, lambda each=each: udp_pings(each))
            assert found.keys() <= {"NP105"}
            if found and m.spurious_wakeups >= 20:  # else the reader came too late to be woken
                break
        assert found.keys() == {"NP105"}
    assert m.spurious_wakeups >= 20
    assert found["NP105"].proof.count == m.spurious_wakeups
    assert m.stuck_goroutines == 0  # messages in the error queue aren't data to read
    assert function(found["NP105"]).startswith("main.echo.")
    for healthy in (causes("plain"), causes("errapart")):
        assert broken(healthy, lambda healthy=healthy: udp_pings(healthy))[1] == {}


def damaged(service, count):
    """Datagrams with a wrong checksum, which root can send. The kernel checks short ones at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        for _ in range(count):
            fall_asleep(service.pid)  # its reader has parked
            raw.sendto(struct.pack("!HHHH", 9, service.port, 208, 0xBAD) + bytes(200), ("127.0.0.1", 0))
        fall_asleep(service.pid)


@undisturbed
def test_damaged_datagrams_are_not_a_second_reader(causes, broken):
    service = causes("plain")
    m, found = broken(service, lambda: damaged(service, 50))
    assert m.spurious_wakeups >= 40
    assert found.keys() == {"NP107"}
    assert found["NP107"].proof.count == m.spurious_wakeups <= m.snapshot.dropped_datagrams
    assert function(found["NP107"]).startswith("main.echo.")


@undisturbed
def test_damaged_datagrams_are_known_of_a_service_that_starts_meanwhile(causes, meter):
    window = meter.open(offences=EVIDENCE)
    service = causes("plain")
    damaged(service, 20)
    (m,) = meter.close(window, [service])
    assert {f.rule.code for f in findings(m)} - MACHINE == {"NP107"}
    assert m.snapshot.dropped_datagrams >= 20


@undisturbed
def test_senders_that_wait_for_room_are_not_a_second_reader(told):
    m, finding = told("unixgram", 300, "NP104", enough=lambda m: m.spurious_wakeups > 100)
    assert finding.proof.count == m.spurious_wakeups
    assert function(finding).startswith("main.unixgram.")


@undisturbed
def test_a_refusal_that_another_call_got_is_not_a_second_reader(told):
    m, finding = told("refused", 200, "NP106", enough=lambda m: m.spurious_wakeups >= 50)
    assert finding.proof.count == m.spurious_wakeups
    assert "ECONNREFUSED" in finding.proof.text


@pytest.mark.parametrize(
    ("kind", "code", "outcome"),
    [
        ("eagain", "NP201", "EAGAIN"),
        ("eof", "NP202", "end of file"),
        ("error", "NP203", "EISDIR"),
        # As many of these calls, but with data or other outcomes in between, or on other descriptors.
        ("check", None, None),
        ("alternate", None, None),
        ("reopen", None, None),
    ],
)
@undisturbed
def test_each_loop_that_spins_on_a_call_breaks_its_rule(
    launch, commands, broken, newest_go, kind, code, outcome
):
    service = launch("io", "-do", kind, go=str(newest_go.go))
    command = commands(service)
    for _ in attempts():
        m, found = broken(service, lambda: command(3000))
        assert m.io_calls >= 3000
        assert found.keys() <= {code}
        if found or not code:
            break
    assert found.keys() == ({code} if code else set())
    if code:
        assert outcome in found[code].proof.text
        assert function(found[code]) == "main.transfer"


@pytest.mark.parametrize("kind", ["eof", "error"])
@undisturbed
def test_a_call_that_fails_for_each_request_is_no_loop(launch, broken, newest_go, kind):
    service = launch("io", "-do", kind, go=str(newest_go.go))
    for _ in attempts():
        with before_others(service.pid, os.getpid()):
            m, found = broken(service, lambda: pings(service, 500, 0, b"1\n"))
        assert found == {}
        if m.futile_calls >= LEAST_FUTILE:  # else there was too much time between requests
            break
    assert m.futile_calls >= LEAST_FUTILE


@undisturbed
def test_a_busy_loop_is_distinguished_from_a_computation(told):
    _, finding = told("select", 300, "NP204", cpu=0.3)
    assert function(finding) in ("main.look", "main.main.func2")  # which the compiler may inline
    told("compute", 300, cpu=0.3)


@undisturbed
def test_a_computation_that_checks_now_and_then_is_no_loop(causes, commands, broken):
    service = causes("cancel")
    command = commands(service)
    for _ in attempts():
        m, found = broken(service, lambda: until_fed(service.pid, 0.6, lambda: command(200)))
        assert found == {}
        if m.futile_calls >= 10 * LEAST_FUTILE:
            break
    assert m.futile_calls >= 10 * LEAST_FUTILE


@pytest.mark.parametrize(("do", "place"), [("hub", "main.broadcast"), ("pipeline", "main.drain")])
@undisturbed
def test_checks_that_find_something_are_no_busy_loop(causes, commands, broken, do, place):
    service = causes(do)
    command = commands(service)
    for _ in attempts():
        m, found = broken(service, lambda: until_fed(service.pid, 0.3, lambda: command(300)))
        assert found == {}
        used = sum(
            o.share for o in m.offenders if o.offence == "cpu" and o.stack and o.stack[0].function == place
        )
        if used * m.cpu_seconds >= LEAST_BURNT * m.window_seconds:
            break
    assert used * m.cpu_seconds >= LEAST_BURNT * m.window_seconds


@undisturbed
def test_a_stream_that_timers_send_is_no_churn(causes, commands, broken):
    service = causes("pacer")
    command = commands(service)
    for _ in attempts():
        m, found = broken(service, lambda: until_fed(service.pid, 0, lambda: command(500)))
        assert found == {}
        ended = m.timeout_polls + m.break_polls
        if ended >= TIMER_RATE * m.window_seconds:
            break
    assert ended >= TIMER_RATE * m.window_seconds


@undisturbed
def test_garbage_collection_is_distinguished_from_the_programs_own_work(told):
    _, finding = told("gc", 300, "NP407", cpu=0.5)
    assert function(finding) == "main.allocate"


@undisturbed
def test_small_reads_are_distinguished_from_many_reads(factory, causes, broken):
    args = ["-addr", "127.0.0.1:{port}", "-fault", "unbuffered"]
    service = factory(str(SERVER), args=args, name="unbuffered")

    def send():
        with socket.create_connection(service.address, timeout=20) as connection:
            for _ in range(20):
                connection.sendall(b"x" * 99 + b"\n")
                assert connection.recv(100)
                time.sleep(0.002)

    _, found = broken(service, send)
    assert found.keys() == {"NP205"}
    assert found["NP205"].line.startswith("server/fault_unbuffered.go:")
    large = causes("bulk")

    def stream():
        with socket.create_connection(large.address, timeout=20) as connection:
            connection.sendall(b"4096\n" + bytes(4096 << 10))
            assert connection.recv(4) == b"done"

    m, found = broken(large, stream)
    assert m.io_calls_per_wakeup > 10
    assert found == {}


@undisturbed
def test_small_messages_that_come_while_it_is_busy_are_no_small_reads(causes, broken):
    service = causes("late")
    count = 5 * LEAST_READS  # the reads are sampled
    m, found = broken(service, lambda: pings(service, count, 0))
    assert found == {}
    assert READS_PER_WAKEUP * m.wakeups <= count
    reads = [o for o in m.offenders if o.offence == "io" and o.direction == "read" and o.fd_type == "tcp"]
    assert sum(o.count for o in reads) >= LEAST_READS
    assert sum(o.filled for o in reads) == 0


def visit(service, count):
    """One connection after the other, each for a command."""
    for _ in range(count):
        ask(service, 1)


def few_of_many(service, visits=8):
    """Then only one acceptor is left, and 2000 messages wake readers: each has had the time to park again."""
    visit(service, visits)
    ask(service, 1, n=1)
    with connected(service, 50) as clients:
        for _ in range(40):
            ask_all(clients, b"0\n", b"done\n")


@undisturbed
def test_two_acceptors_of_one_listener_are_told_from_two_that_met_a_few_times(causes, broken):
    for act, expected in ((lambda s: visit(s, 40), {"NP102"}), (few_of_many, set())):
        for _ in attempts():
            service = causes("twice")
            m, found = broken(service, lambda s=service, act=act: act(s))
            assert found.keys() <= expected
            service.stop()
            # On a busy machine the second may come too late to be woken.
            if m.spurious_wakeups >= 5:
                break
        assert m.spurious_wakeups >= 5
        assert found.keys() == expected
        if found:
            assert function(found["NP102"]) in ("main.patient.Accept", "services/kit.Serve")


def pings(service, count=60, pause=0.002, message=b"0\n"):
    with socket.create_connection(service.address, timeout=20) as connection:
        for _ in range(count):
            connection.sendall(message)
            assert connection.recv(16) == b"done\n"
            time.sleep(pause)  # their reader has parked again


@undisturbed
def test_idle_connections_that_are_closed_are_no_churn(causes, commands, broken):
    service = causes("evict")
    command = commands(service)
    command(200)
    m, found = broken(service, lambda: command(0))
    assert m.deadline_wakeups > 0
    assert found == {}


@pytest.mark.parametrize(("do", "n"), [("packets", 400), ("free", 1)])
@undisturbed
def test_what_looks_like_many_small_reads_or_gc_pressure_is_neither(told, do, n):
    told(do, n)


@undisturbed
def test_a_loop_that_never_waits_has_no_stale_readiness(causes, broken):
    service = causes("nonblock")
    for _ in attempts():
        _, found = broken(service, lambda: pings(service, 20, 0.005))
        assert found.keys() <= {"NP201"}
        if found:
            break
    assert function(found["NP201"]).startswith("main.nonblock")


@undisturbed
def test_polls_by_the_monitor_alone_are_diagnosed(causes, broken):
    service = causes("yield", env={"GOMAXPROCS": "1"})
    for _ in attempts():
        m, found = broken(service, lambda: until_fed(service.pid, 0.8, lambda: pings(service)))
        # On a busy machine its goroutines are late, too, but the service isn't the cause.
        assert found.keys() <= {"NP402"}
        if found:
            break
    assert function(found["NP402"]).startswith("main.crowd.")
    assert m.blocking_polls <= m.polls / 20


@undisturbed
def test_more_ps_than_cpus_are_distinguished_from_as_much_work_on_one(factory, built, broken, newest_go):
    causes = built("causes", str(newest_go.go))
    on_cpu = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    # In the kernel, as many threads wait for the CPU, whatever GOMAXPROCS is.
    for do, ps, expected in (("spin", 8, {"NP406"}), ("spin", 1, set()), ("kernel", 8, set())):
        command = [*on_cpu, causes, "-addr", "127.0.0.1:{port}", "-do", do]
        service = factory(command=command, name=do, env={"GOMAXPROCS": str(ps)})
        for _ in attempts():
            m, found = broken(service, lambda pid=service.pid: until_fed(pid, 0.4, lambda: time.sleep(0.3)))
            assert found.keys() <= expected
            if found.keys() == expected:
                break
        assert found.keys() == expected
        assert (m.gomaxprocs, m.cpus) == (ps, 1)
        service.stop()
    assert m.run_delay_seconds + m.cpu_seconds > 4 * m.window_seconds


@undisturbed
def test_more_ps_than_cpus_are_proven_behind_a_wrapper_after_the_test_has_stopped_it(
    factory, built, meter, newest_go
):
    """The shell may use all CPUs."""
    causes = f"{built('causes', str(newest_go.go))} -addr 127.0.0.1:{{port}} -do spin"
    command = ["sh", "-c", f"{' '.join(ONE_CPU)} {causes}; true"]
    for _ in attempts():
        service = factory(command=command, name="spin", env={"GOMAXPROCS": "8"})
        [child] = psutil.Process(service.pid).children()
        window = meter.open(offences=EVIDENCE)
        until_fed(child.pid, 0.4, lambda: time.sleep(0.3))
        service.stop()
        (m,) = meter.close(window, [service])
        assert (m.gomaxprocs, m.cpus) == (8, 1)
        assert not {missing.rule.code for missing in unchecked(m)} & {"NP402", "NP406"}
        if proven := {f.rule.code: f for f in findings(m)}.get("NP406"):
            break
    assert "GOMAXPROCS is 8 on 1 CPU:" in proven.proof.text
    assert proven.line.startswith("causes/main.go:")


def bursts(service):
    """Sends eight messages at a time, which take a fifth of a CPU."""
    with connected(service, 8) as clients:
        for _ in range(40):
            ask_all(clients, b"ping", b"ping")
            time.sleep(0.005)


def steadily(service):
    """Sends messages that take a third of a CPU, without waiting for answers."""
    with connected(service, 5) as clients:
        for client in clients:
            client.setblocking(False)
        began = time.monotonic()
        for i in range(60):
            for client in clients:
                for pass_on in (lambda c: c.send(b"ping"), lambda c: c.recv(4096)):
                    with contextlib.suppress(BlockingIOError):
                        pass_on(client)
            time.sleep(max(0.0, began + (i + 1) * 0.01 - time.monotonic()))


@undisturbed
def test_more_messages_than_it_can_handle_are_no_starvation(launch, broken):
    service = launch("echo", "-work", "200", env={"GOMAXPROCS": "1"})
    for _ in attempts():
        with connected(service, 200) as clients:
            m, found = broken(service, lambda c=clients: [ask_all(c, b"ping", b"ping") for _ in range(5)])
        assert found == {}
        if m.latency_p50 > 5e6:  # else the clients had too little CPU to send so much at once
            break
    assert m.latency_p50 > 5e6


@undisturbed
def test_readers_that_wait_before_they_read_are_not_starved(causes, broken):
    service = causes("batch", env={"GOMAXPROCS": "2"})
    m, found = broken(service, lambda: until_fed(service.pid, 0.6, lambda: pings(service)))
    assert found == {}
    assert m.latency_p50 > 8e6


@pytest.mark.parametrize(("ps", "work", "others", "act"), [(8, 150, 1, bursts), (1, 600, 6, steadily)])
@undisturbed
def test_a_service_that_others_keep_from_running_has_enough_ps_and_not_too_many(
    factory, built, broken, ps, work, others, act
):
    """Many threads wait for the CPU, or the service always has a message to handle: because of others."""
    command = [*ONE_CPU, built("echo"), "-addr", "127.0.0.1:{port}", "-work", str(work)]
    service = factory(command=command, name="echo", env={"GOMAXPROCS": str(ps)})
    with burners(others, ONE_CPU):
        for number in attempts():
            m, found = broken(service, lambda: act(service))
            assert found == {}
            if number >= 2 and m.run_delay_seconds > 2 * m.cpu_seconds:
                break
    assert m.run_delay_seconds > 2 * m.cpu_seconds


def ask(service, count, n=0, at_once=False):
    """Sends commands; each answer may come in two pieces. at_once: acknowledges each piece at once. Returns
    how many s each answer took.
    """
    took = []
    with socket.create_connection(service.address, timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.monotonic()
            connection.sendall(b"%d\n" % n)
            answer = b""
            while not answer.endswith(b"done\n"):
                answer += connection.recv(64)
                if at_once:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            took.append(time.monotonic() - began)
            time.sleep(0.001)  # their reader has parked again
    return took


@pytest.mark.parametrize(
    ("do", "expected"), [("locked", {"NP405"}), ("worker", {"NP405"}), ("plain", set()), ("beside", set())]
)
@undisturbed
def test_goroutines_locked_to_threads_are_distinguished_from_others(causes, broken, do, expected):
    service = causes(do)
    for _ in attempts():
        # Few enough to be all recorded; more are sampled.
        m, found = broken(service, lambda: ask(service, 100))
        assert found.keys() <= expected
        if m.wakeups >= 50 and found.keys() == expected:  # else they were too few per second
            break
    assert m.wakeups >= 50
    assert found.keys() == expected
    if found:
        assert 50 <= found["NP405"].proof.count <= 125
        assert found["NP405"].line.startswith("causes/main.go:" if do == "worker" else "kit/kit.go:")
        assert all(o.locked for o in found["NP405"].proof.evidence)


@undisturbed
def test_answers_that_nagle_holds_back_are_distinguished_from_slow_ones(causes, broken):
    nagle, nodelay = causes("nagle"), causes("nodelay")
    for _ in attempts():  # a client that takes long to ask again acknowledges at once
        m, found = broken(nagle, lambda: ask(nagle, 20))
        assert found.keys() <= {"NP408"}
        if found:
            break
    assert LEAST_HELD <= found["NP408"].proof.count <= 20
    assert found["NP408"].line.startswith("kit/kit.go:")
    assert 20e6 < sum(o.held_ns or 0 for o in m.offenders) / found["NP408"].proof.count < 200e6
    # Just as late, because the service is slow; as many pieces, for a client that acknowledges each at once.
    slow, found = broken(nodelay, lambda: ask(nodelay, 20, round(1000 * m.window_seconds / 20)))
    assert found == {}
    assert slow.window_seconds > m.window_seconds / 2
    for _ in attempts():
        took = []
        with before_others(nagle.pid, os.getpid()):
            _, found = broken(nagle, lambda took=took: took.extend(ask(nagle, 20, at_once=True)))
        if sum(s >= 0.02 for s in took) < LEAST_HELD:  # else it was too late to be at once
            break
    assert sum(s >= 0.02 for s in took) < LEAST_HELD
    assert found == {}


@undisturbed
def test_a_write_held_back_in_one_window_is_not_reported_in_the_next(causes, broken):
    nagle = causes("nagle")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(nagle.address, timeout=20)) for _ in range(8)]

        def ask_each():
            for client in clients:
                client.sendall(b"0\n")
            for client in clients:
                answer = b""
                while not answer.endswith(b"done\n"):
                    answer += client.recv(64)

        for _ in range(20):
            ask_each()
        fall_asleep(nagle.pid)  # its readers are parked
        # Only the next read shows how long the last answer was held back.
        m, _ = broken(nagle, ask_each)
        assert m.wakeups >= len(clients)
        m, _ = broken(nagle, ask_each)
    assert [o for o in m.offenders if o.offence == "held"] == []


@pytest.fixture
def start_keep(launch, newest_go):
    return lambda: launch("keep", go=str(newest_go.go))


@undisturbed
def test_leaks_of_gone_clients_are_distinguished_from_clients_that_stay(start_keep, client, broken):
    keep = start_keep()
    stay = []

    def come(how, leave):
        for connection in [client(keep, how) for _ in range(4)]:
            leave(connection)
            stay.append(connection)
        fall_asleep(keep.pid)

    def half(connection):
        connection.shutdown(socket.SHUT_WR)

    def come_slowly():
        for _ in range(4):
            with socket.create_connection(keep.address, timeout=20) as connection:
                fall_asleep(keep.pid)  # its reader is parked
                connection.sendall(b"channel\n")
                assert connection.recv(20) == b"channel\n"
        fall_asleep(keep.pid)

    _, found = broken(keep, come_slowly)
    assert found.keys() == {"NP501"}
    assert found["NP501"].proof.count == 4
    assert function(found["NP501"]) == "main.serve"  # where they were read
    assert f"connections to 127.0.0.1:{keep.port} (peers 127.0.0.1:" in found["NP501"].proof.text
    # Connections that the service closes, too; clients that stay, or have closed only one half; and dialed
    # connections.
    m, found = broken(keep, lambda: come("idle", socket.socket.close))
    assert (m.abandoned_descriptors, found) == (0, {})
    m, found = broken(keep, lambda: come("channel", lambda _: None))
    assert (m.abandoned_descriptors, found) == (0, {})
    m, found = broken(keep, lambda: come("channel", half))
    assert (m.abandoned_descriptors, found) == (4, {})
    m, found = broken(keep, lambda: come("upstream", lambda _: None))
    assert (m.parked_growth >= 4, found) == (True, {})


@undisturbed
def test_a_reader_that_ignores_data_is_distinguished_from_one_with_too_little(start_keep, client, broken):
    keep = start_keep()
    stuck, low, peek = client(keep, "stuck"), client(keep, "low 100"), client(keep, "peek 10")
    m, found = broken(keep, lambda: low.sendall(b"hello"))
    assert (m.stuck_goroutines, found) == (0, {})
    # Which of them should have read is unknown.
    _, found = broken(keep, lambda: peek.sendall(b"hello"))
    assert found.keys() == {"NP502"}
    assert function(found["NP502"]) == "main.peek"
    assert "only looks (MSG_PEEK) for more than there is" in found["NP502"].proof.text
    m, found = broken(keep, lambda: peek.sendall(b"world"))
    assert (m.stuck_goroutines, found) == (0, {})
    _, found = broken(keep, lambda: stuck.sendall(b"hello"))
    assert found.keys() == {"NP502"}
    assert function(found["NP502"]) == "main.ignore"


@undisturbed
def test_a_service_that_could_not_read_yet_gets_no_diagnosis(start_keep, client, broken):
    keep = start_keep()
    gone = [client(keep, "idle") for _ in range(4)]
    reader = client(keep, "idle")

    def stop():
        fall_asleep(keep.pid)  # its readers are parked
        suspend(keep.pid)
        for connection in gone:
            connection.close()
        reader.sendall(b"hello")

    try:
        m, found = broken(keep, stop)
    finally:
        os.kill(keep.pid, signal.SIGCONT)
    assert found == {}
    assert {rule.rule.code for rule in unchecked(m)} >= {"NP501", "NP502"}
