"""tests/kernels/run.py if something is missing, and that no machines are left behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import survivors

KERNELS = Path(__file__).parents[1] / "kernels"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The module, with its own cache, and as outside of CI."""
    spec = importlib.util.spec_from_file_location("kernels_run", KERNELS / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(module, "what_is_missing", lambda: None)
    for name in ("CI", "NETPOLL_REQUIRE_BPF"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_without_qemu_one_line_says_what_to_install(tmp_path):
    env = {**os.environ, "PATH": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, KERNELS / "run.py"], env=env, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("kernels: missing: qemu-system-x86, qemu-system-arm, ")
    assert "fix: sudo apt-get install qemu-system-x86 qemu-system-arm " in line


def test_an_unknown_machine_is_named(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "debian10"])
    with pytest.raises(SystemExit) as exited:
        run.main()
    assert exited.value.code == 2
    assert "no machine debian10: there are debian11, debian12, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "status"), [(None, 0), ("CI", 1), ("NETPOLL_REQUIRE_BPF", 1)], ids=["developer", "CI", "BPF"]
)
def test_a_root_that_cannot_be_fetched_is_skipped_by_name_and_fails_in_ci(
    run, monkeypatch, capsys, tmp_path, variable, status
):
    """Really requested, from an archive that does not exist."""
    monkeypatch.setenv("NETPOLL_DEBIAN_MIRROR", f"file://{tmp_path}/nowhere")
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(sys, "argv", ["run.py", "debian12"])
    assert run.main() == status
    said = capsys.readouterr().out
    assert "kernels: debian12 skipped after" in said
    assert "the root bookworm-amd64 cannot be made: " in said


def test_a_failure_names_the_tests_that_failed_and_the_console(run):
    console = Path("/consoles/x.txt")
    text = (
        "FAILED test_ground_truth.py::test_a - assert 1 == 2\nnetpoll: btf FAILED(1) 3\nboot: exit status 1\n"
    )
    reason = run.why_failed(1, text, console)
    assert reason == "test_ground_truth.py::test_a - assert 1 == 2. Its console: /consoles/x.txt"
    late = run.why_failed(124, "boot: stopped after the limit of 5 s\n", console)
    assert late == "stopped after the limit of 5 s. Its console: /consoles/x.txt"


@pytest.fixture
def booted(tmp_path):
    """A `boot` whose machine is a program that sleeps, in place of qemu; and that program's pid."""
    root = tmp_path / "root"
    for directory in ("boot", "usr/lib/modules/1-cloud-amd64", "bin"):
        (root / directory).mkdir(parents=True)
    (root / "boot" / "vmlinuz-1").touch()
    (root / "bin" / "busybox").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    qemu = programs / "qemu-system-x86_64"
    qemu.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 60\n")
    qemu.chmod(0o755)

    def pid():
        return (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""

    def booted(limit):
        env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin", "LIMIT": str(limit)}
        env["CONSOLE"] = str(tmp_path / "console")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            process = subprocess.Popen(
                [KERNELS / "boot", root, "/bin/true"], env=env, stdout=subprocess.PIPE, text=True
            )
            while process.poll() is None and not pid():
                time.sleep(0.02)
            if pid():
                break
            process.communicate()  # on a busy machine the limit may come before the program
        return process, int(pid())

    return booted


def test_a_machine_that_does_not_end_is_stopped_and_keeps_its_console(booted, tmp_path):
    process, machine = booted(limit=1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 124
    assert output == "boot: stopped after the limit of 1 s\n" == (tmp_path / "console").read_text()
    assert survivors([machine]) == []


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_a_machine_ends_with_the_process_that_booted_it(booted, name):
    process, machine = booted(limit=60)
    subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    process.wait(timeout=60)
    process.stdout.close()
    assert survivors([machine]) == []
