"""Decides when a service is up: checks `ready=`, and waits for it."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pytest_netpoll.errors import NetpollError, ServiceError, UsageError
from pytest_netpoll.service.listeners import listeners_of, network_namespace, outer_address
from pytest_netpoll.service.patience import QUIET_SECONDS, Say

Address = tuple[str, int]
Ready = str | re.Pattern[str] | Callable[[Any], bool] | None

LOOPBACK = "127.0.0.1"
FIRST_DELAY = 0.002  # seconds between two looks, growing up to the longest
LONGEST_DELAY = 0.05
DIAL_TIMEOUT = 1.0  # seconds for one connection or one HTTP answer


class Starting(Protocol):
    """The part of a Service that readiness checks use."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def address(self) -> Address: ...
    @property
    def expected_port(self) -> int | None: ...
    def check_alive(self, when: str) -> None: ...
    def family(self) -> Mapping[int, int]: ...
    def locate(self) -> bool: ...
    def output_of_this_run(self) -> str: ...
    def tail(self) -> str: ...


def checked(ready: object) -> Ready:
    """`ready` itself if it is of a known kind; UsageError otherwise."""
    if isinstance(ready, re.Pattern):
        if isinstance(ready.pattern, str):
            return ready
        why = "a regex for bytes; the output is text"
    elif isinstance(ready, str):
        if ready == "tcp" or ready.startswith("http:/"):
            return ready
        why = f"{ready!r}"
    elif ready is None or callable(ready):
        return ready
    else:
        why = f"a {type(ready).__name__}"
    raise UsageError(
        "go_service does not understand ready=",
        why=why,
        fix='give "tcp", "http:/path", re.compile(...), a callable, or None',
    )


def wait_until_ready(service: Starting, ready: Ready, timeout: float, say: Say | None) -> None:
    """Returns once `ready` holds; ServiceError if the service ends first, or after `timeout` seconds."""
    if ready is None:
        return
    begin = time.monotonic()
    delay = FIRST_DELAY
    said = say is None
    problem: Exception | None = None
    while True:
        look = time.monotonic()
        try:
            done, problem = _holds(service, ready), None
        # Errors that a client gets while the service is not up; anything else is a bug in the callable.
        except (OSError, http.client.HTTPException, NetpollError) as error:
            done, problem = False, error
        service.check_alive("before it was ready")
        if done:
            return
        now = time.monotonic()
        if now - begin > timeout:
            break
        if not said and now - begin > QUIET_SECONDS and say is not None:
            say(f"waiting for {service.name}: {_expected(service, ready)}")
            said = True
        # Spend at most half of the time on checks: the service may need this CPU to start.
        time.sleep(max(min(delay, begin + timeout - now), now - look))
        delay = min(delay * 1.5, LONGEST_DELAY)
    raise ServiceError(
        f"service {service.name!r} was not ready within {timeout:g} s",
        why=f"waited for {_expected(service, ready)}{_instead(service, ready, problem)}",
        fix=(problem.fix if isinstance(problem, NetpollError) else None)
        or "see its output below; ready= and timeout= set what to wait for, and how long",
        detail=service.tail() or "(it printed nothing)",
    )


def find_listener(pid: int, family: Iterable[int], port: int | None = None) -> Address | None:
    """Where the process or its family listens for TCP: on `port`, else on the socket opened first. The host
    can be dialed: the loopback for a wildcard. Raises PermissionError if nothing was found and some processes
    may not be inspected.
    """
    found = _listeners(pid, family)
    if port is not None:
        found = [address for address in found if address[1] == port]
        # IPv4 first: a service that listens on both is expected at 127.0.0.1.
        found.sort(key=lambda address: ":" in address[0])
    return found[0] if found else None


def _listeners(pid: int, family: Iterable[int]) -> list[Address]:
    found: list[Address] = []
    denied = False
    for member in sorted(family, key=lambda p: p != pid):
        try:
            found += [(_dialled(listener.host, member), listener.port) for listener in listeners_of(member)]
        except PermissionError:
            denied = True
    if denied and not found:
        raise PermissionError(f"the sockets of process {pid} can't be seen by this user")
    return found


def _dialled(host: str, pid: int) -> str:
    if host not in ("0.0.0.0", "::"):
        return host.removeprefix("::ffff:")
    # Our loopback doesn't reach another network namespace; a container's own address does.
    return LOOPBACK if network_namespace(pid) == network_namespace() else outer_address(pid) or LOOPBACK


def _holds(service: Starting, ready: Ready) -> bool:
    if isinstance(ready, re.Pattern):
        return ready.search(service.output_of_this_run()) is not None
    if isinstance(ready, str):
        return _listens(service) and (ready == "tcp" or _answers(service, ready.removeprefix("http:")))
    return ready is not None and bool(ready(service))


def _listens(service: Starting) -> bool:
    """Whether this service, not another one on its port, accepts connections. It reads the kernel's tables,
    so that the service doesn't get an unused connection.
    """
    try:
        return service.locate()
    except PermissionError:
        # Another user's process: dial it, or assume that it listens if no port is known.
        return service.expected_port is None or _accepts((LOOPBACK, service.expected_port))


def _accepts(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=DIAL_TIMEOUT).close()
    except OSError:
        return False
    return True


def _answers(service: Starting, path: str) -> bool:
    connection = http.client.HTTPConnection(*service.address, timeout=DIAL_TIMEOUT)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status < 500


def _expected(service: Starting, ready: Ready) -> str:
    port = service.expected_port
    if isinstance(ready, re.Pattern):
        return f"{ready.pattern!r} in its output"
    if ready == "tcp":
        return f"a TCP listener on port {port}" if port else "a TCP listener on any port"
    if isinstance(ready, str):
        where = f" on port {port}" if port else ""
        return f"an answer below 500 to GET {ready.removeprefix('http:')}{where}"
    return f"{getattr(ready, '__name__', ready)}() to return true"


def _instead(service: Starting, ready: Ready, problem: Exception | None) -> str:
    """What was found instead, to be added to the message."""
    if isinstance(problem, NetpollError):
        return f"; the last attempt: {problem.reason.headline}"
    if problem is not None:
        return f"; the last attempt: {type(problem).__name__}: {problem}"
    port = service.expected_port
    if not isinstance(ready, str) or port is None:
        return ""
    with contextlib.suppress(PermissionError):
        others = {p for _, p in _listeners(service.pid, service.family())}
        if port in others:
            return "; it listens there and answers 5xx"
        if others:
            return f"; it listens on {', '.join(map(str, sorted(others)))} instead"
        if _accepts((LOOPBACK, port)):
            return "; another process, not of this service, listens there"
    return ""
