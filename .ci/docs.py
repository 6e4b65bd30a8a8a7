"""Writes everything that is generated from the code: blocks of docs/*.md, and the JSON Schema.

`make docs` runs it. With --check it writes nothing, names the files that are out of date, and exits with 1.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import json_schema

from pytest_netpoll import hookspecs
from pytest_netpoll.cli.commands import COMMANDS
from pytest_netpoll.model import metrics as table
from pytest_netpoll.model import units
from pytest_netpoll.options import OPTIONS, OptionSpec
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service

ROOT = Path(__file__).parents[1]

# How to write a limit on a metric of that unit.
WRITTEN: Mapping[units.Unit, str] = {
    "count": "`50`",
    "ratio": "`1.5`",
    "share": '`"5%"` or `0.05`',
    "ns": '`"5ms"`, `"250us"`, `"1.5s"`, or a `timedelta`',
    "s": '`0.5`, `"500ms"`, or a `timedelta`',
}
# The parts of Service that users may rely on.
SERVICE = (
    "name",
    "pid",
    "port",
    "ports",
    "address",
    "url",
    "log",
    "go_version",
    "executable",
    "restart",
    "stop",
)


def rows(heading: tuple[str, ...], *cells: tuple[str, ...]) -> str:
    """A table, starting with its heading."""
    lines = [heading, tuple("---" for _ in heading), *cells]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def metrics() -> str:
    return table.markdown_table()


def limits() -> str:
    names: dict[units.Unit, list[str]] = {unit: [] for unit in get_args(units.Unit)}
    for metric in table.METRICS.values():
        names[metric.unit].append(f"`{metric.name}`")
    return rows(("write", "for"), *((WRITTEN[unit], ", ".join(found)) for unit, found in names.items()))


def options() -> str:
    return rows(("option", "default", ""), *map(_option, OPTIONS))


def _option(spec: OptionSpec) -> tuple[str, str, str]:
    value = "|".join(spec.choices) or spec.metavar
    name = f"{spec.cli}={value}" if spec.cli else str(spec.ini)
    where = "" if spec.cli else " (ini only)"
    return f"`{name}`{where}", f"`{spec.default}`" if spec.default else "", spec.help


def go_service() -> str:
    call = ServiceFactory.__call__
    given = [one for one in inspect.signature(call).parameters.values() if one.name != "self"]
    lines = [f"    {one.name}: {one.annotation} = {one.default!r}," for one in given]
    lines.insert(1, "    *,")
    signature = "\n".join(["go_service(", *lines, ") -> Service"])
    return f"```python\n{signature}\n```\n\n```\n{inspect.getdoc(call)}\n```"


def service() -> str:
    found = [(name, inspect.getdoc(getattr(Service, name, None)) or "") for name in SERVICE]
    documented = {name: " ".join(text.split()) for name, text in found}
    documented["name"] = "unique among the services that run at the same time, and within a test"
    return rows(("", ""), *((f"`{_called(name)}`", text) for name, text in documented.items()))


def _called(name: str) -> str:
    return f"{name}()" if inspect.isfunction(getattr(Service, name, None)) else name


def hooks() -> str:
    found = [hook for name, hook in vars(hookspecs).items() if name.startswith("pytest_netpoll_")]
    return "\n\n".join(f"```python\n{_source(hook)}\n```" for hook in found)


def _source(function: Callable[..., object]) -> str:
    return inspect.getsource(function).partition("\n")[2].rstrip()  # without the decorator


def commands() -> str:
    return rows(("command", ""), *((f"[`{name}`](#{name})", known.help) for name, known in COMMANDS.items()))


def json_keys() -> str:
    schema = json.loads(json_schema.text())
    records = {"Report": schema, **schema["$defs"]}
    return "\n\n".join(f"### {name}\n\n{_record(record)}" for name, record in records.items())


def _record(record: dict[str, Any]) -> str:
    """Moves the meanings in a description "What it is. key: meaning. key, key: meaning." into the table."""
    keys, meanings = record["properties"], {}
    any_key = "|".join(keys)
    intro, *described = re.split(
        rf"(?:(?<=^)|(?<=[.;] ))((?:{any_key})(?:, (?:{any_key}))*): ", record["description"]
    )
    for names, meaning in zip(described[::2], described[1::2], strict=True):
        meanings |= dict.fromkeys(names.split(", "), meaning.strip(" ;").replace("None", "null"))
    lines = [
        (f"`{key}`" if key in record["required"] else f"*`{key}`*", _type(value), meanings.get(key, ""))
        for key, value in keys.items()
    ]
    return f"{intro.strip()}\n\n{rows(('key', 'type', ''), *lines)}".lstrip()


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(map(_type, value["anyOf"]))
    if "enum" in value or "const" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value.get("enum", [value.get("const")]))
    if "items" in value:
        return f"list of {_type(value['items'])}"
    if "additionalProperties" in value:
        return f"object: name → {_type(value['additionalProperties'])}"
    return str(value.get("type", "anything"))


BLOCKS = {
    "metrics.md": (metrics,),
    "marker.md": (limits,),
    "options.md": (options,),
    "fixtures.md": (go_service, service),
    "hooks.md": (hooks,),
    "commands.md": (commands,),
    "json.md": (json_keys,),
}


def with_blocks(text: str, *makers: Callable[[], str]) -> str:
    """The page with each block as it should be."""
    for maker in makers:
        begin = f"<!-- begin {maker.__name__}: written by `make docs` -->\n"
        end = f"<!-- end {maker.__name__} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise SystemExit(f"expected {begin.strip()} … {end}")
        text = f"{before}{begin}{maker()}\n{end}{after}"
    return text


def wanted() -> dict[Path, str]:
    """The wanted content of each file."""
    pages = {ROOT / "docs" / page: makers for page, makers in BLOCKS.items()}
    made = {path: with_blocks(path.read_text(), *makers) for path, makers in pages.items()}
    return {**made, json_schema.FILE: json_schema.text()}


if __name__ == "__main__":
    stale = {path: text for path, text in wanted().items() if path.read_text() != text}
    if "--check" in sys.argv[1:]:
        raise SystemExit("\n".join(f"{path.relative_to(ROOT)}: run make docs" for path in stale) or 0)
    for path, text in stale.items():
        path.write_text(text)
