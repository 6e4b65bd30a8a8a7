"""Running services, found by what is known about them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import psutil
import pytest

from pytest_netpoll.errors import ServiceError, UsageError
from pytest_netpoll.service import discovery
from tests.waiting import patiently

LISTEN = """
import os, socket, sys, time
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
for _ in range(int(sys.argv[3])):
    if os.fork() == 0: break
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def stranger():
    """stranger(command) starts something that isn't our service, and waits for its first line."""
    with contextlib.ExitStack() as stack:

        def stranger(*command):
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
            )
            stack.callback(os.killpg, process.pid, 9)
            assert process.stdout.readline()
            return process

        yield stranger


@pytest.fixture
def listener(stranger):
    """listener(port, children=0) listens on 127.0.0.1."""
    return lambda port, children=0, host="127.0.0.1": stranger(
        sys.executable, "-S", "-c", LISTEN, host, str(port), str(children)
    )


def test_a_process_is_found_by_the_port_it_listens_on(go_service, listener, port):
    process = listener(port)
    service = go_service(port=port)
    assert (service.pid, service.address) == (process.pid, ("127.0.0.1", port))
    assert service.attached
    service.stop()
    assert process.poll() is None, "it was ended, but is not ours"


def test_a_prefork_server_is_found_as_its_outermost_process(go_service, listener, port):
    process = listener(port, children=3)
    assert go_service(port=port).pid == process.pid


def test_a_process_that_comes_up_later_is_waited_for(go_service, listener, port):
    later = threading.Timer(0.5, listener, [port])
    later.start()
    assert go_service(port=port).port == port
    later.join()  # it starts nothing while the fixture ends what it has started


def test_a_port_that_nobody_listens_on_is_an_error(go_service, port):
    with pytest.raises(ServiceError, match=f"there is no process that listens on TCP port {port}"):
        go_service(port=port, timeout=0.2)


def test_processes_of_others_may_be_the_one_that_is_missing(monkeypatch, port):
    monkeypatch.setattr(discovery, "listeners_of", Mock(side_effect=PermissionError))
    with pytest.raises(ServiceError, match=f"none of your processes listens on TCP port {port} ") as error:
        discovery.find(discovery.by_port(port), 0, None)
    assert error.value.what.endswith(" of other users could not be inspected)")
    assert str(error.value.fix).startswith("start the service first; if another user runs it")


def test_without_ready_nothing_is_awaited(go_service, port):
    started = time.monotonic()
    with pytest.raises(ServiceError):
        go_service(port=port, ready=None, timeout=1000)
    assert time.monotonic() - started < 100


def test_a_process_is_found_by_name_and_by_path(go_service, stranger, tmp_path):
    program = tmp_path / "a-service-with-a-long-name"
    shutil.copy(shutil.which("sleep"), program)
    process = stranger("sh", "-c", f"echo up; exec {program} 60")
    patiently(lambda: psutil.Process(process.pid).exe() == str(program))
    for name in (program.name, str(program)):
        service = go_service(process=name, ready=None)
        assert service.pid == process.pid
        service.stop()


def test_a_name_that_several_processes_have_lists_them(go_service, stranger, tmp_path):
    program = tmp_path / "twins"
    shutil.copy(shutil.which("sleep"), program)
    twins = [stranger("sh", "-c", f"echo up; exec {program} 6{i}") for i in range(2)]
    # The arguments, too: they are empty for a moment while a program is being started.
    patiently(lambda: all(psutil.Process(twin.pid).cmdline()[:1] == [str(program)] for twin in twins))
    with pytest.raises(ServiceError) as raised:
        go_service(process="twins", ready=None)
    assert "there is more than one process 'twins'" in str(raised.value)
    for number, twin in enumerate(twins):
        assert f"pid={twin.pid}" in str(raised.value)
        assert f"{program} 6{number}" in str(raised.value)


def test_a_containers_port_forwarder_is_not_taken_for_the_service(go_service, stranger, tmp_path, port):
    program = tmp_path / "docker-proxy"
    shutil.copy(os.path.realpath(sys.executable), program)
    stranger("env", f"PYTHONHOME={sys.base_prefix}", program, "-S", "-c", LISTEN, "127.0.0.1", str(port), "0")
    with pytest.raises(ServiceError, match="docker-proxy, which forwards the port to a container") as raised:
        go_service(port=port)
    assert "the port that it has inside" in raised.value.fix


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="making a network namespace needs root, unshare and ip",
)
def test_a_port_is_searched_here_first_and_then_in_other_network_namespaces(
    go_service, listener, stranger, port
):
    python = f"{sys.executable} -S -c '{LISTEN}'"
    setup = "ip link set lo up; ip link add veth0 type veth peer name veth1; ip link set veth0 up; "
    setup += "ip addr add 10.77.0.2/24 dev veth0; "
    elsewhere = stranger("unshare", "--net", "sh", "-c", f"{setup} exec {python} 0.0.0.0 {port} 0")
    service = go_service(port=port)
    assert service.pid == elsewhere.pid
    assert service.address == ("10.77.0.2", port), "where it is reached from outside its namespace"
    service.stop()
    here = listener(port)
    assert go_service(port=port).pid == here.pid


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"port": 0}, "port= must be a TCP port"),
        ({"port": "80"}, "port= must be a TCP port"),
        ({"port": 70000}, "port= must be a TCP port"),
        ({"process": ""}, "process= must be the name"),
        ({"process": 7}, "process= must be the name"),
        ({"port": 80, "pid": 7}, "exactly one of package, command, pid, port, process"),
        ({"process": "x", "args": ["-v"]}, "args can't be combined with process"),
    ],
)
def test_arguments_that_make_no_sense_are_usage_errors(go_service, arguments, complaint):
    with pytest.raises(UsageError, match=complaint):
        go_service(**arguments)
