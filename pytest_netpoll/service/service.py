"""One service under test: launches or finds its process, waits for it, stops it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import signal
import subprocess
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import psutil

from pytest_netpoll.errors import NetpollError, Reason, ServiceError, UsageError
from pytest_netpoll.gobinary.go_version import go_version_of, go_version_of_program
from pytest_netpoll.gobinary.gomaxprocs import gomaxprocs_of
from pytest_netpoll.service import containers, guardian
from pytest_netpoll.service.launch import Held, NotStarted
from pytest_netpoll.service.listeners import port_holder, ports_of
from pytest_netpoll.service.output import Output, Pipe, last_words
from pytest_netpoll.service.readiness import LOOPBACK, Address, find_listener, wait_until_ready
from pytest_netpoll.service.spec import Spec, process_name

if TYPE_CHECKING:
    from pytest_netpoll.service.factory import ServiceFactory

# As seen by a parent that waits for the process; signals that come from outside.
_KILLS = (-signal.SIGHUP, -signal.SIGINT, -signal.SIGKILL, -signal.SIGTERM)
STOP_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
PORT_RETRIES = 3  # other ports to try if another process took the free one
TAKEN = "address already in use"  # what programs print then, in lower case


class Service:
    """A service under test. Made by the `go_service` fixture.

    name: unique among the services that run at the same time, and in all measurements of a test. asked_name:
    the name that it would have if that had been free.
    """

    def __init__(self, name: str, spec: Spec, factory: ServiceFactory, asked_name: str | None = None) -> None:
        self.name = name
        self.asked_name = asked_name or name
        self._spec = spec
        self._factory = factory
        self._output = Output()
        self._run_begin = 0  # where in the output the current run begins
        self._began = ""  # when the current run of a container began
        self._pipe: Pipe | None = None
        self._held: Held | None = None  # until its watchers have been called
        self._popen: subprocess.Popen[bytes] | None = None
        self._parent = os.getpid()
        self._process: psutil.Process | None = None
        self._leader: dict[int, int] = {}
        self._mark = ""  # of the current run
        self._free_port = spec.port
        self._named_ports: dict[str, int] = {}
        self._address: Address | None = None
        self._executable = ""
        self._go_version: str | None = None
        self._gomaxprocs: int | None = None
        self._cpus: int | None = None
        self._stopped = True
        self._retired = False
        self._heard = False  # whether it was seen listening on its port in this run
        self._was_ready = False
        self._crash: str | None = None

    def __repr__(self) -> str:
        return f"<Service {self.name} pid={self._process.pid if self._process else None}>"

    @property
    def pid(self) -> int:
        """The pid of its main process; changes with every restart."""
        if self._process is None:
            raise ServiceError(f"service {self.name!r} has no process", why="it was never started")
        return self._process.pid

    @property
    def address(self) -> Address:
        """(host, port) to connect to.

        Its {port} if it was given one, else the first TCP port that it listens on. ServiceError if there is
        none, UsageError once the fixture or test that asked for it has ended.
        """
        if self._retired:
            raise UsageError(
                f"service {self.name!r} no longer exists",
                why="the fixture or test that asked for it has ended, and the service with it",
                fix="to use it in several tests, call go_service in a fixture of a wider scope",
            )
        if self._address is None:
            why = "it does not listen on any TCP port"
            try:
                self.locate()
            except PermissionError as error:
                why = str(error)
            if self._address is None:
                raise ServiceError(
                    f"the port of service {self.name!r} is not known",
                    why=why,
                    fix=None if self.attached else "put {port} into its arguments or environment",
                    detail=self.tail(),
                )
        return self._address

    @property
    def port(self) -> int:
        """The second half of `address`."""
        return self.address[1]

    @property
    def ports(self) -> Mapping[str, int]:
        """Its further ports, by the names in its arguments and environment: "http" for {port:http}."""
        return dict(self._named_ports)

    @property
    def url(self) -> str:
        """The address as a URL: "http://127.0.0.1:8080"."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def pprof_url(self) -> str | None:
        """The URL at which it serves net/http/pprof, if go_service got pprof=."""
        place = self._spec.pprof
        return f"{self.url}{place}" if place is not None and place.startswith("/") else place

    @property
    def serves_pprof(self) -> bool:
        return self._spec.pprof is not None

    @property
    def log(self) -> str:
        """Its output so far, over all restarts; only the start and the end if it is very long."""
        self._catch_up()
        return self._output.text()

    @property
    def executable(self) -> str:
        """The path of the running program; "" if it can't be read, as for another user's process."""
        self._inspect()
        return self._executable

    @property
    def go_version(self) -> str | None:
        """Its version of Go, such as "go1.26.8"; None if it isn't a Go program."""
        self._inspect()
        return self._go_version

    @property
    def gomaxprocs(self) -> int | None:
        """Its GOMAXPROCS as last seen; None if it can't be read. Behind a wrapper, that of the Go process
        that has used the most CPU time.
        """
        self._look_at_ps()
        return self._gomaxprocs

    @property
    def cpus(self) -> int | None:
        """How many CPUs the process with that GOMAXPROCS may run on, as last seen; None if unknown."""
        self._look_at_ps()
        return self._cpus

    @property
    def attached(self) -> bool:
        """Whether somebody else started it (`pid=`, `container=`) and will stop it."""
        return self._spec.pid is not None or self._spec.container is not None

    @property
    def running(self) -> bool:
        if self._process is None or (self._stopped and self.attached):
            return False
        if self._popen is not None and self._parent == os.getpid():
            return self._popen.poll() is None
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def stopped(self) -> bool:
        """Whether `stop` ended it, or it was never started; a crashed service is not stopped."""
        return self._stopped

    @property
    def retired(self) -> bool:
        """Whether it has ended with the fixture or test that asked for it."""
        return self._retired

    @property
    def returncode(self) -> int | None:
        """The exit status, -N for signal N; None while it runs, and for attached processes."""
        # Only its parent can know, not a process forked from that.
        return self._popen.poll() if self._popen is not None and self._parent == os.getpid() else None

    @property
    def ending(self) -> str:
        """How its process ended, with its last words: "exit status 2: panic: boom"."""
        said = self.last_words().partition("\n")[0]
        return f"{_ending(self.returncode)}: {said}" if said else _ending(self.returncode)

    @property
    def crash(self) -> str | None:
        """How it had ended by itself when `stop` or `restart` was last called; None if it hadn't."""
        return self._crash

    def last_words(self) -> str:
        """The Go panic in its current run, with the stack of its goroutine; "" without one."""
        return last_words(self.output_of_this_run())

    def tail(self, lines: int = 20) -> str:
        """The last lines of the output."""
        self._catch_up()
        return self._output.tail(lines)

    def check_alive(self, when: str = "") -> None:
        """ServiceError, with the end of the output, if the service is not running. when: added to the
        message, such as "before it was ready".
        """
        if self.running:
            return
        why, fix = "it was stopped" if self._stopped else _ending(self.returncode), None
        if not self._stopped and self._spec.container is not None:
            why, fix = self._spec.container.ending(self.pid) or (why, fix)
        raise ServiceError(
            f"service {self.name!r} ended" + (f" {when}" if when else ""),
            why=why,
            fix=fix,
            detail=self.tail() or "(it printed nothing)",
        )

    def restart(self) -> None:
        """Stops it and starts it again on the same port, with another pid; returns when it is ready.

        A container is restarted by its engine, and keeps its published ports.
        """
        if self._spec.container is not None:
            self.stop()
            self._spec.container.restart()
            self.start()
            return
        if self.attached:
            raise UsageError(
                f"service {self.name!r} cannot be restarted",
                why="pytest did not start it",
            )
        if self._retired:
            raise UsageError(
                f"service {self.name!r} cannot be restarted",
                why="the fixture or test that asked for it has ended",
                fix="ask for it in a fixture of a wider scope",
            )
        self.stop()
        self.start()

    def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL after 5 s, to it and all its descendants; attached services keep
        running.

        Stopping twice is fine. ServiceError if even SIGKILL does not end it.
        """
        if self._stopped:
            return
        self._inspect()
        self._look_at_ps()  # an open window asks for it when it closes
        if self.running:
            self._hears()
        if self._held is not None:  # nothing will release it any more
            self._held.close()
            self._held = None
        # A test that kills it and then stops it did so on purpose; but a panic is never on purpose.
        crashed = self._was_ready and (self.returncode or 0) not in (0, *_KILLS)
        survivors = set() if self.attached else guardian.end(self._leader, STOP_GRACE, [self._mark])
        if not survivors:
            if self._popen is not None:
                self._popen.wait()
            self._catch_up()
            self._factory.guardian.remove(self._mark)
        # If it was printing its panic, it died before it was stopped.
        crashed = crashed or (self._was_ready and self.returncode == 2 and bool(self.last_words()))
        self._crash = self.ending if crashed else None
        self._stopped = True
        self._factory.stopped(self)
        if survivors:
            raise ServiceError(
                f"service {self.name!r} could not be stopped",
                why=f"SIGKILL did not end {', '.join(map(str, sorted(survivors)))}",
                fix=f"sudo kill -9 {' '.join(map(str, sorted(survivors)))}",
            )

    # For the plugin, the factory and readiness checks.

    def retire(self) -> None:
        """Like `stop`, but for good: frees its name and port."""
        self._retired = True
        try:
            self.stop()
        finally:
            for port in (self._free_port, *self._named_ports.values()):
                self._factory.retired(port)

    def family(self) -> dict[int, int]:
        """The service's living processes, as {pid: start time}: those that `stop` ends. For an attached
        process, that process and its descendants.
        """
        if self._leader:
            return guardian.family(self._leader, [self._mark])
        start = guardian.stat(self._process.pid) if self._process is not None else None
        return guardian.family({self.pid: start.start}) if start is not None else {}

    def why_elsewhere(self) -> Reason | None:
        """Why clients may reach something else at its port; None if they reach this service, or it has no
        port.
        """
        if self._free_port is None or self._hears():
            return None
        holder = port_holder(self._free_port)
        if holder == os.getpid():
            return None  # a test double, whose port the service was given
        return Reason(
            f"no process of service {self.name!r} listens on port {self._free_port}, which clients use",
            why=f"process {holder} ({process_name(holder)}) does"
            if holder
            else "and no other process here does",
            fix="watch the one that serves, with go_service(port=…) or pid=…; if no client uses {port}, "
            "leave it out",
        )

    def _hears(self) -> bool:
        """Whether the service has been seen on its port since it was started, or can't be inspected."""
        if not self._heard and self._free_port is not None:
            try:
                self._heard = any(self._free_port in ports_of(pid) for pid in self.family())
            except PermissionError:
                return True
        return self._heard

    @property
    def expected_port(self) -> int | None:
        """The value of {port}; None if there is no {port}."""
        return self._free_port

    def output_of_this_run(self) -> str:
        self._catch_up()
        return self._output.text(self._run_begin)

    def locate(self) -> bool:
        """Whether it listens for TCP (on its {port} if it has one); `address` is then the real one. Raises
        PermissionError if that can't be seen.
        """
        if self._process is None:
            return False
        found = find_listener(self.pid, self.family(), self._free_port)
        if found is not None:
            self._address = found
            self._heard = True
        return found is not None

    def start(self) -> None:
        """Starts it and waits until it is ready; on an error, none of its processes is left running."""
        # It gets the same port again, because clients know it.
        retries = PORT_RETRIES if self._free_port is None and not self._named_ports else 0
        while True:
            if self._spec.wants_port and self._free_port is None:
                self._free_port = self._factory.free_port()
            for name in self._spec.port_names:
                if name not in self._named_ports:
                    self._named_ports[name] = self._factory.free_port()
            try:
                self._spawn()
                self._wait_until_ready()
                self._was_ready = True
                self._inspect()
                self._look_at_ps()
                self._hears()
                self._factory.ready(self)
                return
            except BaseException as error:
                again = retries > 0 and isinstance(error, ServiceError) and self._lost_its_port()
                with contextlib.suppress(NetpollError):
                    self.stop()
                if not again:
                    raise
                retries -= 1
                self._free_port = None
                self._named_ports.clear()

    def _wait_until_ready(self) -> None:
        container = self._spec.container
        try:
            wait_until_ready(self, self._spec.ready, self._spec.timeout, self._factory.say)
        except ServiceError:
            if container is not None:  # after waiting is over, they have to be reported
                containers.check_go(container.name, self.pid)
            raise
        if container is not None:
            containers.check_go(container.name, self.pid)

    def _lost_its_port(self) -> bool:
        """Whether it ended because one of its ports was taken, as far as can be seen."""
        own = {self._free_port, *self._named_ports.values()} - {None}
        if self.returncode is None or not own:
            return False
        said = [line for line in self.output_of_this_run().splitlines() if TAKEN in line.lower()]
        # Go's message has the port. If that isn't ours, other ones don't help.
        ports = {int(port) for line in said for port in re.findall(r":(\d{4,5})\b", line)}
        return bool(said) and (not ports or bool(ports & own))

    def _spawn(self) -> None:
        self._address = (LOOPBACK, self._free_port) if self._free_port is not None else None
        self._heard = False
        if self._spec.container is not None:
            self._attach(self._spec.container.pid())
            self._began = containers.began(self.pid)
        elif self._spec.pid is None:
            self._launch()
        else:
            self._attach(self._spec.pid)
        self._stopped = self._was_ready = False
        begun = self._factory.spawned(self)
        if self._held is not None:
            self._begin(self._held)
            if begun is not None:
                begun()
        self._inspect()

    def _attach(self, pid: int) -> None:
        try:
            self._process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            raise ServiceError(
                f"cannot watch process {pid}",
                why="there is no such process",
                fix="give the pid of a running one",
            ) from None

    def _launch(self) -> None:
        try:
            self._factory.guardian.start()
            self._launch_guarded()
        except guardian.NoGuardian as error:
            raise ServiceError(
                f"cannot start service {self.name!r}",
                why=f"the process that would end it if pytest were killed cannot be started: {error}",
                detail=error.said,
            ) from None

    def _launch_guarded(self) -> None:
        self._mark, self._leader = secrets.token_hex(8), {}
        # Before it starts, because pytest may be killed at any moment after that.
        self._factory.guardian.expect(self._mark)
        try:
            self._start_process()
        except BaseException:  # Ctrl-C, too: nothing else would stop it yet
            guardian.end(self._leader, 0, [self._mark])
            self._factory.guardian.remove(self._mark)
            if self._leader and self._popen is not None:
                self._popen.wait()
            raise

    def _start_process(self) -> None:
        argv, env = self._spec.with_ports(self._free_port, self._named_ports)
        if self._popen is not None:
            self._output.add(b"[started again by pytest-netpoll]\n")
        self._run_begin = self._output.size
        pipe = Pipe(self._output)
        try:
            self._held = Held(argv, env | {guardian.MARK: self._mark}, self._spec.cwd, pipe.write_end)
        except NotStarted as error:
            raise self._cannot_start(error) from None
        finally:
            pipe.close_write_end()
        self._popen, self._parent = self._held.popen, os.getpid()
        self._pipe = pipe
        stat = guardian.stat(self._popen.pid)
        assert stat is not None  # a child stays in /proc until it is waited for, at least as a zombie
        self._leader = {self._popen.pid: stat.start}
        self._factory.guardian.add(self._mark, self._popen.pid, stat.start)
        self._process = psutil.Process(self._popen.pid)

    def _begin(self, held: Held) -> None:
        """Lets it run its first instruction: everything that watches it is in place."""
        self._held = None
        try:
            held.release()
        except NotStarted as error:
            raise self._cannot_start(error) from None

    def _cannot_start(self, error: NotStarted) -> ServiceError:
        argv, _ = self._spec.with_ports(self._free_port, self._named_ports)
        return ServiceError(
            f"cannot start service {self.name!r}",
            why=str(error),
            fix=f"run it by hand: cd {self._spec.cwd} && {shlex.join(argv)}",
        )

    def _catch_up(self) -> None:
        if self._pipe is not None:
            self._pipe.catch_up()
        if self._began and self._spec.container is not None:
            printed = Output()  # its engine keeps the output: read all of this run each time
            printed.add(self._spec.container.output(self._began))
            self._output = printed

    def _inspect(self) -> None:
        """Updates what the process runs: a shell or a wrapper may have exec'ed the service meanwhile."""
        if self._process is None or not self.running:
            return
        with contextlib.suppress(psutil.Error):
            path = psutil.Process(self.pid).exe()  # the old one caches its answers
            if path and path != self._executable:
                self._executable = path
                # Not by the path, where a newer build may be; the link leads to the running one.
                self._go_version = go_version_of(f"/proc/{self.pid}/exe")

    def _look_at_ps(self) -> None:
        """Updates GOMAXPROCS and the CPUs for its threads, both of one process."""
        if self._process is None or not self.running:
            return
        pid = self.pid if self.go_version is not None else _busiest_go_process(self.family())
        gomaxprocs = None if pid is None else gomaxprocs_of(pid)
        if pid is not None and gomaxprocs is not None:
            with contextlib.suppress(OSError):  # it has ended
                self._cpus = len(os.sched_getaffinity(pid))
                self._gomaxprocs = gomaxprocs


def _busiest_go_process(pids: Collection[int]) -> int | None:
    """Of these, the Go process that has used the most CPU time; None if none is Go's."""
    used: dict[int, float] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if go_version_of_program(f"/proc/{pid}/exe") is not None:
                used[pid] = sum(psutil.Process(pid).cpu_times()[:2])
    return max(used, key=lambda pid: used[pid], default=None)


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "the process is gone"
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
