from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.service import ServiceFactory

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


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def ends() -> Callable[..., bool]:
    """Whether all these processes are gone within `seconds`; what is left is killed."""

    def wait(*pids: int, seconds: float = 10) -> bool:
        deadline = time.monotonic() + seconds
        while left := [pid for pid in pids if alive(pid)]:
            if time.monotonic() > deadline:
                for pid in left:
                    psutil.Process(pid).kill()
                return False
            time.sleep(0.01)
        return True

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
