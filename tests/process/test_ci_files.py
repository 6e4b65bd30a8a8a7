"""The files of example_project/ci are what their readers accept, by those readers' own schemas."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "example_project" / "ci"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def check(tool: str, *arguments: object) -> str:
    """Its complaints; "" where it has none. Skips where the tool is not there."""
    program = shutil.which(tool, path=PATH)
    if program is None:
        pytest.skip(f"{tool} is not installed: pip install -e '.[dev,manifests]'")
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


def test_a_workflow_passes_actionlint() -> None:
    """Optional: go install github.com/rhysd/actionlint/cmd/actionlint@latest"""
    assert check("actionlint", CI / "github-workflow.yml") == ""
