"""A compiled program in the kernel: its maps, and its loaded and attached functions."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from bpf import compiler, cpus, maps, tracing

# The prefix that BCC's RAW_TRACEPOINT_PROBE gives to functions.
_PREFIX = "raw_tracepoint__"


class Image:
    """A program in the kernel until `close`, or until this process ends."""

    def __init__(self, compiled: compiler.Compiled, entries: Mapping[str, int]) -> None:
        """Creates the maps. entries: sizes of the maps that the C leaves open. Raises OSError; ValueError if
        the parts don't fit.
        """
        self._programs = compiled.programs
        self._tables: list[maps.Map] = []
        self._names = [definition.name for definition in compiled.maps]
        self._loaded: dict[bytes, int] = {}
        self._links: list[int] = []
        try:
            for definition in compiled.maps:
                size = entries.get(definition.name, definition.entries)
                self._tables.append(maps.Map(definition._replace(entries=size), cpus.possible()))
        except BaseException:
            self.close()
            raise

    def table(self, name: bytes) -> maps.Map:
        """The map of that name. Raises KeyError."""
        try:
            return self._tables[self._names.index(name.decode())]
        except ValueError:
            raise KeyError(name) from None

    def load(self, name: bytes, kind: int) -> int:
        """Loads the function, once, and returns its file descriptor. kind: one of tracing's. Raises OSError,
        ValueError.
        """
        return self._once(name, lambda code: tracing.load(kind, _plain(name), code))

    def load_typed(self, name: bytes, tracepoint: int) -> int:
        """As `load`, with the types of the tracepoint's arguments. tracepoint: its typedef's number."""
        return self._once(name, lambda code: tracing.load_typed(name, code, tracepoint))

    def load_iterator(self, name: bytes, iterator: int) -> int:
        """As `load`, for one of the kernel's iterators. iterator: its function's number."""
        return self._once(name, lambda code: tracing.load_iterator(name, code, iterator))

    def load_together(self, *loads: Callable[[], int]) -> list[int]:
        """Runs the loads in parallel, returns their results: verifying a large program takes 0.1 s of CPU."""
        programs: dict[int, int] = {}
        errors: list[Exception] = []

        def run(place: int) -> None:
            try:
                programs[place] = loads[place]()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(place,)) for place in range(1, len(loads))]
        for thread in threads:
            thread.start()
        run(0)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [programs[place] for place in range(len(loads))]

    def attach_typed(self, program: int) -> None:
        self._links.append(tracing.attach(program))

    def attach(self, name: bytes, tracepoint: bytes) -> None:
        """Runs the function at the raw tracepoint. Raises OSError, ValueError."""
        self._links.append(tracing.attach_to(tracepoint, self.load(name, tracing.RAW_TRACEPOINT)))

    def attach_named(self) -> None:
        """Attaches each function that is named after a raw tracepoint."""
        for name in self._programs:
            if name.startswith(_PREFIX):
                self.attach(name.encode(), name[len(_PREFIX) :].encode())

    def close(self) -> None:
        for fd in (*self._links, *self._loaded.values()):
            os.close(fd)
        for table in self._tables:
            table.close()
        self._links, self._loaded, self._tables = [], {}, []

    def _once(self, name: bytes, load: Callable[[bytes], int]) -> int:
        if name not in self._loaded:
            code = self._programs.get(name.decode())
            if code is None:
                raise ValueError(f"there is no function {name.decode()}")
            self._loaded[name] = load(compiler.relocate(code, lambda index: self._table(index).map_fd))
        return self._loaded[name]

    def _table(self, index: int) -> maps.Map:
        if index < 0:
            raise IndexError(f"map {index}")
        return self._tables[index]


def _plain(name: bytes) -> bytes:
    prefix = _PREFIX.encode()
    return name[len(prefix) :] if name.startswith(prefix) else name
