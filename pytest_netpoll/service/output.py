"""Keeps what a service prints, in bounded memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import threading

HEAD_BYTES = 64 << 10
TAIL_BYTES = 2016 << 10  # between one and two times this many are kept: with the head at most 4 MiB
PIPE_BYTES = 1 << 20
READ_BYTES = 256 << 10
SHOWN_BYTES = 16 << 10  # characters of a tail with very long lines

# How the last message of Go's runtime begins; a goroutine's stack follows.
_LAST_WORDS = re.compile(r"^(?:panic|fatal error|runtime: out of memory|SIG[A-Z]+): .*", re.MULTILINE)
_LAST_WORDS_LINES = 16


class Output:
    """The start and the end of a stream of bytes, safe to write and read from different threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._head = bytearray()
        self._tail = bytearray()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes added so far, kept or not."""
        return self._size

    def add(self, data: bytes) -> None:
        with self._lock:
            self._size += len(data)
            room = HEAD_BYTES - len(self._head)
            self._head += data[:room]
            self._tail += data[room:]
            # Cut rarely and by half: cutting at every write would copy the whole tail each time.
            if len(self._tail) > 2 * TAIL_BYTES:
                del self._tail[:-TAIL_BYTES]

    def text(self, since: int = 0) -> str:
        """The output from byte `since` on, as far as kept; a line says where bytes were cut."""
        with self._lock:
            tail_start = self._size - len(self._tail)
            cut = tail_start - max(since, len(self._head))
            head = bytes(self._head[since:])
            tail = bytes(self._tail[max(0, since - tail_start) :])
        if cut <= 0:
            return (head + tail).decode(errors="replace")
        note = f"\n[{cut} bytes of output cut here by pytest-netpoll]\n"
        return head.decode(errors="replace") + note + tail.decode(errors="replace")

    def tail(self, lines: int) -> str:
        return "\n".join(self.text()[-SHOWN_BYTES:].splitlines()[-lines:]) if lines > 0 else ""


def last_words(text: str) -> str:
    """The panic in a Go program's output, with the stack of its goroutine; "" without one."""
    stacks = text.rfind("\ngoroutine ")
    # The last one: logs of recovered panics come before.
    begins = [match.start() for match in _LAST_WORDS.finditer(text) if match.end() <= stacks]
    if not begins:
        return ""
    begin = begins[-1]
    end = text.find("\n\n", text.index("\ngoroutine ", begin) + 1)
    return "\n".join(text[begin : end if end >= 0 else None].splitlines()[:_LAST_WORDS_LINES])


class Pipe:
    """A pipe whose `write_end` is for a child; a thread moves all its data into an Output."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._open = True
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        # Room for bursts: a service must not have to wait until pytest reads its log.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        threading.Thread(target=self._drain, name="netpoll-output", daemon=True).start()

    def close_write_end(self) -> None:
        """Call once the child has its copy, so that the thread sees the end of file."""
        os.close(self.write_end)

    def catch_up(self) -> None:
        """Reads all that was written until now: a log line written before an answer is there when the answer
        is.
        """
        taken = 0
        with self._lock:
            # Bounded, in case a service prints faster than we read.
            while taken < PIPE_BYTES and (data := self._move()):
                taken += len(data)

    def _move(self) -> bytes | None:
        """Call with the lock held. The bytes moved; b"" at the end of file, None if there is nothing now."""
        if not self._open:
            return b""
        try:
            data = os.read(self._read_end, READ_BYTES)
        except BlockingIOError:
            return None
        self._output.add(data)
        return data

    def _drain(self) -> None:
        poller = select.poll()
        poller.register(self._read_end, select.POLLIN)
        while self._open:
            poller.poll()
            with self._lock:
                if self._move() == b"":
                    self._open = False
                    os.close(self._read_end)
