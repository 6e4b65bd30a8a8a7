"""What can go wrong around a test: each time a message with the next command, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

MEASURED = "@netpoll(max_spurious=0.05)\ndef test_it(echo, ping): ping(echo)"


def test_a_package_that_does_not_build_shows_the_compilers_message(run, pytester):
    (pytester.path / "broken").mkdir()
    (pytester.path / "broken" / "main.go").write_text("package main\nfunc main() { undefined() }\n")
    (pytester.path / "go.mod").write_text("module broken\ngo 1.19\n")
    result = run("def test_it(go_service): go_service('./broken')")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*main.go:2:15: undefined: undefined*"])


def test_a_service_that_exits_at_once_shows_how_and_what_it_said(run):
    result = run("def test_it(go_service): go_service(command=['sh', '-c', 'echo oh no; exit 3'])")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*service 'sh' ended before it was ready: exit status 3*", "oh no"])


def test_a_service_that_never_gets_ready_is_given_up(run):
    result = run("def test_it(go_service): go_service(command='sleep 60', timeout=0.5)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*'sleep'*0.5 s*"])


def test_without_root_the_test_is_unmeasured_and_says_so(run, pytester):
    """pytest is somebody else: root cannot lose its euid and keep this checkout readable."""
    pytester.makepyfile(nobody="import os\nos.geteuid = lambda: 65534\n")
    pytester.syspathinsert()
    result = run(MEASURED, "-p", "nobody", "--netpoll-sudo=never")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["unmeasured: echo: eBPF needs root: *--netpoll-sudo=never*(to mend: *"])


def test_without_bcc_the_test_is_unmeasured_and_names_the_package(run):
    result = run(MEASURED, f"--netpoll-python={sys.executable}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["unmeasured: echo: BCC's Python module cannot be imported *(to mend: *install*"]
    )


def test_the_bcc_of_pypi_is_told_from_bcc(run, tmp_path):
    """It is a package about crystal lattices; any module of that name without BPF stands for it."""
    python = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python], check=True)
    site = next((python / "lib").glob("python*/site-packages"))
    (site / "bcc").mkdir()
    (site / "bcc" / "__init__.py").write_text("lattice = 'body-centred cubic'\n")
    result = run(MEASURED, f"--netpoll-python={python}/bin/python")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*is not BCC but an unrelated package of that name*"])


@pytest.mark.bpf
@pytest.mark.skipif(os.geteuid() != 0, reason="takes capabilities away from root")
@pytest.mark.usefixtures("run")
def test_a_container_without_the_capabilities_is_told_what_the_doctor_would_say(pytester):
    pytester.makepyfile(test_it=f"from pytest import mark\nnetpoll = mark.netpoll\n{MEASURED}")
    under = ("setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin")
    result = pytester.run(*under, sys.executable, "-m", "pytest", "-p", "no:xdist", timeout=120)
    result.stdout.fnmatch_lines(
        ["unmeasured: echo: the BPF program could not be loaded: * (to mend: docker run --cap-add BPF *"]
    )


def test_a_python_that_is_not_there_is_named(run):
    result = run(MEASURED, "--netpoll-python=/no/python")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*there is no Python at /no/python*--netpoll-python=PATH*"])


@pytest.mark.bpf
def test_an_agent_killed_during_a_test_spoils_that_test_only(run):
    result = run(
        """
@netpoll(max_spurious=0.05)
def test_killed(echo, ping):
    import psutil
    for child in psutil.Process().children():
        if "pytest_netpoll/agent" in " ".join(child.cmdline()): child.kill()
    ping(echo)

@netpoll(max_spurious=0.05)
def test_next(echo, ping): ping(echo)
"""
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["unmeasured: echo: the eBPF agent ended: exit status -9 (to mend: python -m pytest_netpoll doctor)"]
    )


@pytest.mark.bpf
@pytest.mark.usefixtures("run")
def test_a_killed_pytest_leaves_nothing_behind(pytester):
    pytester.makepyfile(
        test_it="""
import time

def test_it(echo, netpoll):
    with netpoll.measure():
        open("running", "w").write(str(echo.pid))
        time.sleep(60)
"""
    )
    with subprocess.Popen([sys.executable, "-m", "pytest", "-p", "no:xdist"], cwd=pytester.path) as process:
        running = pytester.path / "running"
        wait_for(lambda: running.exists() and running.read_text())
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3, "the service, its guardian and the agent"
        process.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(family, timeout=5)
    left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == [], gone


@pytest.mark.bpf
@pytest.mark.usefixtures("run")
def test_ctrl_c_ends_everything(pytester):
    pytester.makepyfile(
        test_it="""
import time, pytest

@pytest.mark.netpoll(max_spurious=0)
def test_it(echo):
    open("running", "w").write("x")
    time.sleep(60)
"""
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist"]
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (pytester.path / "running").exists())
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output
    assert "INTERNALERROR" not in output
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_collecting_starts_nothing(run):
    result = run(MEASURED, "--collect-only", "--netpoll-python=/bin/false")
    assert result.ret == 0


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
