"""Files that are read only from where nobody else can write: what is in them runs in the kernel, or as root.

That is root, and the agent's own user where that isn't root; a user for whom sudo starts it can't choose the
place. A file is a line with the checksum of the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time

from security import trust

FORMAT = "pytest-netpoll-cache/1"
_LARGEST = 16 << 20  # bytes of a file that is read
_ABANDONED = 3600  # s after which a draft is nobody's any more


class Unusable(Exception):
    """There is no content that could be used, or it can't be kept; the message says why."""


class Store:
    """uid: who may write there, besides root. writes: whether this agent may.

    fix: what fills it, where that is not this agent.
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
                os.utime(path)  # those that were not used for longest go first
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
        """In one step: who reads meanwhile sees the former content, or this one. Raises Unusable.

        most: how many files whose names end in the same way are kept.
        """
        if not self.writes:
            raise Unusable(f"this agent does not write to {self.directory}")
        path = os.path.join(self.directory, name)
        draft = os.path.join(self.directory, f".{name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            # Before anything is made there, and then of the whole way.
            reason = trust.distrust_place(_above(self.directory), self._uid)
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


def _above(directory: str) -> str:
    """It, or the next above it that exists."""
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    return directory


def _make(directory: str) -> None:
    """With all above it, for their owner alone, whatever the umask."""
    if not os.path.isdir(directory):
        _make(os.path.dirname(directory))
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)


def seal(content: bytes) -> bytes:
    """What a file holds."""
    return f"{FORMAT} {hashlib.sha256(content).hexdigest()}\n".encode() + content


def unseal(text: bytes) -> bytes:
    """The content of what a file holds. Raises Unusable."""
    _, _, content = text.partition(b"\n")
    if text != seal(content):
        raise Unusable("the cached file is damaged, or in another format")
    return content
