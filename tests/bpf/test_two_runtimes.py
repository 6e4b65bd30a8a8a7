"""A process with two Go runtimes, in c-shared libraries: two pollers, neither of which may be left out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.bpf.conftest import SERVICES
from tests.waiting import undisturbed

HOST = "import ctypes, signal, sys; [ctypes.CDLL(path) for path in sys.argv[1:]]; signal.pause()"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory, newest_go):
    """Two files with a Go runtime each."""
    if shutil.which("gcc") is None:
        pytest.skip("c-shared libraries need gcc")
    directory = tmp_path_factory.mktemp("libraries")
    first, second = directory / "first.so", directory / "second.so"
    build = [str(newest_go.go), "build", "-buildmode=c-shared", "-o", str(first), "./library"]
    subprocess.run(build, cwd=SERVICES, check=True)
    shutil.copy(first, second)
    return str(first), str(second)


@pytest.fixture
def host(factory):
    """host(library, …): a Python process that has loaded these."""

    def host(*paths):
        return factory(
            command=[sys.executable, "-c", HOST, *paths],
            name="host",
            ready=re.compile(r"(?s)" + "ready on.*" * len(paths)),
        )

    return host


@undisturbed
def test_one_runtime_in_a_library_is_measured(host, libraries, measure, connect, spaced_pings):
    server = host(libraries[0])
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, 50)
    m = stretch(server)
    assert (m.wakeups, m.productive_wakeups) == (50, 50)


def test_two_runtimes_in_one_process_are_not_measured(host, libraries, measure):
    server = host(*libraries)
    with measure() as stretch:
        pass
    assert "more than one Go runtime" in stretch.unmeasured(server)


def test_two_runtimes_that_ran_before_are_noticed(host, libraries, new_meter):
    server = host(*libraries)
    meter = new_meter()
    meter.watch(server)
    (m,) = meter.close(meter.open(), [server])
    assert m.unmeasured is not None
    assert "more than one Go runtime" in m.unmeasured
