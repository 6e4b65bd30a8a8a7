"""What the agent reads about a process's sockets in /proc: whether the other end is gone, and what is
unread."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import socket
import struct

import pytest

from pytest_netpoll.meter import privilege
from pytest_netpoll.meter.readable import is_readable
from tests.waiting import patiently


@pytest.fixture
def look(monkeypatch):
    """look(socket) is what the agent reads about one of this process's sockets."""
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    sockets = importlib.import_module("processes.sockets")

    def look(one):
        inodes = sockets.inodes(os.getpid())
        seen = sockets.sockets(os.getpid(), inodes)[inodes[one.fileno()]]
        ends = (sockets.address(seen.kind, seen.local), sockets.address(seen.kind, seen.peer))
        return seen._replace(local=ends[0], peer=ends[1])

    return look


def pair(family, address):
    """(listener, client, server) of a TCP connection."""
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    client = socket.create_connection(listener.getsockname()[:2])
    return listener, client, listener.accept()[0]


@pytest.mark.parametrize(
    ("family", "host", "shown"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")],
    ids=["IPv4", "IPv6"],
)
def test_a_connection_is_alive_until_its_peer_closes(look, family, host, shown):
    listener, client, server = pair(family, (host, 0))
    with listener, server:
        with client:
            ports = [end.getsockname()[1] for end in (server, client)]
            client.sendall(b"hello")
            # On a busy machine the kernel may deliver what was sent a bit later.
            patiently(lambda: look(server).unread == 5)
            assert look(server) == ("tcp", f"{shown}:{ports[0]}", f"{shown}:{ports[1]}", False, 5)
            assert look(listener) == ("listener", f"{shown}:{ports[0]}", None, False, 0)
        assert patiently(lambda: look(server).gone)


def test_a_connection_that_was_reset_has_no_peer(look):
    listener, client, server = pair(socket.AF_INET, ("127.0.0.1", 0))
    with listener, server:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        patiently(lambda: look(server).gone)
        assert look(server) == ("tcp", None, None, True, 0)


def test_registrations_spare_asking_about_sockets_that_they_name(monkeypatch):
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    proc, sockets = (importlib.import_module(f"processes.{name}") for name in ("proc", "sockets"))
    pid, asked, link = os.getpid(), [], proc.link
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(10) for end in socket.socketpair()]
        epoll, other = (stack.enter_context(select.epoll()) for _ in range(2))
        for file in [*ends, other]:
            epoll.register(file)
        registrations = proc.registrations(pid, epoll.fileno())

        def inodes(registrations):
            found = sockets.inodes(pid, registrations)
            return [found.get(file.fileno()) for file in [*ends, other]]

        truth = [*(os.fstat(end.fileno()).st_ino for end in ends), None]
        monkeypatch.setattr(proc, "link", lambda pid, fd: asked.append(fd) or link(pid, fd))
        assert inodes(registrations) == truth
        assert len(set(asked) & {end.fileno() for end in ends}) == 1
        # Registered again under a number that meanwhile is another's: the number alone proves nothing.
        assert inodes([*registrations, registrations[0]._replace(inode=1)]) == truth


def test_connections_in_a_backlog_are_unread(look):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        assert patiently(lambda: look(listener).unread == 1)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
def test_a_unix_connection_is_alive_until_its_peer_closes(look, kind):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one:
        with other:
            other.send(b"hello")
            assert not look(one).gone
        assert look(one).gone


def test_a_unix_socket_without_connections_has_no_peer_to_lose(look, tmp_path):
    path = str(tmp_path / "s")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_UNIX) as fresh,
    ):
        server.bind(path)
        client.connect(path)
        assert look(server).local == path
        assert [look(one).gone for one in (server, client, fresh)] == [False, False, False]


def test_a_socket_of_another_process_is_readable_if_a_poll_says_so():
    one, other = socket.socketpair()
    with one, other:
        inode = os.fstat(one.fileno()).st_ino
        assert is_readable(os.getpid(), one.fileno(), inode) is False
        other.send(b"x")
        assert is_readable(os.getpid(), one.fileno(), inode) is True
        assert is_readable(os.getpid(), one.fileno(), inode + 1) is None
        assert is_readable(os.getpid(), 1 << 20, inode) is None
