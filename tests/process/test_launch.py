"""Commands and running processes become services: ports, names, environment, restarts, callbacks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.errors import ServiceError, UsageError
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from pytest_netpoll.service.sides import Pairs, Sides, TwoSided
from tests.waiting import patiently

Nasty = Callable[..., list[str]]


def test_a_port_is_the_same_everywhere_in_a_service_and_accepts_connections(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    server = go_service(
        command=nasty("environment:PORT", "listen:{port}"), args=["sleep"], env={"PORT": "at {port}"}
    )
    assert server.address == ("127.0.0.1", server.port)
    assert server.log == f"PORT=at {server.port}\n"
    socket.create_connection(server.address).close()


def test_a_command_may_be_one_string(go_service: ServiceFactory) -> None:
    server = go_service(command="sh -c 'echo \"two  words {port}\"; sleep 60'", ready=None)
    assert server.name == "sh"
    assert server.running


def test_without_a_placeholder_the_port_is_the_one_it_listens_on(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    server = go_service(command=nasty("listen_everywhere:0", "sleep"))
    assert server.address == ("127.0.0.1", server.port)
    socket.create_connection(server.address).close()


def test_the_port_may_be_one_of_a_child(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("listen_in_child:{port}", "sleep"))
    socket.create_connection(server.address).close()


def test_an_unknown_port_is_an_error_that_shows_what_to_do(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("sleep"), ready=None)
    with pytest.raises(ServiceError, match="does not listen") as failure:
        _ = server.port
    assert "{port}" in str(failure.value.fix)


def test_a_service_runs_in_rootdir_or_in_cwd(
    go_service: ServiceFactory, nasty: Nasty, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    ready = re.compile("/")
    assert go_service(command=nasty("show_directory", "sleep"), ready=ready).log == f"{tmp_path}\n"
    assert go_service(command=nasty("show_directory", "sleep"), ready=ready, cwd="sub").log == (
        f"{tmp_path}/sub\n"
    )


def test_names_are_unique_among_running_services(go_service: ServiceFactory, nasty: Nasty) -> None:
    first, second, third = (go_service(command=nasty("sleep"), ready=None, name="api") for _ in range(3))
    assert [service.name for service in go_service.services] == ["api", "api-2", "api-3"]
    second.stop()
    assert go_service.services == [first, third]
    assert go_service(command=nasty("sleep"), ready=None, name="api").name == "api-2"


def test_names_are_unique_also_of_services_started_at_once(go_service: ServiceFactory, nasty: Nasty) -> None:
    command = nasty("sleep")
    with ThreadPoolExecutor(4) as pool:
        started = [pool.submit(go_service, command=command, ready=None, name="api") for _ in range(4)]
    assert {service.result().name for service in started} == {"api", "api-2", "api-3", "api-4"}


def test_a_shell_that_execs_the_service_later_is_reported_as_the_service(
    go_service: ServiceFactory, tmp_path: Path
) -> None:
    waits = "until test -e seen; do sleep 0.02; done; exec sleep 60"
    server = go_service(command=["sh", "-c", waits], ready=None)
    assert server.executable == str(Path(shutil.which("sh") or "").resolve())
    (tmp_path / "seen").touch()
    assert patiently(lambda: server.executable.endswith("/sleep") or server.executable.endswith("/coreutils"))


def test_a_program_starts_after_its_watchers_were_called(tmp_path: Path) -> None:
    begun: list[bool] = []

    def on_spawn(_: Service) -> None:
        time.sleep(0.1)
        begun.append((tmp_path / "begun").exists())

    factory = ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path, on_spawn=on_spawn)
    server = factory(command=["sh", "-c", "touch begun; exec sleep 60"], ready=None)
    assert patiently((tmp_path / "begun").exists)
    (tmp_path / "begun").unlink()
    server.restart()
    assert patiently((tmp_path / "begun").exists)
    factory.stop_all()
    assert begun == [False, False]


def test_a_service_has_its_own_arguments_environment_signals_and_descriptors(
    go_service: ServiceFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if nothing else had run in its process before."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)  # where Python would set its own
    env = {"FOO.BAR": "a=b\n", "EMPTY": "", "LD_PRELOAD": ""}
    command = ["cat", "/proc/self/environ", "/proc/self/cmdline", "/proc/self/status", ""]
    server = go_service(command=command, args=["", "x y"], env=env, ready=None)
    assert patiently(lambda: not server.running)
    environ = [f"{name}={value}" for name, value in {**os.environ, **env}.items()]
    printed = server.log
    for variable in environ:
        assert f"{variable}\0" in printed
    assert "LC_CTYPE" not in printed
    assert "\0".join([*command, "", "x y", ""]) in printed
    own = subprocess.run(
        ["cat", "/proc/self/status"], capture_output=True, text=True, start_new_session=True
    ).stdout
    signals = re.compile(r"^Sig(?:Blk|Ign|Cgt):.*$", re.M)
    assert signals.findall(printed) == signals.findall(own)
    fds = go_service(command=["ls", "/proc/self/fd"], ready=None)
    assert patiently(lambda: not fds.running)
    assert fds.log.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("no-such-program", "no-such-program: No such file or directory"),
        ("/etc/passwd", "/etc/passwd: Permission denied"),
        ("./text", "./text: Exec format error"),
    ],
)
def test_a_program_that_cannot_run_is_an_error_with_the_reason(
    go_service: ServiceFactory, tmp_path: Path, command: str, why: str
) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(ServiceError, match="cannot start service") as failure:
        go_service(command=[command], ready=None)
    assert failure.value.why == why
    assert go_service.services == []


def test_a_restart_keeps_the_port_and_changes_the_pid(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("listen:{port}", "sleep"))
    pid, port = server.pid, server.port
    server.restart()
    assert server.port == port
    assert server.pid != pid
    assert not psutil.pid_exists(pid)
    socket.create_connection(server.address).close()


def test_a_crashed_and_a_stopped_service_can_be_restarted(
    go_service: ServiceFactory, nasty: Nasty, ends: Callable[..., bool]
) -> None:
    server = go_service(command=nasty("listen:{port}", "sleep"))
    os.kill(server.pid, 9)
    assert ends(server.pid)
    server.restart()
    assert server.running
    server.stop()
    server.restart()
    assert server.running
    assert go_service.services == [server]


def test_the_watcher_is_called_for_every_process_before_it_is_ready(tmp_path: Path, nasty: Nasty) -> None:
    seen: list[str] = []

    def on_spawn(service: Service) -> None:
        seen.append(f"spawn {service.pid}")

    def on_ready(service: Service) -> bool:
        seen.append(f"ready {service.pid}")
        return True

    def on_exit(service: Service) -> None:
        seen.append(f"exit {service.pid}, running: {service.running}")

    factory = ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path, on_spawn=on_spawn, on_exit=on_exit)
    server = factory(command=nasty("sleep"), ready=on_ready)
    first = server.pid
    server.restart()
    second = server.pid
    factory.stop_all()
    assert seen == [
        *(f"spawn {first}", f"ready {first}", f"exit {first}, running: False"),
        *(f"spawn {second}", f"ready {second}", f"exit {second}, running: False"),
    ]


def test_a_watcher_that_fails_leaves_no_process(tmp_path: Path, nasty: Nasty) -> None:
    pids = []

    def on_spawn(service: Service) -> None:
        pids.append(service.pid)
        raise KeyError("mine")

    factory = ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path, on_spawn=on_spawn)
    with pytest.raises(KeyError, match="mine"):
        factory(command=nasty("sleep"))
    assert not psutil.pid_exists(pids[0])
    factory.stop_all()


def test_a_lost_race_for_a_port_is_repeated_on_another_port(
    go_service: ServiceFactory, nasty: Nasty, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = go_service.free_port
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        ports = iter([taken, taken])
        monkeypatch.setattr(go_service, "free_port", lambda: next(ports, None) or free_port())
        server = go_service(command=nasty("listen:{port}", "sleep"))
        assert server.port != taken
        socket.create_connection(server.address).close()


def test_each_name_stands_for_a_further_port(go_service: ServiceFactory, nasty: Nasty) -> None:
    command = nasty(
        "environment:ADMIN", "listen:{port:admin}", "listen:{port:metrics}", "listen:{port}", "sleep"
    )
    server = go_service(command=command, env={"ADMIN": "{port:admin}"})
    ports = dict(server.ports)
    assert set(ports) == {"admin", "metrics"}
    assert len({server.port, *ports.values()}) == 3
    assert server.log == f"ADMIN={ports['admin']}\n"
    for port in (server.port, *ports.values()):
        socket.create_connection(("127.0.0.1", port)).close()
    server.restart()
    assert server.ports == ports


def test_another_port_that_is_taken_is_reported_once(go_service: ServiceFactory) -> None:
    said = "listen tcp 127.0.0.1:8080: bind: address already in use"
    with pytest.raises(ServiceError, match="ended before it was ready: exit status 1") as failure:
        go_service(command=["sh", "-c", f"echo {{port}} {said}; exit 1"])
    assert str(failure.value.detail).count(said) == 1


class Built:
    """Builds nothing: each package is the nasty program."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self._program = directory / "nasty"
        self._program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        self._program.chmod(0o755)

    def build(self, *_: object, **__: object) -> Path:
        return self._program


@pytest.fixture
def pairs(tmp_path: Path, nasty: Nasty) -> Iterator[Pairs]:
    """The nasty program as both builds of a package."""
    sides, built = Sides(), Built(tmp_path, nasty())
    head = ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path, builder=built, new=sides.new)
    base = ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path, builder=built)
    pairs = Pairs(head, base, sides, "base (main)")
    yield pairs
    pairs.stop_all()


def test_both_builds_have_named_ports_of_their_own(pairs: Pairs) -> None:
    server = pairs("./server", args=["listen:{port}", "listen:{port:admin}", "sleep"], name="server")
    assert isinstance(server, TwoSided)
    assert server.base is not None
    assert len({server.port, server.base.port, server.ports["admin"], server.base.ports["admin"]}) == 4
    # A client of a named port gets that of its side.
    client = pairs(
        "./client",
        args=["environment:ADMIN", "listen:{port}", "sleep"],
        name="client",
        env={"ADMIN": server.ports["admin"]},
    )
    assert isinstance(client, TwoSided)
    assert client.base is not None
    assert client.log == f"ADMIN={server.ports['admin']}\n"
    assert client.base.log == f"ADMIN={server.base.ports['admin']}\n"


def test_a_port_of_ones_own_is_an_error_that_says_that_both_builds_run_at_once(pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ServiceError, match=r"base \(main\): service .* ended before it was ready") as failure:
        pairs("./server", args=[f"listen:{port}", "listen:{port}", "sleep"])
    assert failure.value.reason.fix is not None
    assert "both builds run at once, with the same arguments" in failure.value.reason.fix
    assert "{port:http}" in failure.value.reason.fix


def test_a_port_that_is_always_taken_is_an_error_eventually(
    go_service: ServiceFactory, nasty: Nasty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        monkeypatch.setattr(go_service, "free_port", lambda: stranger.getsockname()[1])
        with pytest.raises(ServiceError, match="ended before it was ready: exit status 1") as failure:
            go_service(command=nasty("listen:{port}", "sleep"))
    assert "Address already in use" in str(failure.value.detail)
    assert go_service.services == []


def test_a_running_process_is_watched_and_left_alone(go_service: ServiceFactory, nasty: Nasty) -> None:
    with subprocess.Popen(nasty("listen:0", "sleep")) as stranger:
        server = go_service(pid=stranger.pid)
        assert (server.pid, server.attached, server.returncode, server.log) == (stranger.pid, True, None, "")
        assert server.executable == psutil.Process(stranger.pid).exe()
        socket.create_connection(server.address).close()
        with pytest.raises(UsageError, match="cannot be restarted"):
            server.restart()
        go_service.stop_all()
        assert stranger.poll() is None
        assert not server.running
        stranger.kill()


def test_a_watched_process_that_ends_is_noticed(go_service: ServiceFactory, nasty: Nasty) -> None:
    with subprocess.Popen(nasty("sleep")) as stranger:
        server = go_service(pid=stranger.pid, ready=None)
        server.check_alive()
        stranger.kill()
        stranger.wait()
        with pytest.raises(ServiceError, match="the process is gone"):
            server.check_alive()


def test_an_unused_pid_is_an_error(go_service: ServiceFactory) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    with pytest.raises(ServiceError, match="no such process"):
        go_service(pid=gone.pid)


def test_a_missing_command_is_named(go_service: ServiceFactory) -> None:
    with pytest.raises(ServiceError, match="no-such-command: No such file") as failure:
        go_service(command=["./no-such-command", "-v"])
    assert "./no-such-command -v" in str(failure.value.fix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of package, command, pid, port, process, container: got none"),
        ({"package": "./a", "command": "b"}, "got package and command"),
        ({"command": "true", "go": "1.25.1", "build_flags": ["-race"]}, "go, build_flags can't be combined"),
        ({"pid": 1, "args": ["-v"]}, "args can't be combined with pid"),
        ({"pid": -1}, "pid= must be"),
        ({"pid": "12"}, "pid= must be"),
        ({"command": ""}, "command= is empty"),
        ({"command": "sh -c 'open"}, "cannot split"),
        ({"command": 7}, "must be a list or a str"),
        ({"command": "true", "args": {"-v": 1}}, "must be a list or a str"),
        ({"command": "true", "cwd": "nowhere"}, "no directory"),
        ({"command": "true", "timeout": 0}, "timeout="),
        ({"command": "true", "timeout": "30s"}, "timeout="),
        ({"command": "true", "ready": "udp"}, "ready=: 'udp'"),
        ({"command": "true", "ready": 7}, "ready=: a int"),
        ({"command": "true", "ready": re.compile(b"x")}, "regex for bytes"),
    ],
)
def test_wrong_arguments_are_usage_errors_and_run_nothing(
    go_service: ServiceFactory, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        go_service(**arguments)  # type: ignore[arg-type]
    assert go_service.services == []


def test_the_url_answers(go_service: ServiceFactory) -> None:
    server = go_service(command=[sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"])
    assert urllib.request.urlopen(server.url, timeout=60).status == 200


def test_the_address_of_an_ended_service_is_an_error_with_the_reason(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    """A cache that outlives the fixture would pass it to the next test."""
    server = go_service(command=nasty("sleep"), ready=None, env={"PORT": "{port}"})
    assert server.address[1] == server.port
    server.retire()
    for ask in (lambda: server.address, lambda: server.port, lambda: server.url):
        with pytest.raises(UsageError, match="no longer exists") as refused:
            ask()
        assert "wider scope" in (refused.value.fix or "")
