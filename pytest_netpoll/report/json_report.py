"""Writes the JSON report of --netpoll-json, and reads it to compare or render."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from pytest_netpoll.errors import NetpollError
from pytest_netpoll.meter.schema import wrong
from pytest_netpoll.report import files
from pytest_netpoll.report.record import TestRecord, plain

SCHEMA = "pytest-netpoll/1"


class Report(TypedDict):
    """The whole file."""

    schema: str
    environment: dict[str, Any]
    tests: list[TestRecord]


def write(path: Path, environment: Mapping[str, Any], records: Iterable[TestRecord]) -> None:
    """Writes the report atomically and creates its directory. NetpollError if that fails.

    Tests are sorted by nodeid, several records of one in run order: under pytest-xdist the order of
    arrival differs from run to run, and files should not.
    """
    tests = sorted(records, key=lambda record: record["nodeid"])
    # One test per line: json's own indentation is five times as slow and makes the file half as large again.
    lines = ",\n".join(map(_dump, tests))
    head = f'"schema": {_dump(SCHEMA)},\n"environment": {_dump(plain(environment))}'
    text = f'{{{head},\n"tests": [\n{lines}\n]}}\n'
    files.write_atomically(path, text, "the JSON report")


def _dump(value: object) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def read(path: Path, schemas: Mapping[str, Any], what: str, fix: str) -> dict[str, Any]:
    """Reads a JSON file whose "schema" is one of `schemas`. NetpollError(what, fix) if it isn't."""
    try:
        text = path.read_text(encoding="utf-8")
        report = json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_float)
    except OSError as error:
        raise NetpollError(what, why=error.strerror or str(error), fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise NetpollError(what, why=f"it is not JSON: {error}", fix=fix) from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(schema, str) or schema not in schemas:
        raise NetpollError(
            what, why=f'its "schema" is {schema!r}, not {" or ".join(map(repr, schemas))}', fix=fix
        )
    complaint = wrong(report, schemas[schema])
    if complaint is not None:
        raise NetpollError(what, why=complaint, fix=fix)
    # A lone surrogate, which only an escape can write, could not be printed.
    return cast("dict[str, Any]", plain(report) if r"\ud" in text.lower() else report)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _integer(text: str) -> int | float:
    # No count needs more than 64 bits; larger integers can't be mixed with floats.
    return int(text) if len(text) <= len(str(-1 << 63)) else _float(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.30} is too large")
    return number
