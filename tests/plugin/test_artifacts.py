"""--netpoll-artifacts: profiles of real services, read by `go tool pprof` itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.plugin.conftest import CONFTEST, GOCACHE, IMPORTS, ROOT, SERVICES

pytestmark = pytest.mark.bpf

# Wasteful tests and others, each with its own service.
TESTS = """
def command(service, number):
    import socket
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(b"%d\\n" % number)
        assert connection.recv(100)

@pytest.fixture(scope="session")
def burn(start): return start("burn")

@pytest.fixture(scope="session")
def io(go_service):
    return go_service(f"{SERVICES}/io", args=["-addr", "127.0.0.1:{port}", "-do", "eagain"], name="../i o")

@netpoll(max_spurious=0.05)
@pytest.mark.parametrize("way", ["a/b", "a-b", "../" * 30])
def test_dup(dup, ping, way): ping(dup, 20)

@netpoll(max_futile_calls=0, max_io_calls=5)
def test_io(io): command(io, 1000)

@netpoll(max_cpu_seconds=0.001)
def test_burn(burn): command(burn, 400)

@netpoll(max_spurious=0.05)
def test_healthy(echo, ping): ping(echo, 20)

def test_window(dup, ping, netpoll):
    with netpoll.measure() as window: ping(dup, 20)
    assert window[dup].spurious == 0

@pytest.fixture(scope="session")
def profiled(start): return start("profiled", pprof="/debug/pprof")

def request(service):
    from urllib.request import urlopen
    with open(os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0], "a") as calls:
        calls.write("called\\n")
    for _ in range(20): urlopen(service.url).read()

@netpoll(max_wakeups=5)
def test_profiled(profiled, netpoll):
    with netpoll.measure() as window: request(profiled)
    assert window[profiled].wakeups < 5

@netpoll(max_wakeups=5)
@pytest.mark.timeout(30)
def test_limited(profiled): request(profiled)

class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _service(self, profiled): self.service = profiled

    @netpoll()
    def test_unit(self):
        request(self.service)
        self.fail("my own")

@netpoll()
def test_own(start):
    request(start("profiled", name="own", pprof="/debug/pprof"))
    assert False, "mine"

@pytest.fixture(scope="session")
def ready(go_service): return go_service(f"{SERVICES}/ready", args=["-addr", "127.0.0.1:{port}", "-n", "50"])

@netpoll(max_ready_calls=5, max_unclaimed_events=0)
def test_ready(ready, ping): ping(ready, 20)

@pytest.fixture(scope="session")
def shy(start): return start("echo", name="shy", pprof="/debug/pprof/")

@netpoll(max_wakeups=5)
def test_shy(shy, ping): ping(shy, 20)
"""


class Run(NamedTuple):
    """One run of pytest. tests: name -> its record. output: of the terminal."""

    output: str
    directory: Path
    tests: dict[str, Any]

    def files(self, test: str) -> dict[str, Path]:
        """Name -> path of the files in the record; all of them exist and have the recorded size."""
        kept = self.tests[test]["artifacts"]
        found = {file["name"]: Path(kept["directory"]) / file["name"] for file in kept["files"]}
        assert sorted(found.values()) == sorted(Path(kept["directory"]).iterdir())
        for file in kept["files"]:
            assert found[file["name"]].stat().st_size == file["bytes"]
            assert self.tests[test]["outcome"] == "passed" or file["command"] in self.output
        # Goroutines that the network woke are recorded only for some limits, and aren't a fault.
        return {name: path for name, path in found.items() if ".woken." not in name}

    def offenders(self, test: str, *offences: str) -> list[Any]:
        (service,) = self.tests[test]["services"]
        return [offender for offender in service["offenders"] if offender["offence"] in offences]


def run_tests(directory: Path, *options: str) -> Run:
    (directory / "conftest.py").write_text(CONFTEST.format(root=str(ROOT), services=str(SERVICES)))
    (directory / "test_it.py").write_text(f"{IMPORTS}import unittest\nfrom conftest import SERVICES\n{TESTS}")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:rerunfailures",
            "-p",
            "no:asyncio",
            "--netpoll-json=r.json",
            *options,
        ],
        cwd=directory,
        env={
            **os.environ,
            "GOCACHE": GOCACHE,
            "COLUMNS": "100",
            "GITHUB_ACTIONS": "",
            "GITHUB_STEP_SUMMARY": "",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    output = result.stdout + result.stderr
    assert "INTERNALERROR" not in output
    tests = json.loads((directory / "r.json").read_text())["tests"]
    return Run(output, directory / "out", {test["nodeid"].partition("::")[2]: test for test in tests})


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tests(tmp_path_factory.mktemp("failed"), "--netpoll-artifacts=out", "-p", "no:xdist")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """For all tests, from a pytest-xdist worker."""
    return run_tests(
        tmp_path_factory.mktemp("every"), "--netpoll-artifacts=out:all", "-n", "1", "-k", "healthy or a-b"
    )


def pprof(*arguments: object) -> str:
    return subprocess.run(
        ["go", "tool", "pprof", *map(str, arguments)],
        env={**os.environ, "GOCACHE": GOCACHE},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    ).stdout


def total(file: Path, *options: str) -> int:
    shown = re.search(r"Total samples = (\d+)", pprof("-top", *options, file))
    assert shown, file
    return int(shown[1])


def counted(offenders: Sequence[Any]) -> int:
    return sum(offender["count"] for offender in offenders)


def test_a_failed_test_leaves_the_files_of_its_record_in_its_own_directory(failed: Run) -> None:
    dup = [f"test_dup[{way}]" for way in ("a/b", "a-b", "../" * 30)]
    kept = {
        Path(failed.tests[test]["artifacts"]["directory"]) for test in failed.tests if test != "test_healthy"
    }
    assert sorted(failed.directory.iterdir()) == sorted(kept)
    assert len(kept) == 12
    for test in dup:
        assert sorted(failed.files(test)) == ["dup.log", "dup.spurious.pb.gz", "dup.trace.json"]
    assert "ready on 127.0.0.1" in failed.files(dup[0])["dup.log"].read_text()
    window = ["dup.log", "dup.trace.json", "dup.window-1.spurious.pb.gz"]
    assert sorted(failed.files("test_window")) == window
    assert failed.tests["test_healthy"]["artifacts"] is None
    assert f"netpoll: wrote artifacts of 12 tests to {failed.directory}\n" in failed.output


def test_pprof_shows_the_counts_functions_lines_and_labels_of_the_record(failed: Run) -> None:
    spurious = failed.files("test_dup[a/b]")["dup.spurious.pb.gz"]
    offenders = failed.offenders("test_dup[a/b]", "spurious")
    assert total(spurious) == counted(offenders) > 0
    assert re.search(rf" {counted(offenders)} +100% .* services/kit\.Echo\n", pprof("-top", spurious))
    kit = SERVICES / "kit" / "kit.go"
    (line,) = (number for number, text in enumerate(kit.read_text().splitlines(), 1) if "c.Read(buf)" in text)
    listed = pprof("-list", r"kit\.Echo", spurious)
    assert f" services/kit.Echo in {kit}\n" in listed
    assert re.search(rf"^ +{counted(offenders)} +\d+ +{line}:.*c\.Read\(buf\)$", listed, re.MULTILINE)
    tags = pprof("-tags", spurious)
    peers = {offender["peer"] for offender in offenders}
    for value in ("dup", "tcp", "read", *filter(None, peers)):
        assert re.search(rf"\): {re.escape(value)}$", tags, re.MULTILINE), value


def test_io_calls_and_cpu_time_have_their_own_profiles(failed: Run) -> None:
    files = failed.files("test_io")
    (name,) = {name.partition(".")[0] for name in files}
    assert sorted(files) == [f"{name}.{end}" for end in ("futile.pb.gz", "io.pb.gz", "log", "trace.json")]
    futile = failed.offenders("test_io", "futile")
    everything = failed.offenders("test_io", "futile", "io")
    assert total(files[f"{name}.futile.pb.gz"]) == counted(futile) > 0
    assert total(files[f"{name}.io.pb.gz"]) == counted(everything)
    assert total(files[f"{name}.io.pb.gz"], "-tagfocus=outcome=EAGAIN") >= counted(futile)
    cpu = failed.files("test_burn")["burn.cpu.pb.gz"]
    samples = counted(failed.offenders("test_burn", "cpu"))
    assert total(cpu, "-sample_index=samples") == samples > 0
    # Each stands for 1/499 s.
    shown = re.search(r"Total samples = ([\d.]+)(m?)s", pprof("-top", cpu))
    assert shown
    seconds = float(shown[1]) / (1000 if shown[2] else 1)
    assert seconds == pytest.approx(samples / 499, rel=0.02)
    assert re.search(r"main\.heavy\n", pprof("-top", cpu))


def test_the_controller_writes_the_files_of_all_workers_and_runs_can_be_compared(
    failed: Run, every: Run
) -> None:
    assert sorted(every.files("test_healthy")) == ["echo.log", "echo.trace.json"]
    now = every.files("test_dup[a-b]")["dup.spurious.pb.gz"]
    before = failed.files("test_dup[a-b]")["dup.spurious.pb.gz"]
    assert now.relative_to(every.directory) == before.relative_to(failed.directory)
    more = counted(every.offenders("test_dup[a-b]", "spurious")) - counted(
        failed.offenders("test_dup[a-b]", "spurious")
    )
    compared = pprof("-top", "-nodecount=99", f"-diff_base={before}", now)
    assert re.search(rf"^Showing nodes accounting for {more},", compared, re.MULTILINE), compared


def test_a_service_that_serves_pprof_is_asked_during_an_unmeasured_repeated_call(
    failed: Run,
) -> None:
    record = failed.tests["test_profiled"]
    assert (failed.directory.parent / "test_profiled").read_text() == "called\n" * 2
    (window,) = record["windows"]
    inner, outer = (made["services"][0]["metrics"]["wakeups"] for made in (window, record))
    assert 10 <= inner <= outer < 1.5 * inner
    assert record["error"].startswith("AssertionError: ")
    files = failed.files("test_profiled")
    views = [
        f"profiled.{view}" for view in ("goroutine.pb.gz", "profile.pb.gz", "mutex.pb.gz", "block.pb.gz")
    ]
    assert sorted(files) == sorted([*views, "profiled.exec.trace", "profiled.log", "profiled.trace.json"])
    assert record["artifacts"]["notes"] == []
    goroutines, cpu, mutex, block = (pprof("-top", files[view]) for view in views)
    assert re.search(r"net/http\.\(\*Server\)\.Serve\n", goroutines)
    assert "\nType: cpu\n" in cpu
    assert "main.contend\n" in mutex
    assert "main.wait" in block
    assert files["profiled.exec.trace"].read_bytes().startswith(b"go 1.")


def test_a_trace_of_a_repeated_call_shows_what_that_call_did(failed: Run, every: Run) -> None:
    for run, test, service in (
        (failed, "test_dup[a-b]", "dup"),
        (failed, "test_window", "dup"),
        (every, "test_healthy", "echo"),
    ):
        trace = json.loads(run.files(test)[f"{service}.trace.json"].read_text())
        told = trace["otherData"]
        assert (told["service"], told["dropped"]) == (service, 0)
        assert told["test"].endswith(f"::{test}")
        recorded = told["recorded"]
        assert {name: count or 0 for name, count in told["counted"].items()} == recorded
        assert recorded["productive_wakeups"] > 0
        assert (recorded["spurious_wakeups"] > 0) == (service == "dup")
        assert (
            len([event for event in trace["traceEvents"] if event.get("cat") == "poll"]) == recorded["polls"]
        )


def test_missing_profiles_and_calls_that_cannot_be_repeated_are_noted(failed: Run) -> None:
    for test, what, fix in (
        (
            "test_own",
            "no trace and no profiles from the service itself: the test starts a service itself",
            "start it in a fixture",
        ),
        ("test_shy", "no profiles from the service itself: shy: ", "serve net/http/pprof there"),
        (
            "test_limited",
            "no trace and no profiles from the service itself: the test's timeout of 30 s ",
            "raise the timeout",
        ),
    ):
        (note,) = failed.tests[test]["artifacts"]["notes"]
        assert f"{note['what']}: {note['why']}".startswith(what)
        assert note["fix"].startswith(fix)
        assert re.sub(r"\s+", " ", f"{note['what']}: {note['why']} fix: {note['fix']}") in re.sub(
            r"\s+", " ", failed.output
        )
        (log, *trace) = sorted(failed.files(test))
        assert log.endswith(".log")
        assert trace == (["shy.trace.json"] if test == "test_shy" else [])
    for test in ("test_own", "test_limited"):
        assert (failed.directory.parent / test).read_text() == "called\n"


def test_a_repeated_unittest_fails_once_and_for_its_own_reason(failed: Run) -> None:
    record = failed.tests["TestCase::test_unit"]
    assert record["error"] == "AssertionError: my own"
    assert (failed.directory.parent / "TestCase::test_unit").read_text() == "called\n" * 2
    assert "profiled.exec.trace" in failed.files("TestCase::test_unit")
    assert len(re.findall(r"^E +AssertionError: my own$", failed.output, re.MULTILINE)) == 1


@pytest.mark.uprobes
def test_wakers_and_unclaimed_descriptors_have_profiles_as_well(failed: Run) -> None:
    files = failed.files("test_ready")
    assert total(files["ready.wakers.pb.gz"]) == counted(failed.offenders("test_ready", "ready")) > 0
    assert re.search(r"% +main\.main\.func\d\n", pprof("-top", files["ready.wakers.pb.gz"]))
    unclaimed = counted(failed.offenders("test_ready", "unclaimed"))
    assert total(files["ready.unclaimed.pb.gz"]) == unclaimed > 0
    assert re.search(
        rf" {unclaimed} +100% +\(nobody waiting\)\n", pprof("-top", files["ready.unclaimed.pb.gz"])
    )


@pytest.mark.parametrize("place", ["a file", "a file/in it", "/proc/netpoll"])
def test_an_unwritable_directory_is_a_usage_error(run, pytester, place: str) -> None:
    (pytester.path / "a file").touch()
    result = run("@netpoll()\ndef test_it(): pass", f"--netpoll-artifacts={place}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --netpoll-artifacts cannot write to *{place}: *", "  fix: name a dir*"]
    )
