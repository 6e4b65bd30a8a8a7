"""Keeps what BCC compiled, for the next start: an entry's name is the key of all it depends on.

It runs in the kernel, so it is read only from a store that is root's, or the agent's own user's. What can't
be trusted, read or kept only costs the time to compile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bpf.compiler import Compiled
from bpf.maps import Definition
from security.store import Store, Unusable

FORMAT = "pytest-netpoll-program/2"
ENDING = ".program"
MOST = 32  # entries that are kept

_BTF = "/sys/kernel/btf/vmlinux"
_NOTES = "/sys/kernel/notes"  # with the build's own number
_PIDS = "/proc/self/ns/pid"


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
    system = os.uname()
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


def recall(store: Store, key: str) -> Entry:
    """Raises Unusable."""
    return parse(store.read(key + ENDING))


def keep(store: Store, key: str, entry: Entry) -> None:
    """Raises Unusable."""
    store.write(key + ENDING, render(entry), MOST)


def render(entry: Entry) -> bytes:
    """The content of an entry's file."""
    parts = entry._asdict()
    parts["compiled"] = {
        "maps": entry.compiled.maps,
        "programs": {name: code.hex() for name, code in entry.compiled.programs.items()},
    }
    return json.dumps(parts, separators=(",", ":")).encode()


def parse(text: bytes) -> Entry:
    """The Entry of a file's content. Raises Unusable."""
    try:
        parts = json.loads(text)
        compiled = parts.pop("compiled")
        entry = Entry(compiled=Compiled([Definition(*each) for each in compiled["maps"]], {}), **parts)
        for name, code in compiled["programs"].items():
            entry.compiled.programs[name] = bytes.fromhex(code)
        _check(entry)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Unusable(f"the cached file is not an entry: {error!r:.200}") from error
    return entry


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
