"""Makes services from what a test asks for: a package to build, a command, or a process that runs."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.service import containers, debug_endpoint, guardian
from pytest_netpoll.service.build import Builder, Builds, GoTool, package_name
from pytest_netpoll.service.discovery import by_name, by_port, find
from pytest_netpoll.service.patience import Say
from pytest_netpoll.service.readiness import LOOPBACK, Ready, checked
from pytest_netpoll.service.service import Service
from pytest_netpoll.service.spec import (
    Argument,
    Spec,
    check_combination,
    checked_directory,
    checked_pid,
    checked_timeout,
    process_name,
    words,
)


class ServiceFactory:
    """What the `go_service` fixture returns: call it to get a running, ready Service.

    rootdir: where relative packages, commands and `cwd` start.
    cache_dir: keeps the built executables; may be shared between concurrent sessions.
    on_spawn: called with every new process (each restart too). A launched one begins to run its program only
    when this returns; the result, if any, is called then. on_exit: called when a service was stopped, or
    failed to get ready. on_ready: called with every service that is ready (each restart too). taken: names
    that new services must not have, besides those of running ones. say: called with messages about slow work.
    go: the default toolchain; None for the one on PATH. builder: builds the packages; None for a new one.
    new: makes the services. services: those spawned and not stopped, crashed ones included, in the order they
    were made.
    """

    def __init__(
        self,
        *,
        rootdir: Path,
        cache_dir: Path,
        on_spawn: Callable[[Service], Callable[[], None] | None] | None = None,
        on_exit: Callable[[Service], None] | None = None,
        on_ready: Callable[[Service], None] | None = None,
        taken: Callable[[], Collection[str]] = tuple,
        say: Say | None = None,
        go: GoTool | None = None,
        builder: Builds | None = None,
        new: Callable[[str, Spec, ServiceFactory, str | None], Service] = Service,
    ) -> None:
        self.services: list[Service] = []
        self.guardian = guardian.Guardian()
        self.say = say
        self._rootdir = rootdir.absolute()
        self.on_spawn = on_spawn
        self.on_exit = on_exit
        self._on_ready = on_ready
        self._taken = taken
        self._builder = builder or Builder(cache_dir, say)
        self._new = new
        self._go = go
        self._ports: set[int] = set()
        self._naming = threading.Lock()
        self._starting: set[str] = set()  # names

    def __call__(
        self,
        package: Argument | None = None,
        *,
        command: Argument | Sequence[object] | None = None,
        pid: int | None = None,
        name: str | None = None,
        args: str | Sequence[object] = (),
        env: Mapping[str, object] | None = None,
        cwd: Argument | None = None,
        ready: Ready = "tcp",
        go: str | None = None,
        build_flags: str | Sequence[object] = (),
        timeout: float = 30,
        port: int | None = None,
        process: str | None = None,
        container: str | None = None,
        engine: str | None = None,
        pprof: str | None = None,
    ) -> Service:
        """Build a Go package, run a command, or find a running process; return the service when it is ready.

        package: directory (from `cwd` or rootdir), or import path.
        command: the program and its arguments; a str is split as a shell would.
        name: default: the program's.
        args, env: added to the command and the environment; {port} in them (and in `command`) becomes one
            free port, and {port:http} another one, for each such name.
        ready: "tcp", "http:/path" (any status below 500), a regex on the output, a callable that
            takes the Service, or None.
        go: version ("1.21.13"), or path of a go binary or GOROOT, for `package`; overrides --netpoll-go.
        timeout: seconds until it must be ready.
        pid, port, process: a process that is running, or will be soon: its PID, the TCP port it listens on,
            the name or path of its program. It is watched with its children, and left running.
        container: the name or id of a running container, which is left running too.
        engine: "docker", "podman" or the path of one, if both have a container of that name.
        pprof: where it serves net/http/pprof: a path such as "/debug/pprof", or a URL. If a test fails,
            --netpoll-artifacts repeats its call and gets profiles and a trace from there.
        Raises UsageError for wrong arguments, ServiceError when it cannot be built or is not ready.
        """
        directory = checked_directory(self._rootdir, cwd)
        check_combination(
            {
                "package": package,
                "command": command,
                "pid": pid,
                "port": port,
                "process": process,
                "container": container,
            },
            for_packages={"go": go, "build_flags": build_flags},
            for_launches={"args": args, "env": env, "cwd": cwd},
            for_containers={"engine": engine},
        )
        ready, timeout = checked(ready), checked_timeout(timeout)
        debug = debug_endpoint.checked(pprof)
        if port is not None or process is not None:
            search = by_port(port) if port is not None else by_name(process)
            pid = find(search, 0 if ready is None else timeout, self.say)
        if container is not None:
            spec = Spec(ready, timeout, container=containers.find(container, engine), pprof=debug)
            default_name = container
        elif pid is not None:
            spec = Spec(ready, timeout, pid=checked_pid(pid), port=port, pprof=debug)
            default_name = process_name(pid)
        else:
            own = {key: str(value) for key, value in (env or {}).items()}
            if package is not None:
                target, flags = os.fspath(package), words(build_flags, "build_flags")
                program = self._builder.build(target, base=directory, go=go or self._go, flags=flags, env=own)
                head, default_name = [str(program)], package_name(target, directory)
            else:
                head = words(command, "command")
                if not head:
                    raise UsageError("go_service: command= is empty")
                default_name = Path(head[0]).name
            spec = Spec(ready, timeout, (*head, *words(args, "args")), own, directory, pprof=debug)
        asked = name or default_name
        with self._named(asked) as unique:
            service = self._new(unique, spec, self, asked)
            service.start()
        return service

    def stop_all(self) -> None:
        """Stops all services, the youngest first; raises the first error after trying all."""
        errors = []
        for service in reversed(self.services.copy()):
            try:
                service.stop()
            except NetpollError as error:
                errors.append(error)
        self.guardian.close()
        if errors:
            raise errors[0]

    # For Service.

    def spawned(self, service: Service) -> Callable[[], None] | None:
        """Returns a function to call once it runs its program, if any."""
        self.services.append(service)
        return self.on_spawn(service) if self.on_spawn is not None else None

    def stopped(self, service: Service) -> None:
        self.services.remove(service)
        if self.on_exit is not None:
            self.on_exit(service)

    def ready(self, service: Service) -> None:
        if self._on_ready is not None:
            self._on_ready(service)

    def retired(self, port: int | None) -> None:
        """Frees the port of a service that won't be started again."""
        if port is not None:
            self._ports.discard(port)

    def free_port(self) -> int:
        """A free TCP port of 127.0.0.1 that no other service of ours was given."""
        while True:
            with socket.socket() as probe:
                probe.bind((LOOPBACK, 0))
                port: int = probe.getsockname()[1]
            if port not in self._ports:
                self._ports.add(port)
                return port

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[str]:
        """The name, or a variant that no other service has, or gets in another thread during the block."""
        with self._naming:
            taken = {service.name for service in self.services} | set(self._taken()) | self._starting
            candidate, number = name, 1
            while candidate in taken:
                number += 1
                candidate = f"{name}-{number}"
            self._starting.add(candidate)
        try:
            yield candidate
        finally:
            self._starting.remove(candidate)
