"""The agent runs on the system's Python, which may be older than any that the plugin runs on."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "pytest_netpoll" / "agent"
FILES = sorted(AGENT.rglob("*.py"))
OLDEST = (3, 9)

# New in 3.10: mypy doesn't accept an older Python as its target.
NEWER = re.compile(
    r"\b(strict=|(?:pairwise|TypeAlias|TypeGuard|ParamSpec|UnionType|aiter|anext|bit_count)\b)"
)

each = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(AGENT)))


def runs_annotations(tree: ast.Module) -> bool:
    if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body):
        return False
    return any(isinstance(node, (ast.AnnAssign, ast.arg)) and node.annotation for node in ast.walk(tree))


@each
def test_the_agent_is_written_for_the_oldest_python(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=OLDEST)
    assert not runs_annotations(tree), "int | None is an error when it is run"
    assert NEWER.findall(path.read_text()) == []


@each
def test_the_agent_formats_with_f_strings(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            assert not isinstance(node.left, ast.Constant), f"line {node.lineno}"


def pythons() -> list[str]:
    """The agent's Pythons that are on PATH."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], 15)]
    return [path for path in map(shutil.which, names) if path is not None]


@pytest.mark.parametrize("python", pythons() or [None])
def test_every_module_of_the_agent_can_be_imported(python: str | None) -> None:
    if python is None:
        pytest.skip("no Python of another version")
    modules = [
        str(path.relative_to(AGENT).with_suffix("")).replace("/", ".")
        for path in FILES
        if path.name not in ("__init__.py", "__main__.py")
    ]
    code = f"import sys; sys.path.insert(0, {str(AGENT)!r}); import {', '.join(modules)}; print('all')"
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    run = subprocess.run(
        [python, "-I", "-B", "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    if "command not found" in run.stderr:
        pytest.skip(f"{python} is a shim for what is not there")
    assert run.stdout == "all\n", run.stderr
