from __future__ import annotations

import os
import socket

import pytest

from pytest_netpoll.service.listeners import Listener, listeners_of, listening_ports, network_namespace


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::"),
    ],
)
def test_a_listening_socket_is_found_with_its_address(family: socket.AddressFamily, host: str) -> None:
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError as error:
        if family == socket.AF_INET:
            raise
        pytest.skip(f"no IPv6 here: {error}")
    with server, socket.socket() as idle:
        assert idle.fileno() >= 0
        mine = [listener for listener in listeners_of(os.getpid()) if listener.fd == server.fileno()]
        assert mine == [Listener(host, server.getsockname()[1], server.fileno())]
        assert server.getsockname()[1] in listening_ports(os.getpid())


def test_the_socket_opened_first_comes_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        fds = [listener.fd for listener in listeners_of(os.getpid())]
        assert fds.index(first.fileno()) < fds.index(second.fileno())


def test_a_process_that_is_gone_listens_nowhere() -> None:
    assert listeners_of(2**22 + 1) == []
    assert listening_ports(2**22 + 1) == frozenset()
    assert network_namespace(2**22 + 1) is None
