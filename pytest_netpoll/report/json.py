"""The JSON report: what --netpoll-json writes, and what is read back to compare or to render."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from pytest_netpoll.errors import NetpollError
from pytest_netpoll.report import files
from pytest_netpoll.report.record import TestRecord, plain

SCHEMA = "pytest-netpoll/1"


class Report(TypedDict):
    """The whole file."""

    schema: str
    environment: dict[str, Any]
    tests: list[TestRecord]


def write(path: Path, environment: Mapping[str, Any], records: Iterable[TestRecord]) -> None:
    """Write the report atomically, creating its directory. NetpollError if that fails.

    Tests are sorted by nodeid, several records of one in run order: under pytest-xdist the order of
    arrival differs from run to run, and files should not.
    """
    tests = sorted(records, key=lambda record: record["nodeid"])
    # A test on each line: json's own indentation is five times as slow, half as large again.
    lines = ",\n".join(map(_dump, tests))
    head = f'"schema": {_dump(SCHEMA)},\n"environment": {_dump(plain(environment))}'
    text = f'{{{head},\n"tests": [\n{lines}\n]}}\n'
    files.write_atomically(path, text, "the JSON report")


def _dump(value: object) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def load(path: Path) -> Report:
    """Read a report. NetpollError says what is wrong with the file, down to the field."""
    what, fix = f"the netpoll report {path} could not be read", f"write it anew: pytest --netpoll-json={path}"
    return cast("Report", read(path, {SCHEMA: Report}, what, fix))


def read(path: Path, schemas: Mapping[str, Any], what: str, fix: str) -> dict[str, Any]:
    """Read a JSON file whose "schema" names its type, one of `schemas`. NetpollError(what, fix) if not."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise NetpollError(what, why=error.strerror or str(error), fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise NetpollError(what, why=f"it is not JSON: {error}", fix=fix) from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(schema, str) or schema not in schemas:
        raise NetpollError(
            what, why=f'its "schema" is {schema!r}, not {" or ".join(map(repr, schemas))}', fix=fix
        )
    wrong = _wrong(report, schemas[schema], "")
    if wrong is not None:
        raise NetpollError(what, why=wrong, fix=fix)
    return cast("dict[str, Any]", report)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _wrong(value: object, wanted: Any, where: str) -> str | None:
    """What keeps `value` from being of the type, with its place in the file: the types are the schema."""
    if wanted is Any:
        return None
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        complaints = [_wrong(value, option, where) for option in arguments]
        return None if None in complaints else complaints[0]
    if origin is Literal:
        return None if value in arguments else _complaint(where, " or ".join(map(repr, arguments)), value)
    kind = dict if is_typeddict(wanted) else origin or wanted
    # JSON's true is no number, though Python's is; and 1 is a float, too.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return _complaint(where, _KINDS.get(kind, "null"), value)
    if isinstance(value, list):
        parts = [(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value)]
    elif is_typeddict(wanted):
        assert isinstance(value, dict)
        hints = _fields(wanted)
        missing = sorted(wanted.__required_keys__ - value.keys())
        if missing:
            return f"{where or 'the file'} has no {missing[0]!r}"
        parts = [(value[key], hints[key], f"{where}.{key}".lstrip(".")) for key in hints if key in value]
    elif isinstance(value, dict):
        parts = [(item, arguments[1], f"{where}.{key}") for key, item in value.items()]
    else:
        return None
    found = (_wrong(*part) for part in parts)
    return next((complaint for complaint in found if complaint is not None), None)


@functools.cache  # slow, and asked for every frame of every stack
def _fields(wanted: Any) -> dict[str, Any]:
    return get_type_hints(wanted)


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def _complaint(where: str, wanted: str, value: object) -> str:
    return f"{where}: expected {wanted}, got {value!r:.60}"
