"""Stores compiled programs for the next start. An entry's name is a hash of everything it depends on.

Entries run in the kernel, so they are read only from a store that root or the agent's own user owns. If an
entry can't be trusted, read or stored, the program is compiled.
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
MOST = 32  # entries to keep

_BTF = "/sys/kernel/btf/vmlinux"
_NOTES = "/sys/kernel/notes"  # with the build's own number
_PIDS = "/proc/self/ns/pid"


class Entry(NamedTuple):
    """A compiled program, and what it depends on besides its key.

    flags: given to BCC. answers: btf.Answers.known. typed: whether sys_exit's arguments are. bcc: its
    version. files: [path, size, mtime in ns] of BCC's files.
    """

    flags: Sequence[str]
    answers: Mapping[str, int | None]
    typed: bool
    bcc: str
    files: Sequence[Sequence[Any]]
    compiled: Compiled


def key(sources: Iterable[str], *sizes: object) -> str:
    """The name of an entry for the running kernel. sources: the files it is compiled from. Raises OSError."""
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
    """Reads an entry. Raises Unusable."""
    return parse(store.read(key + ENDING))


def keep(store: Store, key: str, entry: Entry) -> None:
    """Writes an entry. Raises Unusable."""
    store.write(key + ENDING, render(entry), MOST)


def render(entry: Entry) -> bytes:
    """The bytes of an entry's file."""
    parts = entry._asdict()
    parts["compiled"] = {
        "maps": entry.compiled.maps,
        "programs": {name: code.hex() for name, code in entry.compiled.programs.items()},
    }
    return json.dumps(parts, separators=(",", ":")).encode()


def parse(text: bytes) -> Entry:
    """The Entry in a file's bytes. Raises Unusable."""
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
    """Raises ValueError if a part has the wrong type; the kernel checks the rest itself."""
    numbers = [number for each in entry.compiled.maps for number in each[1:6]]
    numbers += [answer for answer in entry.answers.values() if answer is not None]
    if any(type(number) is not int or not 0 <= number < 1 << 32 for number in numbers):
        raise ValueError("a number isn't one")
    texts = [*entry.flags, entry.bcc, *(each.name for each in entry.compiled.maps)]
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.typed, bool):
        raise ValueError("a text isn't one")
    for path, size, changed in entry.files:
        if (type(path), type(size), type(changed)) != (str, int, int):
            raise ValueError("a file isn't one")
