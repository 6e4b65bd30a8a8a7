"""Starts a program in two steps, so that the process can be watched before its first instruction."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_netpoll.service import gate, guardian


class NotStarted(Exception):
    """The program can't be started; the message says why."""


class Held:
    """A process that waits before it execs its program. popen: the process, before and after that."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, output: int) -> None:
        """Starts the process in a session of its own, and returns when it waits. Raises NotStarted. env: with
        guardian.MARK in it. output: a file descriptor for its stdout and stderr.
        """
        self._program = argv[0]
        words = [os.fsencode(word) for word in (*argv, *map("=".join, env.items()))]
        if any(b"\0" in word for word in words):
            raise NotStarted(f"{argv[0]}: embedded null byte in its arguments or environment")
        program = b"\0".join(words)
        theirs, self._control = os.pipe()
        self._status, said = os.pipe()
        # Uses pytest's environment, because Python might not start in the program's.
        numbers = (theirs, said, len(program), len(argv))
        command = [sys.executable, "-I", "-S", gate.__file__, *map(str, numbers)]
        try:
            self.popen = subprocess.Popen(
                command,
                env={**os.environ, guardian.MARK: env[guardian.MARK]},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs, said),
                # Its own session: signals of the tests' terminal don't reach it, and ours reach all its
                # processes.
                start_new_session=True,
            )
        except OSError as error:
            self.close()
            raise NotStarted(f"{error.filename}: {error.strerror}") from None
        finally:
            os.close(theirs)
            os.close(said)
        try:
            self._tell(program)
            if os.read(self._status, len(gate.HERE)) != gate.HERE:
                raise NotStarted(f"{command[0]} ended with exit status {self.popen.wait()}")
        except BaseException:  # Ctrl-C, too
            self.close()
            raise

    def release(self) -> None:
        """Lets it exec; returns once it runs its program or has ended. NotStarted if there is no such
        program.
        """
        self._tell(b"\n")
        failed = os.read(self._status, 16)
        self.close()
        if failed:
            raise NotStarted(f"{self._program}: {os.strerror(int(failed))}")

    def close(self) -> None:
        """Ends the process if it still waits."""
        os.close(self._control)
        os.close(self._status)

    def _tell(self, text: bytes) -> None:
        with contextlib.suppress(BrokenPipeError), open(self._control, "wb", 0, closefd=False) as control:
            while text:
                text = text[control.write(text) :]
