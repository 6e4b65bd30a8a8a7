"""What the agent cannot do after it has loaded its program for a user, whatever capabilities it keeps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_netpoll.meter import privilege

TRY = """
import ctypes, os, signal, socket, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
from security import seccomp
here = sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
def mount():
    if libc.mount(b"tmpfs", here.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
def in_a_thread():
    failed = []
    def act():
        try:
            os.execv("/bin/true", ["true"])
        except PermissionError:
            failed.append(True)
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    if failed:
        raise PermissionError
ACTS = {
    "write": lambda: open(here + "/file", "w"),
    "append": lambda: open(here + "/file", "a"),
    "update": lambda: open(here + "/file", "r+"),
    "create": lambda: os.open(here + "/new", os.O_CREAT),
    "unlink": lambda: os.unlink(here + "/file"),
    "rename": lambda: os.rename(here + "/file", here + "/other"),
    "mkdir": lambda: os.mkdir(here + "/directory"),
    "symlink": lambda: os.symlink("file", here + "/link"),
    "chmod": lambda: os.chmod(here + "/file", 0o777),
    "chown": lambda: os.chown(here + "/file", 0, 0),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "thread": in_a_thread,
    "mount": mount,
    "socket": lambda: socket.socket(),
    "kill": lambda: os.kill(os.getppid(), 0),
}
libc.prctl(38, 1, 0, 0, 0)
seccomp.restrict()
for name, act in ACTS.items():
    try:
        act()
    except PermissionError:
        print(name)
assert open(here + "/file").read() == "text"
assert os.listdir(here) == ["file"]
"""


def test_it_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    command = [str(privilege.SYSTEM_PYTHON), "-c", TRY, str(privilege.AGENT), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    acts = [line.split('"')[1] for line in TRY.splitlines() if line.startswith('    "')]
    assert sorted(set(acts)) == sorted(set(run.stdout.split()))
    assert len(acts) == 15


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_as_short_as_the_kernel_allows(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    from security import seccomp

    code = seccomp._filter(machine)
    assert len(code) % 8 == 0
    assert len(code) // 8 < 4096
