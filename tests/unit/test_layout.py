"""Imports only point downwards: a room imports from those below it, never from those above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pytest_netpoll"

# Each may import from those after it. The agent is a separate program, run by another Python; what it shares
# with the plugin (numbers, which files to trust, how Go functions begin) exists only in the agent.
ORDER = [
    "__main__", "plugin", "cli", "session", "report", "meter", "service", "hookspecs", "options", "model",
    "gobinary", "errors", "clean", "agent",
]  # fmt: skip

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "agent" not in path.parts)


def imports_of(path: Path) -> Iterator[str]:
    """Our modules that the file imports, without the package's name: "model.metrics"."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == PACKAGE.name:
                yield module


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_imports_only_from_its_own_room_and_those_below(path: Path) -> None:
    room = room_of(path.with_suffix("").as_posix().replace("/", "."))
    if room == "__init__":
        return  # the public names, from any room
    below = ORDER[ORDER.index(room) :]
    for module in imports_of(path):
        assert room_of(module) in [*below, "__version__"], f"{path} imports {module}, which is above {room}"


def test_the_agent_imports_nothing_of_the_plugin() -> None:
    for path in (PACKAGE / "agent").rglob("*.py"):
        assert list(imports_of(path.relative_to(PACKAGE))) == [], path


def test_rooms_share_a_module_name_only_for_two_sides_of_one_thing() -> None:
    rooms: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        if path.name not in ("__init__.py", "__main__.py"):
            rooms.setdefault(path.name, set()).add(relative.parts[0])
    both = {name for name, found in rooms.items() if len(found) > 1}
    assert both <= {"offenders.py", "timeline.py", "elf.py"}


def test_the_plugin_is_wiring_only() -> None:
    assert len((PACKAGE / "plugin.py").read_text().splitlines()) < 200
