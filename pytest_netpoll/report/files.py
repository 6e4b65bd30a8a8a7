"""Writing reports to files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pytest_netpoll.errors import NetpollError


def write_atomically(path: Path, text: str, what: str) -> None:
    """Readers of `path` see the old file or all of the new one. NetpollError, naming `what`, if not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # /dev/null, /dev/stdout, a pipe: renaming would put a regular file in the device's place.
        if path.exists() and not path.is_file():
            _write(path, text)
            return
        # Where a link points to, so that it stays a link.
        path = path.resolve()
        # Not the tempfile module, whose files only their owner may read: often root's, on CI.
        temporary = path.with_name(f".netpoll-{os.getpid()}.tmp")
        try:
            _write(temporary, text)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise cannot_write(path, error, what) from None


def append(path: Path, text: str, what: str) -> None:
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error, what) from None


def cannot_write(path: Path, error: OSError, what: str) -> NetpollError:
    return NetpollError(
        f"{what} could not be written to {path}",
        why=error.strerror or str(error),
        fix="name a file in a directory you may write to, on a disk with space left",
    )


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
