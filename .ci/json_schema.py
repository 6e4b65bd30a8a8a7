"""The JSON Schema of a report, made from the types with which the code reads it. Written by `make docs`."""

from __future__ import annotations

import inspect
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from pytest_netpoll.report.json_report import SCHEMA, Report

FILE = Path(__file__).parents[1] / "pytest_netpoll" / "report" / "schema" / "report.json"
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def text() -> str:
    """The content of the schema's file."""
    definitions: dict[str, Any] = {}
    top = _object(Report, definitions)
    top["properties"]["schema"] = {"const": SCHEMA}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        "title": "What pytest --netpoll-json writes",
    }
    return json.dumps({**head, **top, "$defs": definitions}, indent=1, ensure_ascii=False) + "\n"


def _schema(wanted: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return {}
    if wanted in KINDS:
        return {"type": KINDS[wanted]}
    if is_typeddict(wanted):
        name = wanted.__name__.removesuffix("Record")
        if name not in definitions:
            definitions[name] = {}  # before its fields, which may have the same type
            definitions[name] = _object(wanted, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(option, definitions) for option in arguments]}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    raise TypeError(f"no schema for {wanted!r}")


def _object(wanted: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(wanted)
    return {
        "description": " ".join((inspect.getdoc(wanted) or "").split()),
        "type": "object",
        "properties": {key: _schema(hint, definitions) for key, hint in hints.items()},
        "required": sorted(wanted.__required_keys__),
    }
