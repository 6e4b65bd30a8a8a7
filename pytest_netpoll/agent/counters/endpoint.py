"""What a descriptor was when somebody was woken for it: the kernel's struct endpoint, in words."""

import ipaddress
import socket
import stat
from collections import namedtuple

from processes import proc

_TCP_LISTEN = 10

# As in bpf/netpoll.h. Addresses are bytes.
Endpoint = namedtuple("Endpoint", "inode mode type family port peer_port state several address peer_address")


def copy(end):
    """The Endpoint of a map's value."""
    *numbers, address, peer = (getattr(end, name) for name in Endpoint._fields)
    return Endpoint(*numbers, bytes(address), bytes(peer))


def words(pid, ends):
    """{(fd, Endpoint): (type, local, peer)} for these of a process.

    type: tcp, listener, udp, unix, pipe, …; closed where nobody knows any more. Addresses are "host:port" or
    a unix socket's path, None where there is none, or where there were several.
    """
    unix = {end.inode for _, end in ends if end.family == socket.AF_UNIX}
    paths = proc.unix_paths(pid, unix) if unix else {}
    return {(fd, end): _words(pid, fd, end, paths) for fd, end in ends}


def _words(pid, fd, end, paths):
    local = peer = None
    if end.family in (socket.AF_INET, socket.AF_INET6):
        kind = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}.get(end.type, "ip")
        if kind == "tcp" and end.state == _TCP_LISTEN:
            kind = "listener"
        local = _address(end.family, end.address, end.port)
        if end.peer_port:
            peer = _address(end.family, end.peer_address, socket.ntohs(end.peer_port))
    elif end.family == socket.AF_UNIX:
        kind, local = "unix", paths.get(end.inode)
    elif stat.S_ISSOCK(end.mode):
        kind = "socket"
    elif stat.S_ISFIFO(end.mode):
        kind = "pipe"
    else:
        kind, local = _by_link(proc.link(pid, fd))
    return (kind, None, None) if end.several else (kind, local, peer)


def _by_link(link):
    """(type, path) of what a descriptor is now."""
    if link is None:
        return "closed", None
    for kind in ("socket", "pipe"):
        if link.startswith(kind + ":["):
            return kind, None
    if link.startswith("anon_inode:"):
        return link[11:].strip("[]"), None
    return "file", link


def _address(family, raw, port):
    if family == socket.AF_INET6:
        address = ipaddress.IPv6Address(raw)
        if address.ipv4_mapped is None:
            return "[%s]:%d" % (address, port)
        raw = raw[12:]
    return "%s:%d" % (ipaddress.IPv4Address(raw[:4]), port)
