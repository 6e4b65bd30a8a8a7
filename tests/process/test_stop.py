"""A stopped service ends with everything that it started, and so do the services of a killed pytest."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_netpoll.errors import ServiceError
from pytest_netpoll.service import guardian as guard
from pytest_netpoll.service import service
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from tests.waiting import fall_asleep, patiently

Nasty = Callable[..., list[str]]
Ends = Callable[..., bool]

CHILD = re.compile(r"child (\d+)\n")
# Both, in any order: a child may print before its parent reports it.
BOTH_UP = re.compile(r"(?s)(?=.*child \d+\n).*UP=")


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "STOP_GRACE", 0.3)


def _child_of(server: Service) -> int:
    match = CHILD.search(server.log)
    assert match is not None
    return int(match[1])


def test_a_service_is_asked_to_end_before_it_is_killed(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("end_cleanly_on_sigterm", "listen:{port}", "sleep"))
    server.stop()
    assert server.log == "clean\n"
    assert server.returncode == 7


@pytest.mark.usefixtures("short_grace")
def test_a_service_that_ignores_sigterm_is_killed(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("ignore_sigterm", "listen:{port}", "sleep"))
    server.stop()
    assert server.returncode == -signal.SIGKILL


def test_stopping_leaves_no_zombie_and_can_be_repeated(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("sleep"), ready=None)
    server.stop()
    assert not psutil.pid_exists(server.pid)
    assert not server.running
    server.stop()
    with pytest.raises(ServiceError, match="it was stopped"):
        server.check_alive()


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("kind", ["fork_child", "fork_child_with_own_session"])
def test_children_that_ignore_sigterm_are_ended_too(
    go_service: ServiceFactory, nasty: Nasty, ends: Ends, kind: str
) -> None:
    command = nasty(f"{kind}:ignore_sigterm+environment:UP+sleep", "sleep")
    server = go_service(command=command, ready=BOTH_UP)
    child = _child_of(server)
    server.stop()
    assert ends(child, seconds=0.5)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("kind", ["fork_child", "fork_child_with_own_session"])
def test_stop_ends_children_of_a_crashed_service_and_no_others(
    go_service: ServiceFactory, nasty: Nasty, ends: Ends, kind: str
) -> None:
    command = nasty(f"{kind}:ignore_sigterm+environment:UP+sleep", "sleep")
    servers = [go_service(command=command, ready=BOTH_UP) for _ in range(2)]
    children = [_child_of(server) for server in servers]
    for server in servers:
        os.kill(server.pid, signal.SIGKILL)
        assert ends(server.pid)
    for server, child in zip(servers, children, strict=True):
        assert psutil.pid_exists(child)
        server.stop()
        assert ends(child, seconds=0.5)


@pytest.mark.usefixtures("short_grace")
def test_a_command_that_becomes_a_daemon_is_an_error_and_leaves_nothing(
    go_service: ServiceFactory, nasty: Nasty, ends: Ends
) -> None:
    command = nasty("fork_child_with_own_session:ignore_sigterm+sleep")
    with pytest.raises(ServiceError, match="ended before it was ready: exit status 0") as raised:
        go_service(command=command)
    found = re.search(r"child (\d+)", str(raised.value))
    assert found is not None, raised.value
    assert ends(int(found[1]), seconds=0.5)


def test_a_reused_pid_is_left_alone(nasty: Nasty) -> None:
    with subprocess.Popen(nasty("sleep"), start_new_session=True) as stranger:
        found = guard.stat(stranger.pid)
        assert found is not None
        assert guard.end({stranger.pid: found.start - 1}, 0.1) == set()
        assert stranger.poll() is None
        assert guard.end({stranger.pid: found.start}, 5) == set()


def test_all_are_stopped_even_if_one_refuses(
    go_service: ServiceFactory, nasty: Nasty, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (go_service(command=nasty("sleep"), ready=None) for _ in range(2))
    end = guard.end
    monkeypatch.setattr(guard, "end", lambda leaders, *rest: end(leaders, *rest) or {*leaders} - {first.pid})
    with pytest.raises(ServiceError, match=f"SIGKILL did not end {second.pid}"):
        go_service.stop_all()
    assert not first.running
    assert not second.running  # asking reaps it; nothing else would, and other tests look at our children


# The rest is about a pytest that dies: a process that launches a service and waits to be killed.

Launched = tuple[subprocess.Popen[str], list[int]]  # the pids of service, child and guardian
Launch = Callable[..., Launched]

LAUNCHER = """
import os, re, sys, time
from pathlib import Path
from typing import Any
from pytest_netpoll.service.factory import ServiceFactory

factory = ServiceFactory(rootdir=Path.cwd(), cache_dir=Path.cwd())
server = factory(command=sys.argv[3:], ready=re.compile(sys.argv[2]))
child = re.search(r"child (\\d+)", server.log)[1]
if sys.argv[1] == "crash":
    os.kill(server.pid, 9)
if sys.argv[1] == "fork" and os.fork() == 0:
    os.close(1)
    time.sleep(3600)
print(server.pid, child, factory.guardian.process.pid, flush=True)
if sys.argv[1] != "exit":
    time.sleep(3600)
"""


@pytest.fixture
def launcher(nasty: Nasty, tmp_path: Path) -> Iterator[Launch]:
    started = []

    def launch(mode: str, kind: str) -> Launched:
        command = nasty("ignore_sigterm", f"{kind}:ignore_sigterm+environment:UP+sleep", "sleep")
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, mode, BOTH_UP.pattern, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(service.__file__).parents[2])},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        return process, pids

    yield launch
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its forks too
        process.communicate()


@pytest.mark.parametrize("kind", ["fork_child", "fork_child_with_own_session"])
@pytest.mark.parametrize("mode", ["wait", "crash"])
def test_nothing_survives_a_killed_pytest(launcher: Launch, ends: Ends, mode: str, kind: str) -> None:
    process, (server, *others) = launcher(mode, kind)
    assert ends(server) if mode == "crash" else psutil.pid_exists(server)
    assert all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in others)
    process.kill()
    assert ends(server, *others)


def test_nothing_survives_a_killed_pytest_with_a_killed_guardian(launcher: Launch, ends: Ends) -> None:
    process, (server, child, guardian) = launcher("wait", "fork_child_with_own_session")
    second = [process.pid for process in psutil.Process(guardian).children()]
    fall_asleep(guardian, *second)  # it has passed on what it knows
    os.kill(guardian, signal.SIGKILL)
    process.kill()
    assert ends(server, child, *second)


def test_a_guardian_works_without_its_standby(launcher: Launch, ends: Ends) -> None:
    process, (server, child, guardian) = launcher("wait", "fork_child")
    [second] = psutil.Process(guardian).children()
    second.kill()
    process.kill()
    assert ends(server, child, guardian)


def test_nothing_survives_a_pytest_that_forgot_to_stop(launcher: Launch, ends: Ends) -> None:
    process, pids = launcher("exit", "fork_child")
    assert process.wait(60) == 0
    assert ends(*pids)


def test_a_fork_of_pytest_that_lives_on_does_not_keep_services_alive(launcher: Launch, ends: Ends) -> None:
    process, pids = launcher("fork", "fork_child")
    process.kill()
    assert ends(*pids)


def test_ctrl_c_does_not_reach_services_or_the_guardian(launcher: Launch) -> None:
    process, pids = launcher("wait", "fork_child")
    assert all(os.getsid(pid) != os.getsid(process.pid) for pid in pids)
    os.killpg(process.pid, signal.SIGSTOP)  # pytest itself stays, so that its end is not the cause
    os.kill(pids[2], signal.SIGINT)
    os.kill(pids[2], signal.SIGTERM)
    time.sleep(0.2)
    assert all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def _wait_for_mark(pid: int) -> None:
    """Until its environment is that of the program which it runs."""
    patiently(lambda: guard.MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes())


def test_an_interrupt_while_a_service_is_being_started_leaves_nothing(
    go_service: ServiceFactory, nasty: Nasty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exists already, and its pid is not known to anything yet."""
    popen, started = subprocess.Popen, []

    def interrupted(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*args, **options)
        if options.get("env"):  # not the guardian
            started.append(process)
            _wait_for_mark(process.pid)
            raise KeyboardInterrupt
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go_service(command=nasty("sleep"), ready=None)
    [process] = started
    assert process.wait(0) in (-signal.SIGTERM, -signal.SIGKILL)
    assert go_service.guardian.leaders == {}


def test_a_process_known_only_by_its_environment_is_awaited_until_it_has_ended() -> None:
    """It loses its environment first, and then frees its memory."""
    program = "memory = bytearray(300 << 20)\nprint(flush=True)\nimport time\ntime.sleep(600)"
    for attempt in range(5):
        mark = f"{os.getpid()}-{attempt}"
        command = [sys.executable, "-S", "-c", program]
        env = {**os.environ, guard.MARK: mark}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert guard.end({}, 0, [mark]) == set()
            state = guard.stat(process.pid)
            process.kill()
        assert state is not None
        assert state.state == "Z"


def test_the_guardian_ends_what_started_just_before_pytest_was_killed() -> None:
    guardian = guard.Guardian()
    guardian.start()
    guardian.expect("just-started")
    with subprocess.Popen(["sleep", "60"], env={guard.MARK: "just-started"}) as process:
        _wait_for_mark(process.pid)
        guardian.close()  # as when pytest is gone
        assert process.wait(60) == -signal.SIGTERM


def test_a_service_without_a_mark_claims_no_strangers() -> None:
    assert guard.family({}, [""]) == {}


def test_a_guardian_that_was_killed_is_replaced(go_service: ServiceFactory, nasty: Nasty) -> None:
    go_service(command=nasty("sleep"), ready=None)
    first = go_service.guardian.process
    assert first is not None
    first.kill()
    first.wait()
    go_service(command=nasty("sleep"), ready=None)
    second = go_service.guardian.process
    assert second is not None
    assert second.pid != first.pid
    assert second.poll() is None


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("/nowhere/python", "/nowhere/python: No such file or directory"),
        ("/bin/false", "/bin/false -I -S .* ended with exit status 1"),
        ("/bin/cat", "/bin/cat -I -S .* ended with exit status 1\n\n/bin/cat: invalid option"),
    ],
    ids=["absent", "ends", "ends and says why"],
)
def test_without_a_guardian_no_service_starts_and_the_reason_is_reported(
    go_service: ServiceFactory, nasty: Nasty, monkeypatch: pytest.MonkeyPatch, python: str, why: str
) -> None:
    command = nasty("sleep")
    monkeypatch.setattr(sys, "executable", python)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ServiceError, match=f"the process that would end it .* cannot be started: {why}"):
        go_service(command=command, ready=None)
    assert set(psutil.Process().children(recursive=True)) <= before
    assert go_service.services == []


def test_a_service_ends_if_its_guardian_was_killed_and_cannot_be_replaced(
    go_service: ServiceFactory, nasty: Nasty, monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    first = go_service(command=nasty("sleep"), ready=None)
    guardian = go_service.guardian.process
    assert guardian is not None
    command = nasty("sleep")
    stat, started = guard.stat, []

    def killing(pid: int) -> guard.Stat | None:
        started.append(pid)
        patch.setattr(sys, "executable", "/bin/false")
        guardian.kill()
        guardian.wait()
        return stat(pid)

    with monkeypatch.context() as patch:
        patch.setattr(guard, "stat", killing)
        with pytest.raises(ServiceError, match="exit status 1"):
            go_service(command=command, ready=None)
    assert ends(started[0], seconds=0)
    first.stop()
    assert not first.running


def test_the_guardian_ends_with_the_session_and_touches_nothing_that_was_stopped(
    go_service: ServiceFactory, nasty: Nasty, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STOP_GRACE", 100.0)
    go_service(command=nasty("sleep"), ready=None)
    guardian = go_service.guardian.process
    assert guardian is not None
    begin = time.monotonic()
    go_service.stop_all()
    assert ends(guardian.pid, seconds=0)
    assert time.monotonic() - begin < service.STOP_GRACE


def test_services_do_not_inherit_the_guardians_pipe(go_service: ServiceFactory, nasty: Nasty) -> None:
    go_service(command=nasty("sleep"), ready=None)
    server = go_service(command=nasty("sleep"), ready=None)
    process = go_service.guardian.process
    assert process is not None
    assert process.stdin is not None
    pipe = os.fstat(process.stdin.fileno()).st_ino
    targets = []
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is still starting, and closes what it has read
            targets.append(str(path.readlink()))
    assert targets
    assert f"pipe:[{pipe}]" not in targets
