"""What a user gets from the wheel, as opposed to the checkout."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # PYTHON* and PYTEST_* of the surrounding run must not affect a separate environment.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST_"))}
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, which is built from the checkout: what the sdist lacks, the wheel
    lacks."""
    out = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert built.returncode == 0, built.stdout
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_file(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_contains_the_bpf_sources_and_their_header_stubs(names: set[str]) -> None:
    expected = {f"pytest_netpoll/bpf/{name}" for name in files_below(ROOT / "bpf")}
    assert any(name.endswith(".c") for name in expected)
    assert any(name.endswith(".h") for name in expected)
    assert expected <= names


def test_wheel_contains_the_agent_and_the_typing_marker(names: set[str]) -> None:
    assert {"pytest_netpoll/agent/__main__.py", "pytest_netpoll/py.typed"} <= names


def test_wheel_contains_only_the_package_and_the_bpf_sources(names: set[str]) -> None:
    content = {name for name in names if ".dist-info/" not in name}
    package = {f"pytest_netpoll/{name}" for name in files_below(ROOT / "pytest_netpoll")}
    bpf = {f"pytest_netpoll/bpf/{name}" for name in files_below(ROOT / "bpf")}
    assert content == package | bpf


@pytest.mark.parametrize("stray", ["__pycache__", ".pyc", ".o", ".so", ".orig", ".rej", ".swp", "~", ".log"])
def test_wheel_contains_no_leftovers(names: set[str], stray: str) -> None:
    assert not [name for name in names if name.endswith(stray) or f"{stray}/" in name]


def test_wheel_registers_the_plugin_with_pytest(wheel: Path) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata_file(wheel, "entry_points.txt"))
    assert dict(entry_points["pytest11"]) == {"netpoll": "pytest_netpoll.plugin"}


def test_wheel_does_not_require_the_unrelated_bcc_of_pypi(wheel: Path) -> None:
    metadata = message_from_string(metadata_file(wheel, "METADATA"))
    assert not [line for line in metadata.get_all("Requires-Dist", []) if line.startswith("bcc")]


@pytest.mark.parametrize("text", ["LICENSE", "LICENSE.GPL"])
def test_wheel_contains_its_licences(names: set[str], wheel: Path, text: str) -> None:
    assert [name for name in names if name.endswith(f".dist-info/licenses/{text}")]
    metadata = message_from_string(metadata_file(wheel, "METADATA"))
    assert metadata["License-Expression"] == "MIT AND (MIT OR GPL-2.0-only)"


def test_the_changelog_has_a_dated_section_for_this_version(wheel: Path) -> None:
    version = message_from_string(metadata_file(wheel, "METADATA"))["Version"]
    heading = rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_links_of_the_package_page_are_absolute(wheel: Path) -> None:
    page = message_from_string(metadata_file(wheel, "METADATA")).get_payload()
    targets = re.findall(r"\]\(([^)]*)\)", str(page))
    project = "https://github.com/pytest-netpoll/pytest-netpoll/blob/main/"
    assert f"{project}docs/quickstart.md" in targets
    assert not [target for target in targets if not re.match("https:|#", target)]


def test_the_package_page_links_to_the_project(wheel: Path) -> None:
    urls = message_from_string(metadata_file(wheel, "METADATA")).get_all("Project-URL", [])
    assert {url.partition(",")[0] for url in urls} >= {"Documentation", "Changelog", "Issues"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty virtual environment with the wheel and its declared dependencies."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home)
    # This environment's pip, because unpacking another one takes as long as everything that follows.
    pip = (sys.executable, "-m", "pip")
    install = (*pip, "install", "--prefix", home, "--ignore-installed", "--no-index")
    alone = run(*install, "--no-deps", wheel, cwd=home)
    assert alone.returncode == 0, alone.stdout
    # Network errors aren't our fault; .ci/setup has fetched the same requirements.
    try:
        fetched = run(*pip, "wheel", "--retries", "1", "--wheel-dir", "wheels", wheel, cwd=home)
    except subprocess.TimeoutExpired:
        pytest.skip("pip did not get the dependencies in time")
    if fetched.returncode:
        pytest.skip(f"pip could not get the dependencies: {fetched.stdout.splitlines()[-1:]}")
    whole = run(*install, "--find-links", "wheels", wheel, cwd=home)
    assert whole.returncode == 0, whole.stdout
    return home / "bin" / "python"


def test_installed_plugin_is_found_by_pytest(installed: Path, tmp_path: Path) -> None:
    markers = run(installed, "-m", "pytest", "--markers", cwd=tmp_path)
    assert markers.returncode == 0, markers.stdout
    assert "@pytest.mark.netpoll" in markers.stdout


def test_installed_plugin_leaves_tests_without_the_marker_alone(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_plain(): pass\n")
    result = run(installed, "-m", "pytest", "-q", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout


def test_installed_plugin_comes_from_the_wheel_with_its_bpf_sources(installed: Path, tmp_path: Path) -> None:
    program = (
        "import pathlib, pytest_netpoll; package = pathlib.Path(pytest_netpoll.__file__).parent;"
        "print(package); print(*(path.name for path in (package / 'bpf').iterdir()))"
    )
    result = run(installed, "-c", program, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    package, bpf = result.stdout.splitlines()
    assert Path(package).is_relative_to(installed.parents[1])
    assert "netpoll.c" in bpf.split()


@pytest.mark.bpf
def test_installed_plugin_measures_a_service(installed: Path, tmp_path: Path, newest_go: Any) -> None:
    build = run(newest_go.go, "build", "-o", tmp_path / "echo", "./echo", cwd=ROOT / "tests/bpf/services")
    assert build.returncode == 0, build.stdout
    shutil.copy(ROOT / "tests/waiting.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        """
import socket
import pytest
from waiting import fall_asleep

@pytest.mark.netpoll(max_spurious=0.05)
def test_it(go_service):
    server = go_service(command=["./echo", "-addr", "127.0.0.1:{port}"])
    with socket.create_connection(server.address, timeout=60) as connection:
        for _ in range(50):
            fall_asleep(server.pid)
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
"""
    )
    result = run(installed, "-m", "pytest", "--netpoll-json=report.json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    metrics = report["tests"][0]["services"][0]["metrics"]
    assert metrics["wakeups"] == pytest.approx(51, abs=5), "one for each message, one for the connection"
    assert (metrics["spurious_wakeups"], metrics["lost"]) == (0, 0)
