"""Compiles the C with BCC, to instructions and descriptions of maps that can be stored and loaded later."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bpf import maps
from bpf.maps import Definition

# struct bpf_insn: code, registers, offset, immediate. An instruction of two slots loads 64 bits: a number, or
# what its source register says.
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_64 = 0x18
_NUMBER, _MAP = 0, 1


class Compiled(NamedTuple):
    """programs: name -> instructions, which refer to maps by their index in `maps`."""

    maps: Sequence[Definition]
    programs: dict[str, bytes]


def compile(bcc: Any, text: bytes, flags: Sequence[str]) -> Compiled:
    """Compiles the C. bcc: the imported module. Leaves nothing in the kernel. Raises whatever BCC raises."""

    class Source(bcc.BPF):  # type: ignore[misc]
        def _trace_autoload(self) -> None:
            """Keeps BCC from loading and attaching: the agent does that itself."""

    cwd = os.getcwd()
    try:
        source = Source(text=text, cflags=list(flags))
    finally:
        os.chdir(cwd)
    try:
        return _taken_apart(bcc.lib, source)
    finally:
        source.cleanup()


def _taken_apart(lib: Any, source: Any) -> Compiled:
    module = ctypes.c_void_p(source.module)
    # BCC's Python module doesn't declare these two.
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    names = [lib.bpf_table_name(module, i) for i in range(lib.bpf_num_tables(module))]
    fds = [lib.bpf_table_fd(module, name) for name in names]
    functions = [lib.bpf_function_name(module, i) for i in range(lib.bpf_num_functions(module))]

    def describe(name: bytes, fd: int) -> Definition:
        about = maps.about(fd)
        key = _described(lib.bpf_table_key_desc(module, name)) if about.key_size else None
        return Definition(name.decode(), *about, key, _described(lib.bpf_table_leaf_desc(module, name)))

    return Compiled(
        [describe(name, fd) for name, fd in zip(names, fds)],  # noqa: B905 - since 3.10
        {name.decode(): relocate(source.dump_func(name), fds.index) for name in functions},
    )


def _described(text: bytes) -> Any:
    return json.loads(text.decode())


def relocate(code: bytes, translate: Callable[[int], int]) -> bytes:
    """The instructions, with each map's number translated. ValueError if they refer to anything else.

    translate: may raise IndexError or ValueError.
    """
    relocated = bytearray(code)
    operations = code[:: _INSTRUCTION.size]
    at = 0
    try:
        if len(code) % _INSTRUCTION.size:
            at = len(operations) - 1
            raise ValueError("it is cut off")
        while (at := operations.find(_LOAD_64, at)) >= 0:
            place = at * _INSTRUCTION.size
            operation, registers, offset, number = _INSTRUCTION.unpack_from(code, place)
            source = registers >> 4
            if source == _MAP:
                _INSTRUCTION.pack_into(relocated, place, operation, registers, offset, translate(number))
            elif source != _NUMBER:
                raise ValueError(f"it refers to something that isn't a map ({source})")
            at += 2
    except (IndexError, ValueError, struct.error) as error:
        raise ValueError(f"instruction {at}: {error}") from error
    return bytes(relocated)
