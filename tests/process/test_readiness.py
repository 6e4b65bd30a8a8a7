"""A service is returned when it is ready; otherwise the reason is reported."""

from __future__ import annotations

import re
import shlex
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_netpoll.errors import ServiceError
from pytest_netpoll.service import readiness
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from tests.waiting import patiently

Nasty = Callable[..., list[str]]
MODE = re.compile("MODE=.*\n")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may take long on a busy machine: it isn't abandoned and requested again."""
    monkeypatch.setattr(readiness, "DIAL_TIMEOUT", 30.0)


def test_tcp_waits_for_the_listener(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("sleep_for:0.3", "listen:{port}", "sleep"))
    socket.create_connection(server.address).close()


def test_a_listener_that_left_its_parent_and_session_belongs_to_the_service(
    go_service: ServiceFactory, nasty: Nasty, ends: Callable[..., bool]
) -> None:
    daemon = shlex.join(nasty("listen:{port}", "sleep"))
    server = go_service(command=["sh", "-c", f"(setsid {daemon} &); exec sleep 60"])
    socket.create_connection(server.address, timeout=60).close()
    patiently(lambda: len(server.family()) == 2)  # the shell in between has ended
    (other,) = server.family().keys() - {server.pid}
    assert psutil.Process(other).parent() != psutil.Process(server.pid)
    server.stop()
    assert ends(other)


def test_tcp_ignores_a_stranger_on_the_port(
    go_service: ServiceFactory, nasty: Nasty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        monkeypatch.setattr(go_service, "free_port", lambda: stranger.getsockname()[1])
        with pytest.raises(ServiceError, match="another process, not of this service, listens there"):
            go_service(command=nasty("sleep"), args=["{port}"], timeout=0.3)


def _connections() -> set[Any]:
    return {c for c in psutil.net_connections("tcp") if c.raddr}


def test_tcp_leaves_no_connection_behind_for_the_service_to_accept(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    others = _connections()
    server = go_service(command=nasty("listen:{port}", "sleep"))
    left = [c for c in _connections() - others if c.raddr.port == server.port]
    # Connections of this port in the last minute; one that was never accepted stays in FIN_WAIT2.
    assert not [c for c in left if c.status != psutil.CONN_TIME_WAIT]


def test_http_waits_for_an_answer_below_500(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("http_ok_after:2"), env={"PORT": "{port}"}, ready="http:/health")
    assert server.log.count('"GET /health') == 3


def test_http_that_stays_above_499_is_reported(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("http_ok_after:99999"), env={"PORT": "{port}"}, ready="tcp")
    with pytest.raises(ServiceError, match=r"GET /health on port \d+; it listens there and answers 5xx"):
        readiness.wait_until_ready(server, "http:/health", 0.5, None)


def test_a_regex_is_searched_in_the_output(go_service: ServiceFactory, nasty: Nasty) -> None:
    command = nasty("sleep_for:0.2", "environment:WORD", "sleep")
    assert "hello" in go_service(command=command, env={"WORD": "hello"}, ready=re.compile("hel+o$")).log


def test_a_restart_waits_for_the_regex_in_the_new_output(go_service: ServiceFactory, nasty: Nasty) -> None:
    command = ["sh", "-c", 'test -e once && exit 9; touch once; echo up; exec "$@"', "-", *nasty("sleep")]
    server = go_service(command=command, ready=re.compile("up"))
    with pytest.raises(ServiceError, match="exit status 9"):
        server.restart()


def test_a_callable_is_called_until_it_returns_true(go_service: ServiceFactory, nasty: Nasty) -> None:
    answers = iter([False, False, True])
    server = go_service(command=nasty("sleep"), ready=lambda _: next(answers))
    assert server.running
    assert list(answers) == []


def test_a_callable_may_fail_as_clients_do_while_the_service_starts(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    def answers(service: Service) -> bool:
        try:
            urllib.request.urlopen(service.url + "/health", timeout=20)
        except urllib.error.HTTPError as error:
            return error.code < 500
        return True

    assert go_service(
        command=nasty("sleep_for:0.2", "http_ok_after:0"), env={"PORT": "{port}"}, ready=answers
    )


def test_the_last_error_of_a_callable_is_reported(go_service: ServiceFactory, nasty: Nasty) -> None:
    def never(_: Service) -> bool:
        raise ConnectionResetError("by the peer")

    with pytest.raises(ServiceError, match=r"waited for never\(\).*ConnectionResetError: by the peer"):
        go_service(command=nasty("sleep"), ready=never, timeout=0.1)


def test_a_bug_in_a_callable_is_not_hidden(go_service: ServiceFactory, nasty: Nasty) -> None:
    with pytest.raises(ZeroDivisionError):
        go_service(command=nasty("sleep"), ready=lambda _: 1 / 0 > 0)
    assert go_service.services == []


def test_never_ready_reports_what_was_awaited_how_long_and_what_was_printed(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    server = go_service(
        command=nasty("environment:MODE", "sleep"), env={"MODE": "odd"}, args=["{port}"], ready=MODE
    )
    with pytest.raises(ServiceError) as failure:
        readiness.wait_until_ready(server, "tcp", 0.5, None)
    assert "not ready within 0.5 s" in failure.value.what
    assert "a TCP listener on port" in str(failure.value.why)
    assert "MODE=odd" in str(failure.value.detail)


def test_a_service_that_never_gets_ready_is_stopped(go_service: ServiceFactory, nasty: Nasty) -> None:
    pids: list[int] = []
    go_service.on_spawn = lambda service: pids.append(service.pid)
    with pytest.raises(ServiceError, match="not ready within"):
        go_service(command=nasty("sleep"), timeout=0.1)
    assert not psutil.pid_exists(pids[0])


def test_listening_elsewhere_is_reported(go_service: ServiceFactory, nasty: Nasty) -> None:
    command = nasty("listen:0", "environment:MODE", "sleep")
    server = go_service(command=command, args=["{port}"], ready=MODE)
    with pytest.raises(ServiceError, match=r"it listens on \d+ instead"):
        readiness.wait_until_ready(server, "tcp", 0.5, None)


@pytest.mark.parametrize("ready", ["tcp", "http:/", re.compile("never"), lambda _: False])
def test_an_early_end_is_reported_at_once(
    go_service: ServiceFactory, nasty: Nasty, ready: readiness.Ready
) -> None:
    begin = time.monotonic()
    with pytest.raises(ServiceError, match="ended before it was ready: exit status 3") as failure:
        go_service(
            command=nasty("environment:MODE", "end_with:3"), env={"MODE": "odd"}, ready=ready, timeout=1000
        )
    assert time.monotonic() - begin < 100
    assert "MODE=odd" in str(failure.value.detail)


def test_an_early_end_by_a_signal_names_the_signal(go_service: ServiceFactory, nasty: Nasty) -> None:
    with pytest.raises(ServiceError, match="killed by SIGSEGV"):
        go_service(command=nasty("end_by:11"))


def test_a_service_that_dies_later_is_noticed_with_its_last_words(
    go_service: ServiceFactory, nasty: Nasty, ends: Callable[..., bool]
) -> None:
    server = go_service(command=nasty("sleep_for:0.1", "environment:MODE", "end_with:2"), ready=None)
    assert ends(server.pid)
    with pytest.raises(ServiceError, match="ended: exit status 2") as failure:
        server.check_alive()
    assert "MODE=None" in str(failure.value.detail)
    assert server.returncode == 2
    assert go_service.services == [server]


def test_a_long_wait_is_announced_once(tmp_path: Path, nasty: Nasty, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    noticed = tmp_path / "noticed"

    def say(text: str) -> None:
        said.append(text)
        noticed.touch()

    monkeypatch.setattr(readiness, "QUIET_SECONDS", 0.1)
    factory = ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path, say=say)
    factory(command=nasty(f"wait_for:{noticed}", "sleep_for:0.3", "listen:{port}", "sleep"), name="slow")
    factory.stop_all()
    assert len(said) == 1
    assert said[0].startswith("waiting for slow: a TCP listener on port")
