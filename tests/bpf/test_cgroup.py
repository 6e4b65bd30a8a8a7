"""`watch --cgroup`: all processes of a real cgroup v2, including those that come later."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.cli import doctor
from pytest_netpoll.errors import UsageError
from pytest_netpoll.service.build import Builder
from pytest_netpoll.service.cgroup import Cgroup
from tests.waiting import patiently


@pytest.fixture
def cgroup():
    """An empty cgroup v2; processes that are left in it are killed with the test."""
    mounts = Path("/proc/self/mounts").read_text()
    found = re.search(r"^\S+ (\S+) cgroup2 ", mounts, re.MULTILINE)
    if found is None:
        pytest.skip("no cgroup v2 is mounted: mount -t cgroup2 none /mnt")
    path = Path(found[1]) / f"netpoll-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made below {found[1]}: {error.strerror}")
    yield path
    for pid in members(path):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    for directory in (*path.glob("*/"), path):
        remove(directory, deadline)


def remove(directory: Path, deadline: float) -> None:
    """A dying process keeps it busy, even when it is no longer listed."""
    while True:
        try:
            return directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def members(path: Path) -> list[int]:
    return [int(pid) for procs in path.rglob("cgroup.procs") for pid in procs.read_text().split()]


@pytest.fixture(scope="session")
def counting(cache_dir, newest_go) -> str:
    """The doctor's program: wakes a goroutine as often as its argument says, on SIGUSR1."""
    return str(
        Builder(cache_dir).build(
            "./selftest", base=doctor.SELFTEST.parent, go=str(newest_go.go), flags=[], env={}
        )
    )


def start(path: Path, script: str) -> subprocess.Popen[bytes]:
    """A shell that is in the cgroup from its first command on."""
    return subprocess.Popen(
        ["sh", "-c", f"echo $$ > {path}/cgroup.procs; {script}"], stdin=subprocess.DEVNULL
    )


def counters(path: Path) -> list[psutil.Process]:
    found = []
    for pid in members(path):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            process = psutil.Process(pid)
            if process.name() == "selftest":
                found.append(process)
    return found


GO_PROCESS = r"selftest \d+ \(go1"


def test_every_go_process_counts_and_the_others_are_named(cgroup, counting):
    """One is there already; one is started by a shell that ends and leaves it behind; one comes from outside.

    20, 30 and 40 wakeups: in the cgroup, by an orphan in it, and in a cgroup below it.
    """
    (cgroup / "below").mkdir()
    shells = [start(cgroup, f"{counting} 20 & sleep 1000")]
    patiently(lambda: len(counters(cgroup)) == 1)
    command = [sys.executable, "-m", "pytest_netpoll", "watch", "--cgroup", cgroup, "--interval", "200ms"]
    with subprocess.Popen([*map(str, command), "--json"], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        json.loads(watch.stdout.readline())
        shells.append(start(cgroup, f"{counting} 30 & sleep 0.5"))
        shells.append(start(cgroup / "below", f"exec {counting} 40"))
        assert shells[1].wait(30) == 0  # the shell has ended, its child has not
        # They connect after they have begun to listen for the signal.
        patiently(lambda: sum(bool(p.net_connections()) for p in counters(cgroup)) == 3)
        while len(re.findall(GO_PROCESS, json.loads(watch.stdout.readline())["who"])) < 3:
            pass
        for process in counters(cgroup):
            process.send_signal(signal.SIGUSR1)
        total, interrupted = 0, False
        for line in map(json.loads, watch.stdout):
            if line["kind"] == "summary":
                break
            seen = line["service"]["metrics"]["productive_wakeups"] or 0
            total += seen
            if total >= 90 and not seen and not interrupted:
                interrupted = True
                watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
    metrics = line["service"]["metrics"]
    # Each may also have been woken to accept the connection to itself.
    assert 90 <= metrics["productive_wakeups"] <= 93
    assert metrics["wakeups"] == metrics["productive_wakeups"]
    go, _, others = line["who"].partition("; not Go: ")
    assert len(re.findall(GO_PROCESS, go)) == 3
    assert re.fullmatch(r"((sh|sleep) \d+(, )?){1,2}\)", others)
    for shell in shells:
        shell.kill()
        shell.wait()


def test_a_directory_that_is_not_a_cgroup_v2_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"is not a cgroup: it has no cgroup.procs"):
        Cgroup(tmp_path)
    (tmp_path / "cgroup.procs").touch()
    with pytest.raises(UsageError, match="is not a cgroup v2"):
        Cgroup(tmp_path)


def test_watch_ends_when_the_cgroup_is_removed(cgroup):
    (cgroup / "below").mkdir()
    command = [sys.executable, "-m", "pytest_netpoll", "watch", "--cgroup", str(cgroup / "below")]
    with subprocess.Popen([*command, "--interval", "100ms"], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "cgroup below (no process)\n"
        (cgroup / "below").rmdir()
        text = watch.stdout.read()
        assert watch.wait(60) == 1
    assert f"Ended: the cgroup {cgroup / 'below'} is gone\n" in text
