"""Caches what BCC compiled: an entry is a file whose name is a key of all it depends on.

What is read here runs in the kernel. So it is read only from where nobody can write but root, and the
agent's own user where that isn't root; a user for whom sudo starts it can't choose the place. An entry is a
line with the checksum of the rest, which is JSON. What can't be trusted, read or kept only costs the time to
compile.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import platform
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bpf.compiler import Compiled
from bpf.maps import Definition
from security import trust

FORMAT = "pytest-netpoll-program/1"
_SUFFIX = ".program"
MOST = 32  # entries that are kept
_LARGEST = 16 << 20  # bytes of a file that is read
_ABANDONED = 3600  # s after which a draft is nobody's any more

_BTF = "/sys/kernel/btf/vmlinux"
_NOTES = "/sys/kernel/notes"  # with the build's own number
_PIDS = "/proc/self/ns/pid"


class Unusable(Exception):
    """There is no usable entry, or none can be written; the message says why."""


class Entry(NamedTuple):
    """What was compiled, and what it depends on that its key doesn't tell.

    flags: what BCC was given. answers: of btf.Answers. typed: whether sys_exit's arguments are. bcc: its
    version. files: [path, size, mtime in ns] of what BCC consists of.
    """

    flags: Sequence[str]
    answers: Mapping[str, int | None]
    typed: bool
    bcc: str
    files: Sequence[Sequence[Any]]
    compiled: Compiled


def key(sources: Iterable[str], *sizes: object) -> str:
    """The name of an entry for the running kernel. sources: files that it is made of. Raises OSError."""
    whole = hashlib.sha256()
    for path in sources:
        with open(path, "rb") as f:
            whole.update(hashlib.sha256(f.read()).digest())
    system = platform.uname()
    kernel = (system.release, system.version, system.machine, _size(_BTF), os.stat(_PIDS).st_ino)
    whole.update(repr((FORMAT, kernel, _content(_NOTES), sizes)).encode())
    return whole.hexdigest()


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return None


class Cache:
    """uid: who may write there, besides root. writes: whether this agent may.

    fix: what fills it, where that is not this agent.
    """

    def __init__(self, directory: str, uid: int, writes: bool, fix: str | None = None) -> None:
        self.directory = directory
        self.fix = fix
        self.writes = writes
        self._uid = uid

    def recall(self, key: str) -> Entry:
        """Raises Unusable."""
        path = os.path.join(self.directory, key + _SUFFIX)
        text = self._read(path)
        with contextlib.suppress(OSError):
            if self.writes:
                os.utime(path)  # those that were not used for longest go first
        return parse(text)

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

    def keep(self, key: str, entry: Entry) -> None:
        """In one step: who reads meanwhile sees the former entry, or this one. Raises Unusable."""
        if not self.writes:
            raise Unusable(f"this agent does not write to {self.directory}")
        path = os.path.join(self.directory, key + _SUFFIX)
        draft = os.path.join(self.directory, f".{key}.{os.getpid()}.{time.monotonic_ns()}")
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
                    f.write(render(entry))
                os.rename(draft, path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
            self._tidy()
        except OSError as error:
            raise Unusable(f"{self.directory} cannot be written to: {error.strerror}") from error

    def _tidy(self) -> None:
        entries, now = [], time.time()
        for file in os.scandir(self.directory):
            with contextlib.suppress(OSError):
                used = file.stat(follow_symlinks=False).st_mtime
                if file.name.endswith(_SUFFIX):
                    entries.append((used, file.path))
                elif file.name.startswith(".") and now - used > _ABANDONED:
                    os.unlink(file.path)
        for _, path in sorted(entries)[:-MOST]:
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


def render(entry: Entry) -> bytes:
    """The content of an entry's file."""
    parts = entry._asdict()
    parts["compiled"] = {
        "maps": entry.compiled.maps,
        "programs": {name: base64.b64encode(code).decode() for name, code in entry.compiled.programs.items()},
    }
    body = json.dumps(parts, separators=(",", ":")).encode()
    return _head(body) + body


def parse(text: bytes) -> Entry:
    """The Entry of a file's content. Raises Unusable."""
    head, newline, body = text.partition(b"\n")
    if head + newline != _head(body):
        raise Unusable("the cached program is damaged, or in another format")
    try:
        parts = json.loads(body)
        compiled = parts.pop("compiled")
        entry = Entry(compiled=Compiled([Definition(*each) for each in compiled["maps"]], {}), **parts)
        for name, code in compiled["programs"].items():
            entry.compiled.programs[name] = base64.b64decode(code, validate=True)
        _check(entry)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Unusable(f"the cached file is not an entry: {error!r:.200}") from error
    return entry


def _head(body: bytes) -> bytes:
    return f"{FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode()


def _check(entry: Entry) -> None:
    """Raises ValueError where parts of it have another type; what the kernel makes of them it says itself."""
    numbers = [number for each in entry.compiled.maps for number in each[1:6]]
    numbers += [answer for answer in entry.answers.values() if answer is not None]
    if any(type(number) is not int or not 0 <= number < 1 << 32 for number in numbers):
        raise ValueError("a number is none")
    texts = [*entry.flags, entry.bcc, *(each.name for each in entry.compiled.maps)]
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.typed, bool):
        raise ValueError("a text is none")
    for path, size, changed in entry.files:
        if (type(path), type(size), type(changed)) != (str, int, int):
            raise ValueError("a file is none")
