from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_netpoll.service.factory import ServiceFactory
from tests.waiting import survivors

NASTY = [sys.executable, "-S", str(Path(__file__).with_name("nasty.py"))]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("netpoll-cache")


@pytest.fixture
def go_service(tmp_path: Path, cache_dir: Path) -> Iterator[ServiceFactory]:
    factory = ServiceFactory(rootdir=tmp_path, cache_dir=cache_dir)
    yield factory
    factory.stop_all()


@pytest.fixture
def nasty() -> Callable[..., list[str]]:
    """The command line of a service that shows these behaviours (see nasty.py)."""
    return lambda *behaviours: [*NASTY, *behaviours]


@pytest.fixture
def ends() -> Callable[..., bool]:
    """Whether all these processes end within `seconds` (see `survivors`); the others are killed."""

    def wait(*pids: int, seconds: float = 30) -> bool:
        left = survivors(pids, seconds)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    return wait


@pytest.fixture
def go_package(tmp_path: Path) -> Callable[..., Path]:
    """Writes a main package of the module example.com/fixture into a directory of tmp_path."""

    def write(body: str, directory: str = "server", imports: str = "") -> Path:
        (tmp_path / "go.mod").write_text("module example.com/fixture\n\ngo 1.19\n")
        package = tmp_path / directory
        package.mkdir(parents=True, exist_ok=True)
        (package / "main.go").write_text(f"package main\n\n{imports}\n\nfunc main() {{\n{body}\n}}\n")
        return package

    return write
