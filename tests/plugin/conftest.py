"""A user's project, run by a pytest of its own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

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
        with socket.create_connection(service.address, timeout=10) as connection:
            for _ in range(count):
                connection.sendall(b"ping")
                assert connection.recv(4) == b"ping"
                fall_asleep(service.pid)
                time.sleep(pause)
        fall_asleep(service.pid)
    return ping
"""


# Asked before pytester moves HOME, and with it Go's cache: the standard library is compiled once.
GOCACHE = subprocess.run(["go", "env", "GOCACHE"], capture_output=True, text=True).stdout.strip()


# Installed for development; a user's project has those that its test names.
OTHERS = ("xdist", "asyncio", "rerunfailures", "timeout")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """run(source, "--option") runs pytest on a test file with the fixtures echo, dup, start and ping.

    plugins: of OTHERS, those that are there. Never may it end in an internal error or show a
    traceback of the plugin's own.
    """
    monkeypatch.setenv("GOCACHE", GOCACHE)
    # What would be written for the CI that runs us; a test that is about it sets them.
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    pytester.makeconftest(CONFTEST.format(root=str(ROOT), services=str(SERVICES)))

    def run(source: str, *args: str, plugins: Sequence[str] = ()) -> pytest.RunResult:
        pytester.makepyfile(
            test_it=f"import pytest, os, signal, time\nnetpoll = pytest.mark.netpoll\n{source}"
        )
        without = [word for other in OTHERS if other not in plugins for word in ("-p", f"no:{other}")]
        result = pytester.runpytest_subprocess(*without, *args, timeout=120)
        text = result.stdout.str() + result.stderr.str()
        assert "INTERNALERROR" not in text
        if "timeout" not in plugins:  # which shows where each thread is
            assert not re.search(r"pytest_netpoll/\S*\.py", text), "a traceback of ours"
        for path in pytester.path.glob("*.json"):
            if path.read_text().startswith(f'{{"schema": "{SCHEMA["properties"]["schema"]["const"]}"'):
                jsonschema.validate(json.loads(path.read_text()), SCHEMA)
        return result

    return run
