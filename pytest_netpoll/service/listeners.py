"""Finds which processes listen for TCP, and where.

Read from each process's own /proc/PID/net: psutil only reads our own network namespace, but a container has
one of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import NamedTuple

LISTENING = "0A"
UNCONNECTED = "07"  # UDP: not connected, so it receives from anybody


class Listener(NamedTuple):
    """One listening socket of a process; host as bound: "0.0.0.0" and "::" for all."""

    host: str
    port: int
    fd: int


def listeners_of(pid: int) -> list[Listener]:
    """The process's listening TCP sockets, in the order of opening; empty if the process is gone. Raises
    PermissionError if this user may not see them.
    """
    sockets = _sockets(pid)
    if not sockets:
        return []
    bound = _bound(pid)
    found = [Listener(*bound[inode], fd) for inode, fd in sockets.items() if inode in bound]
    return sorted(found, key=lambda listener: listener.fd)


def ports_of(pid: int) -> set[int]:
    """The TCP and UDP ports at which clients reach the process. Raises PermissionError if this user may not
    see them.
    """
    sockets = _sockets(pid)
    if not sockets:
        return set()
    bound = _bound(pid) | _bound(pid, "udp", UNCONNECTED)
    return {bound[inode][1] for inode in sockets if inode in bound}


def listening_ports(pid: int) -> frozenset[int]:
    """The ports of all listening TCP sockets in the process's network namespace, whoever has them; empty if
    the process is gone.
    """
    return frozenset(port for _, port in _bound(pid).values())


def port_holder(port: int) -> int | None:
    """A process that clients on this machine reach at the port; None if none is visible."""
    own = network_namespace()
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and network_namespace(int(name)) == own:
            with contextlib.suppress(OSError):
                if port in ports_of(int(name)):
                    return int(name)
    return None


def network_namespace(pid: int | str = "self") -> int | None:
    """The number of the process's network namespace; None if hidden, or the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116
    except OSError:
        return None


def outer_address(pid: int) -> str | None:
    """The first IPv4 address, except the loopback, of the process's network namespace; None without one."""
    candidate = None
    with contextlib.suppress(OSError), open(f"/proc/{pid}/net/fib_trie") as file:
        for line in file:
            mark, _, text = line.strip().partition(" ")
            if mark == "|--":
                candidate = text
            elif text == "host LOCAL" and candidate and not candidate.startswith("127."):
                return candidate
    return None


def _sockets(pid: int) -> dict[str, int]:
    """{inode: lowest descriptor} of the process's sockets; empty if it is gone."""
    try:
        # Called for hundreds of processes, so avoid Path objects.
        fds = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208
    except FileNotFoundError:
        return {}
    sockets: dict[str, int] = {}
    for fd in reversed(fds):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115
            if link.startswith("socket:["):
                sockets[link[8:-1]] = fd
    return sockets


def _bound(pid: int, protocol: str = "tcp", state: str = LISTENING) -> dict[str, tuple[str, int]]:
    """{inode: (host, port)} for all sockets in that state in the process's network namespace."""
    table = {}
    for family, name in ((socket.AF_INET, protocol), (socket.AF_INET6, f"{protocol}6")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{name}") as file:
            next(file, None)
            for line in file:
                fields = line.split()
                if fields[3] == state:
                    host, _, port = fields[1].partition(":")
                    table[fields[9]] = _address(family, host), int(port, 16)
    return table


def _address(family: socket.AddressFamily, text: str) -> str:
    # 32-bit words, printed in the machine's byte order but stored in the network's.
    words = [struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(words))
