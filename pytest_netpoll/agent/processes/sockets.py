"""What a process's sockets are, whether their peers are gone, and how much data is unread.

All of it is read from /proc: that doesn't touch the sockets, and works in other network namespaces.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from processes import proc


class Socket(NamedTuple):
    """A socket. local, peer: addresses as in /proc; see `address`. gone: whether its peer has closed, or only
    shut down its half; see `closed`. unread: bytes to read, or connections to accept; 0 if /proc doesn't say.
    """

    kind: str
    local: str | None
    peer: str | None
    gone: bool
    unread: int


# include/net/tcp_states.h
_CLOSE, _CLOSE_WAIT, _LISTEN = "07", "08", "0A"
_GONE = (_CLOSE, _CLOSE_WAIT)
# ::ffff:0:0/96, in either byte order.
_MAPPED = ("0000000000000000FFFF0000", "00000000000000000000FFFF")
# In /proc/net/unix: SOCK_STREAM and SOCK_SEQPACKET, and SS_CONNECTED.
_UNIX_CONNECTIONS, _CONNECTED = ("0001", "0005"), "03"
# Its own inode, the one in the table of sockets, and its peer's.
_UNIX_REFERENCES = 3


def inodes(pid: int, registrations: Iterable[proc.Registration] = ()) -> dict[int, int]:
    """{fd: inode} of the process's sockets. registrations: with an epoll instance, just read; they save
    asking about each descriptor.
    """
    found: dict[int, int] = {}
    try:
        fds = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return found
    registered: dict[int, proc.Registration | None] = {}
    for registration in registrations:
        # Of two with one number, one is of a file that is open elsewhere.
        registered[registration.fd] = None if registration.fd in registered else registration
    devices = set()  # those of sockets
    for fd in fds:
        known = registered.get(fd)
        if known is not None and known.device in devices:
            found[fd] = known.inode
            continue
        name = proc.link(pid, fd) or ""
        if name.startswith("socket:["):
            found[fd] = int(name[8:-1])
            if known is not None and known.inode == found[fd]:
                devices.add(known.device)
    return found


def sockets(pid: int, descriptors: dict[int, int]) -> dict[int, Socket]:
    """{inode: Socket}. descriptors: from `inodes`."""
    wanted = set(descriptors.values())
    found: dict[int, Socket] = {}
    for name in ("tcp", "tcp6"):
        for inode, fields in _rows(pid, name, 9, wanted):
            kind = "listener" if fields[3] == _LISTEN else "tcp"
            found[inode] = Socket(kind, fields[1], fields[2], fields[3] in _GONE, _unread(fields[4]))
    for name in ("udp", "udp6"):
        for inode, fields in _rows(pid, name, 9, wanted):
            found[inode] = Socket("udp", fields[1], fields[2], False, _unread(fields[4]))
    for inode, fields in _rows(pid, "unix", 6, wanted):
        # The other end of a connection refers to this one as long as it is open.
        connected = fields[4] in _UNIX_CONNECTIONS and fields[5] == _CONNECTED
        alone = connected and int(fields[1], 16) < _UNIX_REFERENCES
        found[inode] = Socket("unix", fields[7].rstrip("\n") if len(fields) > 7 else None, None, alone, 0)
    for fd, inode in descriptors.items():
        # A connection that was reset is in none of the tables, and neither is one that was closed meanwhile.
        if inode not in found:
            gone = proc.link(pid, fd) == f"socket:[{inode}]" and _protocol(pid, fd) in (b"TCP\0", b"TCPv6\0")
            found[inode] = Socket("tcp" if gone else "socket", None, None, gone, 0)
    return found


def listening(pid: int) -> set[int]:
    """The TCP ports on which the process listens."""
    return _ports(sockets(pid, inodes(pid)).values())


def accepted(pid: int) -> set[int]:
    """The descriptors of TCP connections on ports where the process listens."""
    descriptors = inodes(pid)
    found = sockets(pid, descriptors)
    ports = _ports(found.values())
    return {
        fd for fd, inode in descriptors.items() if found[inode].kind == "tcp" and _port(found[inode]) in ports
    }


def _ports(found: Iterable[Socket]) -> set[int]:
    return {_port(known) for known in found if known.kind == "listener"} - {0}


def _port(known: Socket) -> int:
    """0 if it has none."""
    return int(known.local.rpartition(":")[2], 16) if known.local else 0


def closed(pid: int, found: Iterable[Socket]) -> set[Socket]:
    """The connections whose other end certainly nobody holds any more, among those whose peers are gone.

    After shutdown(SHUT_WR) a peer may still read. The peer's own entry shows whether anybody holds it; it
    stays in the table for a minute, if it is in the process's network namespace or in ours.
    """
    suspects = {known for known in found if known.gone}
    orphans: set[tuple[str, ...]] = set()
    if any(known.kind == "tcp" for known in suspects):
        orphans = {*_orphans(pid), *_orphans(os.getpid())}
    return {known for known in suspects if known.kind == "unix" or _ends(known.peer, known.local) in orphans}


def _orphans(pid: int) -> Iterator[tuple[str, ...]]:
    """(local, peer) of the TCP sockets in the process's network namespace that no process holds."""
    for name in ("tcp", "tcp6"):
        for inode, fields in _rows(pid, name, 9, None):
            if not inode:
                yield _ends(fields[1], fields[2])


def _ends(*addresses: str | None) -> tuple[str, ...]:
    """Both addresses as in /proc/net/tcp, also if they are mapped into IPv6."""
    parts = [(address or "").partition(":") for address in addresses]
    return tuple(f"{host[24:] if host[:24] in _MAPPED else host}:{port}" for host, _, port in parts)


def _rows(
    pid: int, name: str, column: int, wanted: Collection[int] | None
) -> Iterator[tuple[int, list[str]]]:
    """(inode, fields) of the wanted sockets (None: all) in a table of the process's network namespace."""
    try:
        with open(f"/proc/{pid}/net/{name}", encoding="utf-8", errors="replace") as f:
            next(f, None)
            for line in f:
                fields = line.split(None, column + 1)
                inode = int(fields[column])
                if wanted is None or inode in wanted:
                    yield inode, fields
    except (OSError, ValueError, IndexError):
        return


def _unread(queues: str) -> int:
    return int(queues.rpartition(":")[2], 16)


def _protocol(pid: int, fd: int) -> bytes | None:
    try:
        return os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname")
    except OSError:
        return None


def address(kind: str, text: str | None) -> str | None:
    """ "127.0.0.1:80" from "0100007F:0050", words of 32 bits in the machine's byte order. A unix socket's
    path stays as it is. None if there is no address, or no peer.
    """
    if text is None or kind in ("unix", "socket"):
        return text
    host, _, port = text.partition(":")
    return None if port == "0000" else f"{_host(host)}:{int(port, 16)}"


@functools.lru_cache(maxsize=4096)
def _host(text: str) -> str:
    return _written(b"".join(struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8)))


def written(raw: bytes, port: int) -> str:
    """ "127.0.0.1:80", "[::1]:80". raw: the 4 or 16 bytes of an address."""
    return f"{_written(raw)}:{port}"


def _written(raw: bytes) -> str:
    address = ipaddress.ip_address(raw)
    if address.version == 6 and address.ipv4_mapped is None:
        return f"[{address}]"
    return f"{ipaddress.IPv4Address(raw[-4:])}"
