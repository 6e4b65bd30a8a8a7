"""Writing reports to files."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from pytest_netpoll.errors import NetpollError

_MOST_LINKS = 40  # links to follow, as many as the kernel does


def write_atomically(path: Path, content: str | bytes, what: str) -> None:
    """Writes a file so that readers of `path` see all of the old or all of the new one. NetpollError, naming
    `what`, if that fails. A replaced file's mode is kept. In directories where anybody may write, links and
    pipes of other users are not followed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = _followed(path)
        # /dev/null, /dev/stdout, a pipe: renaming would put a regular file in the device's place.
        if _is_device(path):
            _write(os.open(path, os.O_WRONLY | os.O_NOCTTY), content)
            return
        mode = _mode(path)
        descriptor, name = tempfile.mkstemp(prefix=".netpoll-", suffix=".tmp", dir=path.parent)
        try:
            # Readable for others, as usual: on CI, reports are often written by root.
            os.fchmod(descriptor, 0o666 & ~_umask() if mode is None else stat.S_IMODE(mode))
            _write(descriptor, content)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise cannot_write(path, error, what) from None


def append(path: Path, text: str, what: str) -> None:
    """As write_atomically, but appends to the file."""
    try:
        path = _followed(path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | (0 if _is_device(path) else os.O_NOFOLLOW)
        with contextlib.suppress(FileNotFoundError):
            _write(os.open(path, flags), text)
            return
        _write(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), text)
    except OSError as error:
        raise cannot_write(path, error, what) from None


def _followed(path: Path) -> Path:
    """The file that a link leads to, so that the link stays. OSError if it may be a trap."""
    for _ in range(_MOST_LINKS):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return path
        if not stat.S_ISREG(status.st_mode):
            _refuse_trap(path, status)
        # A link to a device may not be a path: /dev/stdout leads to /proc/self/fd/1.
        if not stat.S_ISLNK(status.st_mode) or _is_device(path):
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _refuse_trap(path: Path, status: os.stat_result) -> None:
    """Refuses links as the kernel does with fs.protected_symlinks, but not only in sticky directories."""
    directory = path.parent.stat()
    if directory.st_mode & stat.S_IWOTH and status.st_uid not in (os.geteuid(), directory.st_uid):
        raise PermissionError(
            errno.EACCES, f"user {status.st_uid} put a link or a pipe there, where anybody may write"
        )


def _mode(path: Path) -> int | None:
    """The mode of the file to replace; None if there is none, or it is another user's."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_mode if status.st_uid == os.geteuid() else None


def _umask() -> int:
    """The umask, read without setting it, because that would affect all threads."""
    with open("/proc/self/status") as file:
        return next((int(line.split()[1], 8) for line in file if line.startswith("Umask:")), 0o022)


def cannot_write(path: Path, error: OSError, what: str) -> NetpollError:
    return NetpollError(
        f"{what} could not be written to {path}",
        why=error.strerror or str(error),
        fix="name a file in a directory you may write to, on a disk with space left",
    )


def _write(descriptor: int, content: str | bytes) -> None:
    """Writes to the descriptor and closes it."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    with open(descriptor, "wb") as file:
        file.write(content)
