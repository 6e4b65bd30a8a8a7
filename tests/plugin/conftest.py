"""A user's project, run by a pytest of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "tests" / "bpf" / "services"

SCHEMA = json.loads((ROOT / "pytest_netpoll" / "report" / "schema" / "report.json").read_text())

IMPORTS = "import pytest, os, signal, time\nnetpoll = pytest.mark.netpoll\n"

CONFTEST = """
import socket, sys, time
import pytest

sys.path.append({root!r})
from tests.waiting import fall_asleep

SERVICES = {services!r}

@pytest.fixture(scope="session")
def start(go_service):
    return lambda program, **options: go_service(
        f"{{SERVICES}}/{{program}}", args=["-addr", "127.0.0.1:{{port}}"], **options)

@pytest.fixture(scope="session")
def echo(start):
    return start("echo")

@pytest.fixture(scope="session")
def dup(start):
    return start("dup")

@pytest.fixture
def ping():
    def ping(service, count=50, pause=0.0):
        with socket.create_connection(service.address, timeout=60) as connection:
            for _ in range(count):
                connection.sendall(b"ping")
                assert connection.recv(4) == b"ping"
                fall_asleep(service.pid)
                time.sleep(pause)
        fall_asleep(service.pid)
    return ping
"""


# Read before pytester moves HOME, and with it Go's cache, so that the standard library is compiled only once.
GOCACHE = subprocess.run(["go", "env", "GOCACHE"], capture_output=True, text=True).stdout.strip()


# Installed for development; a user's project has those that the test names.
OTHERS = ("xdist", "asyncio", "rerunfailures", "timeout", "hypothesispytest")
OF_GITHUB = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")


@pytest.fixture(scope="session")
def built_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of built services that all projects' pytests share, as in one project."""
    return tmp_path_factory.mktemp("built")


def _write(directory: Path, source: str, built_before: Path, plugins: Sequence[str]) -> list[str]:
    """Writes the test file; returns the options that make pytest run as a user's."""
    (directory / "test_it.py").write_text(f"{IMPORTS}{source}")
    # It may have the same size as the one before, and the same time in seconds.
    shutil.rmtree(directory / "__pycache__", ignore_errors=True)
    cached = directory / ".pytest_cache" / "d"
    cached.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (cached / "netpoll").symlink_to(built_before, target_is_directory=True)
    return [word for other in OTHERS if other not in plugins for word in ("-p", f"no:{other}")]


def _check(directory: Path, text: str, plugins: Sequence[str]) -> None:
    assert "INTERNALERROR" not in text
    if "timeout" not in plugins:  # which shows where each thread is
        assert not re.search(r"pytest_netpoll/\S*\.py", text), "a traceback of ours"
    for path in directory.rglob("*.json"):
        if path.read_text().startswith(f'{{"schema": "{SCHEMA["properties"]["schema"]["const"]}"'):
            jsonschema.validate(json.loads(path.read_text()), SCHEMA)


@pytest.fixture
def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, built_before: Path
) -> Callable[..., pytest.RunResult]:
    """run(source, "--option") runs pytest on a test file with the fixtures echo, dup, start and ping.

    plugins: those of OTHERS that are present. It must never end in an internal error or show a traceback of
    the plugin.
    """
    monkeypatch.setenv("GOCACHE", GOCACHE)
    # Output for the CI that runs us; tests about that set these variables.
    for name in OF_GITHUB:
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(CONFTEST.format(root=str(ROOT), services=str(SERVICES)))

    def run(source: str, *args: str, plugins: Sequence[str] = ()) -> pytest.RunResult:
        without = _write(pytester.path, source, built_before, plugins)
        result = pytester.runpytest_subprocess(*without, *args, timeout=600)
        _check(pytester.path, result.stdout.str() + result.stderr.str(), plugins)
        return result

    return run


class Project(NamedTuple):
    """A run that several tests look at."""

    path: Path
    result: pytest.RunResult


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory, built_before: Path) -> Callable[..., Project]:
    """run_once(source, "--option", NAME="value") is as `run`, for a fixture of the module's."""

    def run_once(source: str, *args: str, **environment: str) -> Project:
        path = tmp_path_factory.mktemp("project")
        (path / "conftest.py").write_text(CONFTEST.format(root=str(ROOT), services=str(SERVICES)))
        without = _write(path, source, built_before, ())
        own = {"HOME": str(path), "GOCACHE": GOCACHE, "PY_COLORS": "0", **environment}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", f"--basetemp={path}/temporary", *without, *args],
            cwd=path,
            env={name: value for name, value in os.environ.items() if name not in OF_GITHUB} | own,
            capture_output=True,
            text=True,
            timeout=600,
        )
        print(done.stdout, done.stderr)  # in case the fixture or the first test fails
        _check(path, done.stdout + done.stderr, ())
        lines = done.stdout.splitlines(), done.stderr.splitlines()
        return Project(path, pytest.RunResult(done.returncode, *lines, time.monotonic() - began))

    return run_once
