"""Describes what a descriptor was when somebody was woken for it, from the kernel's struct endpoint."""

from __future__ import annotations

import stat
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple, Optional

from processes import proc, sockets

if TYPE_CHECKING:
    from bpf import structs

    # (type, local address, peer's address). type: tcp, listener, udp, unix, unixgram, unixpacket, pipe, …;
    # closed if that is no longer known. Addresses: "host:port", or a unix socket's path; None for none, or
    # several.
    Words = tuple[str, Optional[str], Optional[str]]

# From the kernel's headers: importing Python's socket module for these would take memory.
_UNIX, _INET, _INET6 = 1, 2, 10
_STREAM, _DATAGRAM, _SEQUENCED = 1, 2, 5
_TCP_LISTEN = 10
_SOCKETS = {_STREAM: "tcp", _DATAGRAM: "udp"}
_UNIX_SOCKETS = {_STREAM: "unix", _DATAGRAM: "unixgram", _SEQUENCED: "unixpacket"}  # as in Go's net package


class Endpoint(NamedTuple):
    """As in bpf/netpoll.h."""

    inode: int
    mode: int
    type: int
    family: int
    port: int
    peer_port: int
    state: int
    several: int
    address: bytes
    peer_address: bytes


def copy(end: structs.Endpoint) -> Endpoint:
    """The Endpoint of a map's value."""
    *numbers, address, peer = (getattr(end, name) for name in Endpoint._fields)
    return Endpoint._make([*numbers, bytes(address), bytes(peer)])


def words(pid: int, ends: Collection[tuple[int, Endpoint]]) -> dict[tuple[int, Endpoint], Words]:
    """Describes these descriptors of a process, as they are or were."""
    unix = {end.inode for _, end in ends if end.family == _UNIX}
    paths = proc.unix_paths(pid, unix) if unix else {}
    return {(fd, end): _words(pid, fd, end, paths) for fd, end in ends}


def _words(pid: int, fd: int, end: Endpoint, paths: Mapping[int, str]) -> Words:
    local: str | None = None
    peer: str | None = None
    if end.family in (_INET, _INET6):
        kind = _SOCKETS.get(end.type, "ip")
        if kind == "tcp" and end.state == _TCP_LISTEN:
            kind = "listener"
        local = _address(end.family, end.address, end.port)
        if end.peer_port:
            peer = _address(end.family, end.peer_address, _from_network(end.peer_port))
    elif end.family == _UNIX:
        kind = _UNIX_SOCKETS.get(end.type, "unix")
        local = paths.get(end.inode)
    elif stat.S_ISSOCK(end.mode):
        kind = "socket"
    elif stat.S_ISFIFO(end.mode):
        kind = "pipe"
    else:
        kind, local = by_link(pid, fd)
    return (kind, None, None) if end.several else (kind, local, peer)


def by_link(pid: int, fd: int) -> tuple[str, str | None]:
    """(type, path) of a descriptor, from its current link in /proc."""
    link = proc.link(pid, fd)
    if link is None:
        return "closed", None
    for kind in ("socket", "pipe"):
        if link.startswith(kind + ":["):
            return kind, None
    if link.startswith("anon_inode:"):
        return link[11:].strip("[]"), None
    return "file", link


def _from_network(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, sys.byteorder), "big")


def _address(family: int, raw: bytes, port: int) -> str:
    return sockets.written(raw if family == _INET6 else raw[:4], port)
