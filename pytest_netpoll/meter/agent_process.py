"""Runs the agent's process: starts it with pipes, reads it in a thread, ends it."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
from typing import IO, Protocol

from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.meter import checks

STOP_DEADLINE = 5.0
_STDERR_LINES = 15


class Transport(Protocol):
    """How an Agent talks to its process."""

    @property
    def pid(self) -> int: ...

    def send(self, line: bytes) -> None:
        """Sends a line. OSError if the agent has ended."""
        ...

    def receive(self, seconds: float) -> bytes | None:
        """The next line; None at the end of the output. Raises queue.Empty after this many seconds."""
        ...

    def hang_up(self) -> None:
        """Closes the agent's stdin, whereupon it exits."""
        ...

    def kill(self) -> None: ...

    def end(self) -> None:
        """Hangs up and waits until the agent has ended; kills it if it doesn't."""
        ...

    def status(self) -> str:
        """Waits for the agent to end; returns how it ended, in words."""
        ...

    def said(self) -> str:
        """The last lines of the agent's stderr."""
        ...


class AgentProcess:
    """A Transport to a process. UnmeasuredError if it can't be started."""

    def __init__(self, argv: list[str]) -> None:
        # A file, not a pipe: nobody has to drain it, and it outlives the agent. In memory, because /tmp may
        # be full or missing.
        self._stderr: IO[bytes] = open(os.memfd_create("netpoll-agent"), "r+b", 0)  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=_environment(),
                # Ctrl-C in the terminal must reach only pytest, which then closes the agent's stdin.
                start_new_session=True,
            )
        except OSError as error:
            raise UnmeasuredError(
                "the eBPF agent could not be started",
                why=f"{argv[0]}: {error.strerror}",
                fix=checks.DOCTOR,
            ) from None
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="netpoll-agent", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def receive(self, seconds: float) -> bytes | None:
        return self._lines.get(timeout=seconds)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def kill(self) -> None:
        # Under sudo we may not kill it; it exits when its stdin closes.
        with contextlib.suppress(OSError):
            self._process.kill()
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_DEADLINE)

    def end(self) -> None:
        self.hang_up()
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._stderr.close()

    def status(self) -> str:
        try:
            return str(self._process.wait(STOP_DEADLINE))
        except subprocess.TimeoutExpired:
            return "none yet"

    def said(self) -> str:
        try:
            size = os.fstat(self._stderr.fileno()).st_size
            text = os.pread(self._stderr.fileno(), 64 << 10, max(0, size - (64 << 10)))
        except (OSError, ValueError):
            return ""
        return "\n".join(text.decode(errors="replace").splitlines()[-_STDERR_LINES:])

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(None)


def _environment() -> dict[str, str]:
    """The environment for the agent, or for its sudo."""
    # Without the variables of a sudo around pytest: the agent's own sudo sets them for its user.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    # In English, to recognize that sudo asks for a password. Only the messages' language: sudo passes the
    # locale on to the agent, which needs it for file names.
    return kept | {"LANGUAGE": "C"}
