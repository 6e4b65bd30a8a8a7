"""Stores files whose content runs in the kernel or as root, so nobody else may write to them.

Only root may write there, or the agent's own user if that isn't root. A user for whom sudo starts the agent
can't choose the directory. A file begins with a line that holds the checksum of the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time

from security import trust

FORMAT = "pytest-netpoll-cache/1"
_LARGEST = 16 << 20  # bytes; larger files are not read
_ABANDONED = 3600  # s after which a draft counts as left over


class Unusable(Exception):
    """The content is missing, can't be used, or can't be stored; the message says why."""


class Store:
    """A directory of files. uid: who may write there, besides root. writes: whether this agent may.

    fix: the command that fills it, if this agent doesn't.
    """

    def __init__(self, directory: str, uid: int, writes: bool, fix: str | None = None) -> None:
        self.directory = directory
        self.fix = fix
        self.writes = writes
        self._uid = uid

    def read(self, name: str) -> bytes:
        """The content of that name. Raises Unusable."""
        path = os.path.join(self.directory, name)
        text = self._read(path)
        with contextlib.suppress(OSError):
            if self.writes:
                os.utime(path)  # the least recently used are deleted first
        return unseal(text)

    def _read(self, path: str) -> bytes:
        if not os.path.lexists(self.directory):
            raise Unusable(f"{self.directory} does not exist")
        reason = trust.distrust_place(self.directory, self._uid)
        if reason is None and os.path.lexists(path):
            reason = trust.distrust_place(path, self._uid)
        if reason is not None:
            raise Unusable(reason)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Unusable(f"{self.directory} has none for this kernel, BCC, version and sizes") from None
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from error
        try:
            with open(fd, "rb") as f:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                    raise Unusable(f"{path} is not a file of ours")
                return f.read(_LARGEST)
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from error

    def write(self, name: str, content: bytes, most: int) -> None:
        """Writes in one step: readers see the old content or the new one. Raises Unusable.

        most: how many files with the same ending to keep.
        """
        if not self.writes:
            raise Unusable(f"this agent does not write to {self.directory}")
        path = os.path.join(self.directory, name)
        draft = os.path.join(self.directory, f".{name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            # Checked before anything is created there, and again for the whole path.
            reason = trust.distrust_place(trust.nearest_existing(self.directory), self._uid)
            if reason is not None:
                raise Unusable(reason)
            _make(self.directory)
            reason = trust.distrust_place(self.directory, self._uid)
            if reason is not None:
                raise Unusable(reason)
            try:
                fd = os.open(
                    draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
                )
                with open(fd, "wb") as f:
                    f.write(seal(content))
                os.rename(draft, path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
            self._tidy(os.path.splitext(name)[1], most)
        except OSError as error:
            raise Unusable(f"{self.directory} cannot be written to: {error.strerror}") from error

    def _tidy(self, ending: str, most: int) -> None:
        entries, now = [], time.time()
        for file in os.scandir(self.directory):
            with contextlib.suppress(OSError):
                used = file.stat(follow_symlinks=False).st_mtime
                if file.name.startswith("."):
                    if now - used > _ABANDONED:
                        os.unlink(file.path)
                elif file.name.endswith(ending):
                    entries.append((used, file.path))
        for _, path in sorted(entries)[:-most]:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _make(directory: str) -> None:
    """Creates the directory and its parents, for their owner alone, whatever the umask."""
    if not os.path.isdir(directory):
        _make(os.path.dirname(directory))
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)


def seal(content: bytes) -> bytes:
    """The file's bytes for the content: its checksum, then the content."""
    return f"{FORMAT} {hashlib.sha256(content).hexdigest()}\n".encode() + content


def unseal(text: bytes) -> bytes:
    """The content from a file's bytes. Raises Unusable."""
    _, _, content = text.partition(b"\n")
    if text != seal(content):
        raise Unusable("the cached file is damaged, or in another format")
    return content
