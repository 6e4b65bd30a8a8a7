"""The agent's process: started with pipes, read by a thread, ended with everything it has in the kernel."""

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
    """What a Probe needs from the other end."""

    @property
    def pid(self) -> int: ...

    def send(self, line: bytes) -> None:
        """OSError where it has ended."""
        ...

    def receive(self, seconds: float) -> bytes | None:
        """Its next line, None at the end of its output; queue.Empty after so many seconds."""
        ...

    def hang_up(self) -> None:
        """Closes its stdin: it then exits."""
        ...

    def kill(self) -> None: ...

    def end(self) -> None:
        """Hangs up, and waits until it has ended; kills it where it does not."""
        ...

    def status(self) -> str:
        """How it ended, in words; waits for it."""
        ...

    def said(self) -> str:
        """The end of its stderr."""
        ...


class AgentProcess:
    """A Transport. UnmeasuredError where it cannot be started."""

    def __init__(self, argv: list[str]) -> None:
        # A file rather than a pipe: nobody has to drain it, and it outlives the agent. In memory, for
        # /tmp may be full, or not be there.
        self._stderr: IO[bytes] = open(os.memfd_create("netpoll-agent"), "r+b", 0)  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=_environment(),
                # Ctrl-C in the terminal is for pytest, which then closes the agent's stdin.
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
        # Under sudo it is not ours to kill; it ends by itself when its stdin closes.
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
    """What the agent, or its sudo, is started with."""
    # Those of a sudo around pytest, where the agent's own would speak for whom it serves.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    # That sudo asks for a password is to be read in what it says. No more of the locale than that: sudo
    # passes it on to the agent, who reads file names by it.
    return kept | {"LANGUAGE": "C"}
