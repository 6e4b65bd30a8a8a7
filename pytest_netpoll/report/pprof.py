"""Writes profiles for `go tool pprof`: gzipped messages of profile.proto.

The encoding is written by hand: it needs only varints and length-delimited fields, about twenty lines. The
protobuf library would be a compiled dependency, whose generated code works only with some of its versions. In
the tests `go tool pprof` itself reads the files.

https://github.com/google/pprof/blob/main/proto/profile.proto
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """A call. file: absolute, so that -list finds the source. line: 0 if unknown."""

    function: str
    file: str
    line: int


class ValueType(NamedTuple):
    """What is counted, and its unit: ("cpu", "nanoseconds")."""

    name: str
    unit: str


class Program(NamedTuple):
    """The program. build_id: in hex, or empty."""

    file: str
    build_id: str = ""


class Sample(NamedTuple):
    """stack: innermost first; not empty, since pprof shows nothing without a function. values: one for each
    type.
    """

    stack: Sequence[Line]
    values: Sequence[int]
    labels: Mapping[str, str]


def encode(
    types: Sequence[ValueType],
    samples: Iterable[Sample],
    *,
    program: Program,
    duration_ns: int,
    period_ns: int = 0,
    comments: Sequence[str] = (),
) -> bytes:
    """The file's bytes. types: pprof shows the last one by default. period_ns: between two samples
    of the last type. Equal arguments make equal bytes.
    """
    strings: dict[str, int] = {"": 0}
    functions: dict[tuple[str, str], int] = {}
    locations: dict[Line, int] = {}

    def text(value: str) -> int:
        return strings.setdefault(value, len(strings))

    def value_type(kind: ValueType) -> bytes:
        return _number(1, text(kind.name)) + _number(2, text(kind.unit))

    def location(line: Line) -> int:
        functions.setdefault((line.function, line.file), len(functions) + 1)
        return locations.setdefault(line, len(locations) + 1)

    def sample(of: Sample) -> bytes:
        return b"".join(
            (
                _numbers(1, map(location, of.stack)),
                _numbers(2, of.values),
                *(
                    _bytes(3, _number(1, text(key)) + _number(2, text(value)))
                    for key, value in of.labels.items()
                ),
            )
        )

    body = [_bytes(1, value_type(kind)) for kind in types]
    body += [_bytes(2, sample(of)) for of in samples]
    # has_functions, has_filenames, has_line_numbers, has_inline_frames: pprof needn't read the program.
    known = b"".join(_number(field, 1) for field in (7, 8, 9, 10))
    file, build_id = _number(5, text(program.file)), _number(6, text(program.build_id))
    body.append(_bytes(3, _number(1, 1) + file + build_id + known))
    for line, number in locations.items():
        call = _number(1, functions[line.function, line.file]) + _number(2, line.line)
        body.append(_bytes(4, _number(1, number) + _number(2, 1) + _bytes(4, call)))
    for (name, path), number in functions.items():
        names = _number(2, text(name)) + _number(3, text(name)) + _number(4, text(path))
        body.append(_bytes(5, _number(1, number) + names))
    body.append(_number(10, duration_ns))
    if period_ns:
        body += [_bytes(11, value_type(types[-1])), _number(12, period_ns)]
    body.append(_numbers(13, map(text, comments)))
    body.append(_number(14, text(types[-1].name)))
    body += [_bytes(6, string.encode(errors="backslashreplace")) for string in strings]
    return gzip.compress(b"".join(body), mtime=0)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _numbers(field: int, values: Iterable[int]) -> bytes:
    return _bytes(field, b"".join(map(_varint, values)))
