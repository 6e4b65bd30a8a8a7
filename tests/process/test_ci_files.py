"""The files of example_project/ci, and our own, match the schemas of the tools that read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CI = ROOT / "example_project" / "ci"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TOOLS = ROOT / ".tools" / "bin"  # where .ci/setup test puts actionlint
PATH = os.pathsep.join([str(Path(sys.executable).parent), str(TOOLS), os.environ.get("PATH", "")])


def check(tool: str, *arguments: object, install: str = "pip install -e '.[dev,manifests]'") -> str:
    """Its complaints; "" if it has none. Skips without the tool."""
    program = shutil.which(tool, path=PATH)
    if program is None:
        pytest.skip(f"{tool} is not installed: {install}")
    run = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    return run.stdout + run.stderr if run.returncode else ""


def kubernetes(path: Path) -> str:
    return check("kubernetes-validate", "--strict", path)


def github(path: Path) -> str:
    return check("check-jsonschema", "--builtin-schema", "vendor.github-workflows", path)


def compose(path: Path) -> str:
    return check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


def python(path: Path) -> str:
    return check("ruff", "check", "--isolated", path)


def hadolint(path: Path) -> str:
    return check("hadolint", path)


FILES = {
    "Dockerfile": (hadolint, "RUN apt-get update", "RUN apt-get install thing"),
    "beside.py": (python, "import pytest", "import pytests"),
    "compose.yaml": (compose, "cap_drop:", "cap_dorp:"),
    "github-workflow.yml": (github, "runs-on:", "runs_on:"),
    "kubernetes-job.yaml": (kubernetes, "backoffLimit: 0", "backOffLimit: 0"),
    "server.Dockerfile": (hadolint, "COPY go.mod ./", "COPY go.mod go.sum dir"),
}


def test_every_file_has_a_checker() -> None:
    assert {path.name for path in CI.iterdir() if path.is_file()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_ci_file_is_valid(name: str) -> None:
    checker, _, _ = FILES[name]
    assert checker(CI / name) == ""


@pytest.mark.parametrize("name", FILES)
def test_the_checker_would_see_a_mistake(name: str, tmp_path: Path) -> None:
    checker, right, wrong = FILES[name]
    text = (CI / name).read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong, 1))
    assert checker(tmp_path / name) != ""


def actionlint(path: Path) -> str:
    return check("actionlint", path, install=".ci/setup test")


@pytest.mark.parametrize("workflow", [CI / "github-workflow.yml", *WORKFLOWS], ids=lambda path: path.name)
def test_a_workflow_passes_actionlint(workflow: Path) -> None:
    assert actionlint(workflow) == ""


def test_actionlint_would_see_a_mistake_that_the_schema_allows(tmp_path: Path) -> None:
    workflow = tmp_path / "github-workflow.yml"
    text = (CI / workflow.name).read_text()
    assert "if: always()" in text
    workflow.write_text(text.replace("if: always()", "if: allways()"))
    assert github(workflow) == ""
    assert 'undefined function "allways"' in actionlint(workflow)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_of_our_own_is_valid(workflow: Path) -> None:
    assert github(workflow) == ""


def test_ci_runs_every_python_that_the_package_claims() -> None:
    claimed = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    (run,) = re.findall(r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert re.findall(r"\d\.\d+", run) == claimed
