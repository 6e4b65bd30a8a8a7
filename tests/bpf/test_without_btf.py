"""Kernels with less type information, or that accept less: the counts are the same."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from pytest_netpoll.model.diagnosis import findings, unchecked
from tests.waiting import patiently, undisturbed

PINGS = 200
HERE = "127.0.0.9"  # where no other process takes the port in between
RAW_TRACEPOINT, TRACING = "17", "26"  # of enum bpf_prog_type; the latter has typed arguments

BLIND = {"bpf/btf.py": "def kernels(path=None): return Types(_NOTHING)"}
REFUSED = {"bpf/tracing.py": "def attach(program): raise OSError(22, 'Invalid argument')"}


@pytest.mark.parametrize(
    ("lines", "kind", "follows"),
    [pytest.param(BLIND, "socket", False, id="no BTF"), pytest.param(REFUSED, "tcp", True, id="refused")],
)
@undisturbed
def test_wakeups_are_counted_the_same_and_the_line_is_named(
    lacking, launch, connect, spaced_pings, newest_go, lines, kind, follows
):
    meter = lacking(lines)
    server = launch("dup", go=str(newest_go.go))
    meter.watch(server)
    connection = connect(server.address)
    window = meter.open()
    spaced_pings(connection, PINGS)
    [m] = meter.close(window, [server])
    assert m.unmeasured is None
    assert (meter.environment["typed"], meter.environment["follows_children"]) == (False, follows)
    assert m.productive_wakeups == pytest.approx(PINGS, rel=0.01)
    assert 0.45 <= m.spurious <= 0.55
    # Without a known cause there is no second reader.
    found, missed = {f.rule.code for f in findings(m)}, {u.rule.code for u in unchecked(m)}
    assert ("NP101" in found, "NP101" in missed) == (follows, not follows)
    for offender in m.offenders:
        assert offender.fd_type == kind
        assert offender.cause == ("registered twice" if follows else None)
        assert offender.stack[0].function == "services/kit.Echo"


OLDER = {
    "bpf/btf.py": """
def hidden(self, name, typedef=Answers.typedef):
    return None if "data_ready" in name else typedef(self, name)
Answers.typedef = hidden
"""
}
OTHER = {"bpf/btf.py": 'INBOX_MEMBERS["SOCK_PROTOCOL_OFFSET"] = ("sock", "no_such_member")'}
UNTAKEN = {
    "bpf/image.py": """
def refuse(self, name, where, attach=Image.attach):
    if where == b"sk_data_ready":
        raise OSError(22, "Invalid argument")
    return attach(self, name, where)
def refuse_typed(self, name, tracepoint, load_typed=Image.load_typed):
    if name == b"data_ready":
        raise OSError(22, "Invalid argument")
    return load_typed(self, name, tracepoint)
Image.attach, Image.load_typed = refuse, refuse_typed
"""
}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        pytest.param(BLIND, "BTF", id="no BTF"),
        pytest.param(OLDER, "Linux 6.3", id="no tracepoint"),
        pytest.param(OTHER, "lacks a member of its sockets", id="another kernel"),
        pytest.param(UNTAKEN, "rejects", id="refused"),
    ],
)
def test_without_arrival_times_there_are_latencies_but_no_responses(
    lacking, launch, connect, spaced_pings, newest_go, lines, why
):
    meter = lacking(lines, response="on")
    server = launch("echo", go=str(newest_go.go))
    meter.watch(server)
    connection = connect(server.address)
    window = meter.open()
    spaced_pings(connection, 20)
    [m] = meter.close(window, [server])
    assert m.unmeasured is None
    assert m.latency_p50 is not None
    for name in ("queue_delay_p50", "poll_delay_p99", "handling_max", "response_p90"):
        assert getattr(m, name) is None
        assert why in m.absent[name]
    assert (m.snapshot.delays, m.slow_answers) == ({}, ())


UNWALKED = {
    "bpf/image.py": """
def refuse_iterator(self, *_):
    raise OSError(1, "Operation not permitted")
Image.load_iterator = refuse_iterator
"""
}


def test_times_on_sockets_that_cannot_be_looked_up_are_not_reported(
    lacking, launch, connect, spaced_pings, newest_go
):
    meter = lacking(UNWALKED, response="on")
    older = launch("echo", go=str(newest_go.go))
    meter.start()
    connection = connect(older.address)
    spaced_pings(connection, 2)
    meter.watch(older)
    window = meter.open()
    spaced_pings(connection, 20)
    [m] = meter.close(window, [older])
    assert m.unmeasured is None
    assert m.wakeups >= 20
    for name in ("queue_delay_p50", "handling_max", "response_p90"):
        assert getattr(m, name) is None
        assert m.absent[name].what == "the service has sockets from before it was watched"
    assert (m.snapshot.delays, m.slow_answers) == ({}, ())


def test_a_rejected_program_leaves_no_maps_in_the_kernel(lacking):
    meter = lacking(REFUSED)
    meter.close(meter.open(), [])
    assert meter.environment["typed"] is False
    kinds = {
        kind
        for path in Path(f"/proc/{meter.agent_pid}/fdinfo").iterdir()
        for kind in re.findall(r"^prog_type:\s*(\d+)", path.read_text(), re.M)
    }
    assert RAW_TRACEPOINT in kinds, "the one in place of it"
    assert TRACING not in kinds


@undisturbed
def test_a_program_exec_ed_in_place_of_another_is_measured_as_itself(
    lacking, launch, built, factory, connect, spaced_pings, newest_go
):
    meter = lacking(BLIND)
    port = factory.free_port()
    # Its epoll instance has another number.
    then = f"exec 3</dev/null; exec {built('dup', str(newest_go.go))} -addr {HERE}:{port}"
    server = launch("reexec", "-then", then, go=str(newest_go.go))
    meter.watch(server)
    os.kill(server.pid, signal.SIGUSR1)
    patiently(lambda: listens(port))
    connection = connect((HERE, port))
    window = meter.open()
    spaced_pings(connection, PINGS)
    [m] = meter.close(window, [server])
    assert m.unmeasured is None
    assert m.productive_wakeups == pytest.approx(PINGS, rel=0.01)
    assert m.offenders[0].stack[0].function == "services/kit.Echo"


def test_children_that_the_kernel_does_not_report_make_the_service_unmeasured(
    lacking, factory, built, connect, spaced_pings, newest_go, tmp_path
):
    meter = lacking(BLIND)
    fifo, port, echo = tmp_path / "go", factory.free_port(), built("echo", str(newest_go.go))
    os.mkfifo(fifo)
    first, second = (f"{echo} -addr {HERE}:{where} &" for where in ("{port}", port))
    # The other one has no poller; a service may start as many of those as it likes.
    script = f"{first} read go <{fifo}; sleep 100 & {second} wait; wait; wait"
    server = factory(command=["/bin/sh", "-c", script])
    meter.watch(server)
    window = meter.open()
    fifo.write_text("go\n")
    patiently(lambda: listens(port))
    connection = connect((HERE, port))
    [m] = meter.close(window, [server])
    assert m.unmeasured is not None
    assert m.unmeasured.startswith("1 not watched: child processes that this kernel doesn't report")
    window = meter.open()
    spaced_pings(connection, PINGS)
    [m] = meter.close(window, [server])
    assert m.unmeasured is None
    assert m.productive_wakeups == pytest.approx(PINGS, rel=0.01)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection((HERE, port), timeout=5):
        return True
    return False


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel has no BTF")
def test_type_information_is_used_if_the_kernel_has_it(meter):
    meter.close(meter.open(), [])
    assert meter.environment["typed"] is True
