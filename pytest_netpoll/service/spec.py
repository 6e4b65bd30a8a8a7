"""Checks the arguments of `go_service`: every mistake in them is a UsageError from here."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_netpoll.errors import UsageError
from pytest_netpoll.service.containers import Container
from pytest_netpoll.service.readiness import Ready

# Arguments for processes that run already.
ATTACHED = ("pid", "port", "process", "container")

Argument = str | os.PathLike[str]

_NAMED_PORT = re.compile(r"\{port:(\w+)\}")


@dataclass(frozen=True)
class Spec:
    """What to start and how to know that it is up; `pid` or `container` for a process that runs already.
    port: the one it is known to listen on. pprof: where it serves net/http/pprof: a path, or a URL.
    """

    ready: Ready
    timeout: float
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    pid: int | None = None
    port: int | None = None
    container: Container | None = None
    pprof: str | None = None

    @property
    def wants_port(self) -> bool:
        return any("{port}" in text for text in self._texts)

    @property
    def port_names(self) -> list[str]:
        """The names of further ports: "http" for {port:http}."""
        return list(dict.fromkeys(name for text in self._texts for name in _NAMED_PORT.findall(text)))

    @property
    def _texts(self) -> tuple[str, ...]:
        return (*self.argv, *(self.env or {}).values())

    def with_ports(self, port: int | None, named: Mapping[str, int]) -> tuple[list[str], dict[str, str]]:
        """The spec with every {port} and {port:name} in arguments and environment filled in."""

        def fill(text: str) -> str:
            text = text if port is None else text.replace("{port}", str(port))
            return _NAMED_PORT.sub(lambda match: str(named.get(match[1], match[0])), text)

        own = {name: fill(value) for name, value in (self.env or {}).items()}
        return [fill(text) for text in self.argv], os.environ | own


def check_combination(
    what: Mapping[str, object],
    *,
    for_packages: Mapping[str, object],
    for_launches: Mapping[str, object],
    for_containers: Mapping[str, object],
) -> None:
    """Checks that exactly one of `what` is given, and no argument that only makes sense with another one."""
    given = [name for name, value in what.items() if value is not None]
    if len(given) != 1:
        raise UsageError(
            f"go_service needs exactly one of {', '.join(what)}", why=f"got {' and '.join(given) or 'none'}"
        )
    # If an argument has no effect, the test doesn't test what was intended.
    others = {} if given == ["package"] else dict(for_packages)
    others |= for_launches if given[0] in ATTACHED else {}
    others |= {} if given == ["container"] else for_containers
    if idle := [name for name, value in others.items() if value]:
        raise UsageError(f"go_service: {', '.join(idle)} can't be combined with {given[0]}")


def checked_directory(rootdir: Path, cwd: Argument | None) -> Path:
    directory = rootdir / Path(cwd or "")
    if not directory.is_dir():
        raise UsageError(f"go_service: there is no directory {directory}", why=f"cwd={str(cwd)!r}")
    return directory


def checked_timeout(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise UsageError("go_service: timeout= must be seconds, more than 0", why=f"got {timeout!r}")
    return timeout


def words(value: object, argument: str) -> list[str]:
    """A command line as a list: a str is split as a shell would, each item of a sequence is one word."""
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise UsageError(f"go_service: cannot split {argument}={value!r}", why=str(error)) from None
    if isinstance(value, os.PathLike):
        return [os.fspath(value)]
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [str(item) for item in value]
    raise UsageError(
        f"go_service: {argument}= must be a list or a str", why=f"got a {type(value).__name__}: {value!r}"
    )


def checked_pid(pid: object) -> int:
    if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
        raise UsageError("go_service: pid= must be the number of a process", why=f"got {pid!r}")
    return pid


def process_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return str(pid)
