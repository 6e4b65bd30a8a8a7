"""Finds the one running process for `go_service(port=…)` or `go_service(process=…)`."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil

from pytest_netpoll.errors import ServiceError, UsageError
from pytest_netpoll.service.listeners import listeners_of, network_namespace
from pytest_netpoll.service.patience import QUIET_SECONDS, Say

LOOK_AGAIN = 0.1  # seconds

# Proxies that listen on the host for a container aren't the service.
PORT_FORWARDERS = ("docker-proxy", "rootlessport", "slirp4netns", "pasta")


class Search(NamedTuple):
    """What to search for, in words, and how: `look` returns the pids, and how many processes were hidden.
    no_own: that none of the user's processes is it, in words, if others were hidden.
    """

    what: str
    look: Callable[[], tuple[list[int], int]]
    no_own: str = ""


def by_port(port: object) -> Search:
    """Searches for the process that listens on the TCP port: here, else in other network namespaces."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 1 << 16:
        raise UsageError("go_service: port= must be a TCP port", why=f"got {port!r}")
    return Search(
        f"process that listens on TCP port {port}",
        lambda: _listening(port),
        f"none of your processes listens on TCP port {port}",
    )


def by_name(name: object) -> Search:
    """Searches for the process whose program has the name, or the path if it contains a slash."""
    if not isinstance(name, str) or not name.strip():
        raise UsageError(
            "go_service: process= must be the name of a program, or its path", why=f"got {name!r}"
        )
    return Search(f"process {name!r}", lambda: (_named(name), 0))


def find(search: Search, timeout: float, say: Say | None) -> int:
    """Returns the pid; of a process and its children, that of the process. Waits up to `timeout` seconds.
    Raises ServiceError if there is none, or several unrelated ones.
    """
    begin = time.monotonic()
    said = say is None
    while True:
        pids, hidden = search.look()
        found = _outermost(pids)
        if found:
            break
        waited = time.monotonic() - begin
        if waited >= timeout:
            raise _not_found(search, hidden)
        if not said and waited > QUIET_SECONDS and say is not None:
            say(f"waiting for a {search.what}")
            said = True
        time.sleep(min(LOOK_AGAIN, timeout - waited))
    if len(found) > 1:
        raise ServiceError(
            f"there is more than one {search.what}",
            fix=f"give the one that you mean, such as pid={found[0]}",
            detail="\n".join(map(_description, found)),
        )
    return found[0]


def _not_found(search: Search, hidden: int) -> ServiceError:
    if not hidden:
        return ServiceError(f"there is no {search.what}", fix="start it first, or give its pid")
    return ServiceError(
        f"{search.no_own} ({hidden} of other users could not be inspected)",
        fix="start the service first; if another user runs it, run this as root, or give its pid",
    )


def _listening(port: int) -> tuple[list[int], int]:
    here: list[int] = []
    elsewhere: list[int] = []
    forwarders: list[int] = []
    hidden = 0
    own = network_namespace()
    for pid in psutil.pids():
        try:
            if any(listener.port == port for listener in listeners_of(pid)):
                at_home = here if network_namespace(pid) == own else elsewhere
                (forwarders if _name(pid) in PORT_FORWARDERS else at_home).append(pid)
        except PermissionError:
            hidden += 1
    if forwarders and not here and not elsewhere:
        raise ServiceError(
            f"process {forwarders[0]} is {_name(forwarders[0])}, which forwards the port to a container",
            fix="give the service itself: the port that it has inside, process=NAME, or pid=",
        )
    # Each container may have this port; by default it means one in our namespace.
    return here or elsewhere, hidden


def _named(name: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["name", "exe", "status"]):
        path = process.info["exe"] or ""
        known_as = {path} if os.sep in name else {process.info["name"], os.path.basename(path)}  # noqa: PTH119
        if name in known_as and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process.pid)
    return found


def _outermost(pids: Sequence[int]) -> list[int]:
    """The processes that don't descend from another one: a service is watched with all its children."""
    found = []
    for pid in pids:
        try:
            above = psutil.Process(pid).parents()
        except psutil.Error:
            continue
        if not any(parent.pid in pids for parent in above):
            found.append(pid)
    return sorted(found)


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""


def _description(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"  pid={pid}  {process.username()}  {shlex.join(process.cmdline()) or process.name()}"
    except psutil.Error:
        return f"  pid={pid}"
