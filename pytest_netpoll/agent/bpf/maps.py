"""BPF maps through the kernel's system calls: created as BCC described them, read as the C's structs.

Keys and values are ctypes objects; in a per-CPU map, a value is an array with an element for each CPU.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

from bpf import syscall

# From include/uapi/linux/bpf.h: commands, and kinds of maps.
_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _TAKE = 0, 1, 2, 3, 4, 21
_OBJ_GET_INFO_BY_FD = 15
_ARRAY, _PROG_ARRAY, _PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH = 2, 3, 5, 6, 10
_ARRAYS = (_ARRAY, _PROG_ARRAY, _PERCPU_ARRAY)
_PER_CPU = (_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH)

_NEW = struct.Struct("=7I16s")  # union bpf_attr: of a creation up to the name
_ELEMENT = struct.Struct("=I4xQQQ")
_INFO = struct.Struct("=6I16s")  # struct bpf_map_info, up to the name

# C type -> ctypes type.
_SIMPLE: dict[str, Any] = {
    "_Bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "unsigned char": ctypes.c_ubyte,
    "short": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "long long": ctypes.c_longlong,
    "unsigned long long": ctypes.c_ulonglong,
}


class Definition(NamedTuple):
    """A map's parameters and types. kind: of enum bpf_map_type. key, leaf: as BCC describes types in JSON; a
    queue has no key.
    """

    name: str
    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int
    key: Any
    leaf: Any


class Map:
    """A map in the kernel, until its file descriptor is closed.

    Key, Leaf: the types of its keys and values; sLeaf: of the value for one CPU. Raises KeyError for a
    missing key, and OSError if the kernel refuses.
    """

    Key: Any = None

    def __init__(self, definition: Definition, cpus: int) -> None:
        """Creates the map. cpus: the possible CPUs. Raises OSError; ValueError if the sizes differ."""
        if definition.key_size:
            self.Key = _type_of(definition.key, definition.key_size)
        self.sLeaf = self.Leaf = _type_of(definition.leaf, definition.value_size)
        if definition.kind in _PER_CPU:
            self.Leaf = _padded(self.sLeaf) * cpus
        self._entries = definition.entries if definition.kind in _ARRAYS else None
        numbers = (definition.kind, definition.key_size, definition.value_size, definition.entries)
        name = definition.name.encode()[:15]
        try:
            attr = _NEW.pack(*numbers, definition.flags, 0, 0, name)
        except struct.error as error:
            raise ValueError(str(error)) from error
        self.map_fd = syscall.bpf(_CREATE, attr)

    def __getitem__(self, key: Any) -> Any:
        value = self.Leaf()
        self._do(_LOOKUP, key, value)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do(_UPDATE, key, value)

    def __delitem__(self, key: Any) -> None:
        self._do(_DELETE, key, None)

    def __len__(self) -> int:
        return self._entries if self._entries is not None else sum(1 for _ in self.keys())

    def keys(self) -> Iterator[Any]:
        """The keys. If the map changes meanwhile, some may be missed or come twice."""
        key = None
        while True:
            following = self.Key()
            try:
                self._do(_NEXT_KEY, key, following)
            except KeyError:
                return
            yield following
            key = following

    def items(self) -> Iterator[tuple[Any, Any]]:
        for key in self.keys():
            try:
                yield key, self[key]
            except KeyError:  # gone by now
                continue

    def clear(self) -> None:
        for key in list(self.keys()):
            self._forget(key)

    def push(self, value: Any) -> None:
        """Appends a value to a queue."""
        self._do(_UPDATE, None, value)

    def pop(self) -> Any:
        """Takes the next value from a queue. KeyError if it is empty."""
        value = self.Leaf()
        self._do(_TAKE, None, value)
        return value

    def close(self) -> None:
        os.close(self.map_fd)

    def _forget(self, key: Any) -> None:
        try:
            del self[key]
        except KeyError:
            return

    def _do(self, command: int, key: Any, value: Any) -> None:
        # The kernel copies as many bytes as the map's values have, however many we give it.
        if value is not None and ctypes.sizeof(value) != ctypes.sizeof(
            self.Key if command == _NEXT_KEY else self.Leaf
        ):
            raise TypeError(f"a value of {ctypes.sizeof(value)} bytes")
        if key is not None and ctypes.sizeof(key) != ctypes.sizeof(self.Key):
            raise TypeError(f"a key of {ctypes.sizeof(key)} bytes")
        attr = _ELEMENT.pack(self.map_fd, _address(key), _address(value), 0)
        try:
            syscall.bpf(command, attr)
        except FileNotFoundError:
            raise KeyError(key) from None


class About(NamedTuple):
    """The kernel's description of a map."""

    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int


def about(fd: int) -> About:
    """Asks the kernel about a map. Raises OSError."""
    info = ctypes.create_string_buffer(_INFO.size)
    syscall.bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, _INFO.size, ctypes.addressof(info)))
    kind, _, key_size, value_size, entries, flags, _ = _INFO.unpack(info.raw)
    return About(kind, key_size, value_size, entries, flags)


def _address(value: Optional[Any]) -> int:
    return 0 if value is None else ctypes.addressof(value)


def _type_of(description: Any, size: int) -> Any:
    try:
        found = _decode(description)
        described = ctypes.sizeof(found)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"not a type: {description!r:.100}") from error
    if described != size:
        raise ValueError(f"{description!r:.100} has {described} bytes, not {size}")
    return found


def _decode(description: Any) -> Any:
    """The ctypes type that BCC describes by name, or as [name, [[member, type, [length]], …], kind]."""
    if isinstance(description, str):
        return _SIMPLE[description]
    name, members, *kind = description
    nameless: list[str] = []
    fields: list[Any] = []
    for member in members:
        field, what, *more = member
        if more and isinstance(more[0], str):  # a struct's description in place of a member
            if not field:
                field = f"__anon{len(nameless)}"
                nameless.append(field)
            fields.append((field, _decode(member)))
        elif more and isinstance(more[0], list):
            fields.append((field, _decode(what) * more[0][0]))
        else:  # with its bits, where it has not all
            fields.append((field, _decode(what), *more))
    base: Any = ctypes.Union if kind == ["union"] else ctypes.Structure
    packing = {"_pack_": 1} if kind == ["struct_packed"] else {}
    return type(name, (base,), {**packing, "_anonymous_": nameless, "_fields_": fields})


def _padded(leaf: Any) -> Any:
    """The bytes of one CPU's value: the kernel rounds up to a multiple of 8."""
    room = -ctypes.sizeof(leaf) % 8
    if not room:
        return leaf
    padding = ("_padding", ctypes.c_ubyte * room)
    if issubclass(leaf, ctypes.Structure):
        return type("Padded", (leaf,), {"_pack_": 1, "_fields_": [padding]})
    return type("Padded", (ctypes.Structure,), {"_pack_": 1, "_fields_": [("value", leaf), padding]})
