"""Processes in their own namespaces, watched from outside and from inside: the same true numbers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.meter import privilege
from pytest_netpoll.service.listeners import listeners_of
from tests.waiting import undisturbed

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"),
    reason="making namespaces needs root, and unshare and nsenter of util-linux",
)

SERVICES = Path(__file__).parent / "services"
ROOT = Path(__file__).parents[2]


def descendant_named(pid, name):
    return next(p for p in psutil.Process(pid).children(recursive=True) if p.name() == name)


@pytest.fixture
def container(built, newest_go, tmp_path):
    """container("echo", port) is the command of a service with its own pid, mount and network namespaces.

    Its executable exists only in its own mount namespace.
    """
    wall = tmp_path / "wall"
    wall.mkdir()

    def container(name, port):
        program = built(name, str(newest_go.go))
        setup = (
            f"ip link set lo up && mount -t tmpfs tmpfs {wall} && cp {program} {wall}/{name} "
            f"&& exec {wall}/{name} -addr 127.0.0.1:{port}"
        )
        return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "sh", "-c", setup]

    return container


@pytest.fixture
def contained(container, factory):
    """contained("echo"): launched by us in a container; returns the service and its process."""

    def contained(name):
        service = factory(command=container(name, "{port}"), name=name)
        return service, descendant_named(service.pid, name)

    return contained


@pytest.fixture
def foreign_container(container):
    """foreign_container("echo", port): not started by us; returns its process."""
    with contextlib.ExitStack() as stack:

        def foreign_container(name, port):
            outside = stack.enter_context(subprocess.Popen(container(name, port)))
            stack.callback(outside.kill)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with contextlib.suppress(StopIteration, psutil.NoSuchProcess):
                    process = descendant_named(outside.pid, name)
                    if listeners_of(process.pid):
                        return process
                time.sleep(0.02)
            raise AssertionError("it did not start")

        yield foreign_container


@pytest.fixture
def inside():
    """inside(process, PINGS, port=…): runs Python in the network namespace; returns what it prints."""

    def inside(process, source, **values):
        source = source.format(pid=process.pid, **values)
        return subprocess.run(
            ["nsenter", "--net", "--target", str(process.pid), sys.executable, "-c", source],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
            check=True,
            timeout=600,
            capture_output=True,
            text=True,
        ).stdout

    return inside


PINGS = """
import socket
from waiting import fall_asleep

with socket.create_connection(("127.0.0.1", {port}), timeout=20) as c:
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fall_asleep({pid})
    for _ in range({count}):
        c.sendall(b"ping")
        assert c.recv(4) == b"ping"
        fall_asleep({pid})
fall_asleep({pid})
"""


@undisturbed
def test_a_service_in_its_own_namespaces_is_counted_from_outside(contained, measure, inside):
    service, process = contained("echo")
    assert not Path(process.exe()).exists(), "or this proves nothing"
    with measure() as stretch:
        inside(process, PINGS, port=service.port, count=101)
    m = stretch(service)
    # Besides the pings, there are the accept and the end.
    assert m.productive_wakeups == pytest.approx(103, abs=1)
    assert (m.spurious_wakeups, m.lost) == (0, 0)


@pytest.mark.parametrize("known", ["pid", "port", "process"])
def test_a_service_in_its_own_namespaces_is_found_and_watched(
    foreign_container, factory, measure, inside, known
):
    port = factory.free_port()
    process = foreign_container("echo", port)
    service = factory(**{known: {"pid": process.pid, "port": port, "process": process.exe()}[known]})
    assert (service.pid, service.go_version is not None, service.port) == (process.pid, True, port)
    with measure() as stretch:
        inside(process, PINGS, port=service.port, count=101)
    assert stretch(service).productive_wakeups == pytest.approx(103, abs=1)


def test_a_part_of_a_service_is_not_counted_twice(contained, factory, meter):
    whole, process = contained("echo")
    part = factory(pid=process.pid)
    _, of_part = meter.close(meter.open(), [whole, part])
    assert of_part.unmeasured is not None
    assert f"already watched, as a child of process {whole.pid}" in of_part.unmeasured


@undisturbed
def test_the_line_woken_for_nothing_is_found_in_another_mount_namespace(contained, measure, inside):
    service, process = contained("dup")
    with measure() as stretch:
        inside(process, PINGS, port=service.port, count=51)
    m = stretch(service)
    assert m.spurious_wakeups == pytest.approx(51, abs=4)
    frames = [frame for offender in m.offenders for frame in offender.stack]
    assert any(frame.file.endswith("dup/main.go") and frame.line for frame in frames), frames
    assert all(o.fd_type in ("tcp", "closed") for o in m.offenders)


INSIDE = '''
import os, re, socket, sys
import pytest

sys.path.append({root!r})
from tests.waiting import fall_asleep

SERVICES = {services!r}

def pings(service, count):
    with socket.create_connection(service.address, timeout=20) as c:
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fall_asleep(service.pid)
        for _ in range(count + 1):
            c.sendall(b"ping")
            assert c.recv(4) == b"ping"
            fall_asleep(service.pid)
    fall_asleep(service.pid)

@pytest.fixture(scope="session")
def echo(go_service):
    assert os.getpid() < 100, "not in a pid namespace"
    return go_service(command=[{echo!r}, "-addr", "127.0.0.1:{{port}}"])

@pytest.fixture(scope="session")
def prefork(go_service):
    return go_service(command=[{prefork!r}, "-n", "3", "-addr", "127.0.0.1:{{port}}"],
                      ready=re.compile("ready on"))

@pytest.fixture(scope="session")
def late(go_service):
    """A shell forks the service, so that the kernel has to find its number."""
    return go_service(command=["sh", "-c", "sleep 0.3; {echo} -addr 127.0.0.1:{{port}} & wait"])

@pytest.mark.netpoll
def test_echo(echo): pings(echo, 100)

@pytest.mark.netpoll
def test_prefork(prefork):
    for _ in range(4): pings(prefork, 20)

@pytest.mark.netpoll
def test_late(late): pings(late, 60)

@pytest.mark.netpoll
def test_nobody_is_counted_for_another(echo, prefork, late): pings(echo, 30)
'''


@pytest.fixture
def run_inside(tmp_path, built, newest_go):
    """run_inside("--mount-proc"): pytest and its agent in a pid namespace; returns the results by test."""
    programs = {name: built(name, str(newest_go.go)) for name in ("echo", "prefork")}
    (tmp_path / "test_inside.py").write_text(
        INSIDE.format(root=str(ROOT), services=str(SERVICES), **programs)
    )

    def run_inside(*unshare, options=()):
        command = ["unshare", "--pid", "--fork", *unshare, sys.executable, "-m", "pytest", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--netpoll-json=report.json", *options]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        report = json.loads((tmp_path / "report.json").read_text())
        return result, {test["nodeid"].partition("::")[2]: test for test in report["tests"]}

    return run_inside


@pytest.mark.parametrize(
    "netns", [(), ("--net", "--mount", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")]
)
@undisturbed
def test_pytest_and_agent_inside_a_pid_namespace_count_exactly(run_inside, netns):
    result, tests = run_inside("--mount-proc", *netns)
    assert result.returncode == 0, result.stdout

    def wakeups(test, service):
        (found,) = (s for s in tests[test]["services"] if s["name"] == service)
        return found["metrics"]["productive_wakeups"]

    assert wakeups("test_echo", "echo") == pytest.approx(103, abs=2)
    assert wakeups("test_prefork", "prefork") == pytest.approx(4 * 23, abs=4)
    assert wakeups("test_late", "sh") == pytest.approx(63, abs=2)
    assert wakeups("test_nobody_is_counted_for_another", "echo") == pytest.approx(33, abs=2)


def test_a_pid_namespace_that_proc_does_not_show_is_unmeasured():
    """As after `unshare --pid --fork`, without its own /proc."""
    load = json.dumps({"id": 0, "do": "load", "max_processes": 4, "max_fds": 64, "uprobes": 0, "answers": 0})
    command = ["unshare", "--pid", "--fork", "--kill-child", *privilege.command(None, "auto")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        # Its stdin stays open, because it would end with that, whatever it does.
        agent.stdin.write(load + "\n")
        agent.stdin.flush()
        failed = json.loads(agent.stdout.readline())["failed"]
    assert "the agent's pid namespace is not the one that /proc shows" in failed["what"]
    assert failed["fix"] == "mount -t proc proc /proc; or run pytest in the host's (docker run --pid=host)"
