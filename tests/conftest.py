"""What every test can use: pytester, the `bpf` marker, and Go toolchains.

- Tests in `tests/bpf/`, and others marked `bpf`, skip if BPF cannot be used. With NETPOLL_REQUIRE_BPF=1, as
in CI, they run anyway and fail.
- A test that asks for the fixture `go_toolchain` runs once per Go version. `.ci/setup test` puts the
  versions into `.tools/go-<version>/`; NETPOLL_GO_VERSIONS ("1.21.13 1.27.3") picks among them.
- Of several workers (`make test`), one runs a test marked `alone` while the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from tests.leftovers import remove_leftovers

# How long an example takes depends on the machine. CI tries the same examples each time, so that a failure
# comes from the change.
settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="NETPOLL_REQUIRE_BPF" in os.environ,
)
settings.load_profile("tests")

pytest_plugins = ["pytester"]
pytest.register_assert_rewrite("tests.attacks")

collect_ignore = ["kernels/suite"]  # runs inside the machines of tests/kernels
if "NETPOLL_TEST_CONTAINERS" not in os.environ:
    # make test-containers: they need two engines and many minutes.
    collect_ignore += ["bpf/test_ci_images.py", "bpf/test_containers.py"]

ROOT = Path(__file__).parents[1]
SYSTEM_PYTHON = "/usr/bin/python3"  # distributions build BCC's binding only for this one


def _succeeds(*command: str) -> bool:
    try:
        return (
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=30,
            ).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def why_no_bpf() -> str | None:
    """Why BPF cannot be used here; None if it can."""
    # By name, since the "bcc" of PyPI is another package.
    if not _succeeds(SYSTEM_PYTHON, "-I", "-c", "from bcc import BPF"):
        return f"{SYSTEM_PYTHON} has no BCC: install python3-bpfcc (Fedora: python3-bcc)"
    if os.geteuid() != 0 and not _succeeds("sudo", "-n", "true"):
        return "BPF needs root: run as root, or run `sudo -v` first"
    return None


@functools.cache
def why_no_uprobes() -> str | None:
    """Why no uprobe can be attached here, by the agent's own rule; None if one can. Trying could hang."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "pytest_netpoll" / "agent"))
        crashed = importlib.import_module("bpf.uprobe").crashed()
    if crashed:
        return "this kernel has had an oops since it booted (see dmesg), and may hang at uprobes: reboot"
    return None


def pytest_configure() -> None:
    # Otherwise each pytest that tests run compiles all its modules again, which takes two thirds of its time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # What a shell without job control runs in the background ignores Ctrl-C, and so do its children:
    # processes that tests interrupt would never end.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.geteuid() == 0:
        remove_leftovers()


@contextlib.contextmanager
def machine(
    alone: bool, at_the_door: Path = Path(__file__), inside: Path = ROOT / "pyproject.toml"
) -> Iterator[None]:
    """The machine, shared with the tests of other workers or not; in the order of requests. at_the_door,
    inside: what is locked while a test waits, and while it runs.
    """
    with open(at_the_door) as door, open(inside) as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # By its name, because a process that the test forked may hold the file open.
            fcntl.flock(room, fcntl.LOCK_UN)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if "PYTEST_XDIST_WORKER" in os.environ:
        with machine(item.get_closest_marker("alone") is not None):
            yield
    else:
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The failures of tests that were repeated (.ci/run): those that passed then would leave no trace."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed, and was repeated: {report.nodeid}", "_")
        terminalreporter.write_line(report.longreprtext)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    required = os.environ.get("NETPOLL_REQUIRE_BPF", "0") not in ("", "0")
    for item in items:
        if Path(__file__).with_name("bpf") in item.path.parents:
            item.add_marker("bpf")
        if item.get_closest_marker("bpf") and not required and (reason := why_no_bpf()):
            item.add_marker(pytest.mark.skip(reason=reason))
        # Also if BPF is required: a broken machine says nothing about the code.
        if item.get_closest_marker("uprobes") and (reason := why_no_uprobes()):
            item.add_marker(pytest.mark.skip(reason=reason))


class Toolchain(NamedTuple):
    version: str  # "1.21.13", or "1.19" for the patch release a distribution happens to have
    go: Path


def wanted_versions() -> list[str]:
    """The versions that NETPOLL_GO_VERSIONS names; empty for all installed ones."""
    wanted = os.environ.get("NETPOLL_GO_VERSIONS", "all").replace(",", " ").split()
    return [] if "all" in wanted else wanted


def go_toolchains() -> list[Toolchain]:
    """The Go toolchains to build services with, oldest first; the one on PATH if `.tools` has none."""
    wanted = wanted_versions()
    executables = ROOT.glob(".tools/go-*/bin/go")
    found = [Toolchain(go.parents[1].name.removeprefix("go-"), go) for go in executables]
    if wanted:
        found = [toolchain for toolchain in found if toolchain.version in wanted]
    elif not found and (go := shutil.which("go")):
        found = [Toolchain(_version(go), Path(go))]
    return sorted(found, key=lambda toolchain: [int(part) for part in re.findall(r"\d+", toolchain.version)])


def _version(go: str) -> str:
    output = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30).stdout
    match = re.search(r"\bgo(\d\S*)", output)
    return match[1] if match else "unknown"


def _toolchain_params() -> Iterator[Any]:
    found = go_toolchains()
    for toolchain in found:
        yield pytest.param(toolchain, id=f"go{toolchain.version}")
    # Requested but missing versions show as skipped instead of disappearing.
    for version in sorted(set(wanted_versions()) - {toolchain.version for toolchain in found}):
        skip = pytest.mark.skip(reason=f"Go {version} is not in .tools: see .ci/setup")
        yield pytest.param(None, id=f"go{version}", marks=skip)


@pytest.fixture(scope="session", params=_toolchain_params())
def go_toolchain(request: pytest.FixtureRequest) -> Toolchain:
    toolchain: Toolchain = request.param
    return toolchain


@pytest.fixture(scope="session")
def newest_go() -> Toolchain:
    """For tests that do not depend on the Go version."""
    found = go_toolchains()
    if not found:
        pytest.skip("no Go toolchain: run .ci/setup test")
    return found[-1]
