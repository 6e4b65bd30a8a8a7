"""Ends services, including those of a pytest that was killed before it could.

Run as a script, this file is the guardian: a process beside pytest that learns of every service and, once
pytest is gone, ends those that are left. A fork of it stands by in case it is killed. It imports only the
standard library and starts with `-I -S`, so that the user's environment can't break or slow it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

GUARDIAN_GRACE = 1.0  # seconds between SIGTERM and SIGKILL when pytest is already gone
KILL_PATIENCE = 2.0  # seconds for the kernel to carry out a SIGKILL

READY = b"ready\n"  # sent by the guardian when it is ready

# Set in a service's environment to a unique value: the only way to recognize a daemon, which has a session of
# its own and whose parent is gone.
MARK = "PYTEST_NETPOLL_SERVICE"


class Stat(NamedTuple):
    """What /proc/PID/stat says; `start` is in clock ticks since boot."""

    state: str
    parent: int
    session: int
    start: int


def stat(pid: int) -> Stat | None:
    """The process as the kernel sees it, zombies too; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may itself hold spaces and parentheses: cut at the last one.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Stat(fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def family(known: Mapping[int, int], marks: Collection[str] = ()) -> dict[int, int]:
    """The living processes that belong to `known`; both are {pid: start time}. These are the known processes,
    their sessions' processes (a child stays in the session when its parent dies), all that have one of the
    marks in their environment, and all descendants of these. Reused pids, whose start time differs, don't
    count.
    """
    # Called every few ms, so avoid creating Path objects for all of /proc.
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    table = {pid: entry for pid in pids if (entry := stat(pid))}
    reused = {pid for pid, start in known.items() if pid in table and table[pid].start != start}
    roots = known.keys() - reused
    # Compare the full variable: part of it, or an empty mark, must not end a stranger.
    wanted, oldest = {f"{MARK}={mark}".encode() for mark in marks if mark}, min(known.values(), default=0)
    if wanted:
        roots |= {pid for pid, entry in table.items() if entry.start >= oldest and _bears(pid, wanted)}
    children: dict[int, list[int]] = {}
    for pid, entry in table.items():
        children.setdefault(entry.parent, []).append(pid)
    found: set[int] = set()
    todo = [pid for pid, entry in table.items() if pid in roots or entry.session in roots]
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, ())
    return {pid: table[pid].start for pid in found if table[pid].state not in "ZX"}


def _bears(pid: int, marks: Collection[bytes]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(variable in marks for variable in file.read().split(b"\0"))
    except OSError:  # another user's
        return False


def end(leaders: Mapping[int, int], grace: float, marks: Collection[str] = ()) -> set[int]:
    """Ends the families of `leaders` ({pid: start time}, session leaders) and all processes with the marks.

    SIGTERM to all, then SIGKILL to those left after `grace` seconds. Returns the pids that even SIGKILL did
    not end: other users', or stuck in the kernel.
    """
    known = dict(leaders)
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_PATIENCE)):
        alive = family(known, marks)
        # Only once, because processes that a service starts for a clean shutdown must not get it.
        _send(number, leaders, alive)
        deadline = time.monotonic() + patience
        delay = 0.002
        while alive:
            # Remembered, because a descendant in a session of its own is lost with its parent, and a process
            # that is about to end with its environment.
            known |= alive
            if time.monotonic() > deadline:
                break
            time.sleep(delay)
            delay = min(delay * 1.5, 0.05)
            alive = family(known, marks)
            if number == signal.SIGKILL:
                _send(number, leaders, alive)
        if not alive:
            return set()
    return set(alive)


def _send(number: int, leaders: Iterable[int], alive: Iterable[int]) -> None:
    grouped = set()
    for pid in alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            group = os.getpgid(pid)
            if group not in leaders:
                os.kill(pid, number)
            elif group not in grouped:
                # The whole group in one call, so that a child that is just being forked doesn't escape.
                grouped.add(group)
                os.killpg(group, number)


class NoGuardian(Exception):
    """There is no guardian; the message says why. said: what it printed instead."""

    def __init__(self, why: str, said: str = "") -> None:
        super().__init__(why)
        self.said = said


class Guardian:
    """pytest's side: tells the guardian process what must not outlive pytest."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.leaders: dict[str, tuple[int, int] | None] = {}  # mark -> (pid, start time)
        self._directories: list[Path] = []

    def start(self) -> None:
        """Starts the guardian and waits until it is ready; call it before starting a service. Raises
        NoGuardian.
        """
        if self.process is not None and self.process.poll() is None:
            return
        self.process = _start_guardian()
        # A new guardian takes over the processes of one that was killed.
        directories = map(_directory_line, self._directories)
        if not self._write("".join([*directories, *map(self._line, self.leaders)])):
            raise NoGuardian("it was killed at once")

    def expect(self, mark: str) -> None:
        """Announces a process with the mark, before it has started. Raises NoGuardian."""
        self._set(mark, None)

    def add(self, mark: str, pid: int, start: int) -> None:
        """Adds the session leader with the mark. Raises NoGuardian: then nothing else will end it."""
        self._set(mark, (pid, start))

    def remove(self, mark: str) -> None:
        if mark in self.leaders:
            del self.leaders[mark]
            # Ignored here, since this service has ended; the next one added will report it.
            with contextlib.suppress(NoGuardian):
                self._tell(f"-{mark}\n")

    def remove_later(self, directory: Path) -> None:
        """Removes a directory once the services have ended, even if pytest is killed. Raises NoGuardian."""
        self._directories.append(directory.absolute())
        self._tell(_directory_line(directory.absolute()))

    def _set(self, mark: str, leader: tuple[int, int] | None) -> None:
        self.leaders[mark] = leader
        try:
            self._tell(self._line(mark))
        except NoGuardian:
            del self.leaders[mark]
            raise

    def _line(self, mark: str) -> str:
        return f"+{mark} {' '.join(map(str, self.leaders[mark] or ()))}\n"

    def close(self) -> None:
        """Ends the guardian, which first ends what was added and not removed, and removes the directories."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def _tell(self, text: str) -> None:
        if not self._write(text):
            self.start()

    def _write(self, text: str) -> bool:
        """Writes to the guardian; returns whether there was one to read it."""
        if self.process is None:
            return False
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(text.encode())
        except BrokenPipeError:  # somebody killed it
            self.process.wait()
            return False
        return True


def _start_guardian() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal must only reach pytest
        )
    except OSError as error:
        raise NoGuardian(f"{command[0]}: {error.strerror}") from None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as stdout, process.stderr as stderr:
        # Wait for it: the pipe accepts messages even if the guardian can't run.
        if stdout.readline() == READY:
            return process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_PATIENCE)
        process.kill()
        said = stderr.read().decode(errors="replace")
    raise NoGuardian(f"{shlex.join(command)} ended with exit status {process.wait()}", said)


class _Known:
    """What the guardian knows: mark -> {pid: start time}, empty while the service has only been announced."""

    def __init__(self) -> None:
        self.leaders: dict[str, dict[int, int]] = {}
        self.directories: list[str] = []
        self.done = False  # whether nothing is left to end
        self._rest = b""

    def hear(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            mark, *leader = line[1:].decode().split() or [""]
            if line.startswith(b"+"):
                self.leaders[mark] = {int(leader[0]): int(leader[1])} if leader else {}
            elif line.startswith(b"-"):
                self.leaders.pop(mark, None)
            elif line.startswith(b"/"):
                self.directories.append(os.fsdecode(bytes.fromhex(line[1:].decode())))
            else:
                self.done = True

    def end_all(self) -> None:
        known = {pid: start for leader in self.leaders.values() for pid, start in leader.items()}
        end(known, GUARDIAN_GRACE, self.leaders)
        if self.directories:
            import shutil  # 10 ms, for which each service would wait

        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)


def _directory_line(directory: Path) -> str:
    # In hex: a name may contain a newline, or bytes that aren't text.
    return f"/{os.fsencode(directory).hex()}\n"


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when pytest does, not earlier
    pytest = int(sys.argv[1])
    known = _Known()
    with _stand_by(pytest) as relay:
        poller = select.poll()
        poller.register(0, select.POLLIN)
        # The pipe alone is not enough: a process forked without exec by pytest holds its other end, too.
        with contextlib.suppress(OSError):
            poller.register(os.pidfd_open(pytest), select.POLLIN)
        os.write(1, READY)
        while 0 in dict(poller.poll()):
            data = os.read(0, 4096)
            if not data:
                break
            known.hear(data)
            relay(data)
        known.end_all()


@contextlib.contextmanager
def _stand_by(pytest: int) -> Iterator[Callable[[bytes], None]]:
    """Forks a second guardian, which gets the same messages and takes over if the first one is killed."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(sink)
            _take_over(source, pytest)
        finally:
            os._exit(0)
    os.close(source)

    def relay(data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody killed it
            os.write(sink, data)

    yield relay
    relay(b"done\n")
    os.close(sink)
    os.waitpid(child, 0)


def _take_over(source: int, pytest: int) -> None:
    os.setsid()
    for inherited in (0, 1, 2):
        os.close(inherited)  # else pytest would not notice the first one's end
    known = _Known()
    while data := os.read(source, 4096):
        known.hear(data)
    if not known.done:
        _wait_for_end(pytest)
        known.end_all()


def _wait_for_end(pid: int) -> None:
    with contextlib.suppress(OSError):
        poller = select.poll()
        poller.register(os.pidfd_open(pid), select.POLLIN)
        poller.poll()
        return
    while (entry := stat(pid)) is not None and entry.state not in "ZX":
        time.sleep(0.1)


if __name__ == "__main__":
    main()
