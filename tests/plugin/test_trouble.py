"""What can go wrong around a test: each time there is a message with the next command, and nothing keeps
running."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import patiently, survivors

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:asyncio", "-p", "no:hypothesispytest"]
IMPORTS = "import pytest, time\nfrom conftest import SERVICES\nnetpoll = pytest.mark.netpoll\n"
STARTED = 300  # s; on a busy machine, compiling alone may take a minute
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


def test_a_service_that_never_gets_ready_is_an_error(run):
    result = run("def test_it(go_service): go_service(command='sleep 60', timeout=0.5)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*'sleep'*0.5 s*"])


def test_without_root_the_test_is_unmeasured_with_the_reason(run, pytester):
    """geteuid is patched, because without root this checkout would not be readable."""
    pytester.makepyfile(nobody="import os\nos.geteuid = lambda: 65534\n")
    pytester.syspathinsert()
    result = run(MEASURED, "-p", "nobody", "--netpoll-sudo=never")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["unmeasured: echo: eBPF needs root: *--netpoll-sudo=never*", "  fix: sudo *"]
    )


def test_without_bcc_the_test_is_unmeasured_and_names_the_package(run):
    result = run(MEASURED, f"--netpoll-python={sys.executable}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["unmeasured: echo: BCC's Python module cannot be imported *", "  fix: *install*"]
    )


def test_the_bcc_of_pypi_is_not_mistaken_for_bcc(run, tmp_path):
    """That is a package about crystal lattices; any module of that name without BPF can stand for it."""
    python = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python], check=True)
    site = next((python / "lib").glob("python*/site-packages"))
    (site / "bcc").mkdir()
    (site / "bcc" / "__init__.py").write_text("lattice = 'body-centred cubic'\n")
    result = run(MEASURED, f"--netpoll-python={python}/bin/python")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*is not BCC but an unrelated package of the same name*"])


@pytest.mark.bpf
@pytest.mark.skipif(os.geteuid() != 0, reason="takes capabilities away from root")
@pytest.mark.usefixtures("run")
def test_a_container_without_the_capabilities_gets_the_flags_to_add(pytester):
    pytester.makepyfile(test_it=f"from pytest import mark\nnetpoll = mark.netpoll\n{MEASURED}")
    under = ("setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin")
    result = pytester.run(*under, sys.executable, "-m", "pytest", "-p", "no:xdist", timeout=600)
    result.stdout.fnmatch_lines(
        ["unmeasured: echo: the agent lacks CAP_BPF and CAP_PERFMON", "  fix: *--cap-add BPF --cap-add *"]
    )


def test_a_missing_python_is_named(run):
    result = run(MEASURED, "--netpoll-python=/no/python")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*there is no Python at /no/python*", "  fix: *--netpoll-python=PATH*"])


@pytest.mark.bpf
def test_an_agent_that_dies_or_hangs_affects_only_that_test(run):
    result = run(
        """
from pytest_netpoll.meter import agent_client as probe

def agent():
    import psutil
    family = psutil.Process().children()
    return next(p for p in family if "pytest_netpoll/agent" in " ".join(p.cmdline()))

@netpoll(max_spurious=0.05)
def test_killed(echo, ping):
    agent().kill()
    ping(echo)

@netpoll(max_spurious=0.05)
def test_after_killed(echo, ping): ping(echo)

@netpoll(max_spurious=0.05)
def test_hanging(echo, ping, monkeypatch):
    monkeypatch.setattr(probe, "ANSWER_DEADLINE", 0.5)
    agent().suspend()
    ping(echo)

@netpoll(max_spurious=0.05)
def test_after_hanging(echo, ping): ping(echo)
"""
    )
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(
        [
            "unmeasured: echo: the agent ended: exit status -9",
            "  fix: python *pytest_netpoll doctor",
            "unmeasured: echo: the agent did not answer 'close' within *",
        ]
    )


@pytest.mark.bpf
@pytest.mark.usefixtures("run")
def test_a_killed_pytest_leaves_nothing_behind(pytester):
    pytester.makepyfile(
        test_it="""

def test_it(echo, netpoll):
    with netpoll.measure():
        open("running", "w").write(str(echo.pid))
        time.sleep(60)
"""
    )
    with subprocess.Popen(PYTEST, cwd=pytester.path) as process:
        running = pytester.path / "running"
        patiently(lambda: running.exists() and running.read_text(), STARTED)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3, "the service, its guardian and the agent"
        (agent,) = (p for p in family if "pytest_netpoll/agent" in " ".join(p.cmdline()))
        programs = programs_held_by(agent.pid)
        assert len(programs) >= 2, "sys_exit and its tail call"
        process.send_signal(signal.SIGKILL)
    assert left_of(family) == []
    held = set().union(*map(programs_held_by, psutil.pids()))
    assert not programs & held


@pytest.mark.bpf
@pytest.mark.usefixtures("run")
def test_a_child_that_pytest_forked_does_not_keep_the_agent(pytester):
    pytester.makepyfile(
        test_it="""
import os, time

def test_it(echo, netpoll):
    with netpoll.measure():
        child = os.fork()
        if child:
            open("running", "w").write(str(child))
        time.sleep(60)
"""
    )
    with subprocess.Popen(PYTEST, cwd=pytester.path) as process:
        running = pytester.path / "running"
        patiently(lambda: running.exists() and running.read_text(), STARTED)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    (child,) = (p for p in family if p.pid == int(running.read_text()))
    try:
        assert left_of([p for p in family if p != child]) == []
        assert child.is_running()
    finally:
        child.kill()


@pytest.mark.bpf
def test_a_forked_process_is_unmeasured_with_the_reason_and_pytest_continues(run):
    """As with pytest-forked, which forks for each test; also if the agent has already answered."""
    result = run(
        """
def forked(service, netpoll):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return open("said").read()
    try:
        with netpoll.measure() as window: pass
        window[service]
    except BaseException as error:
        open("said", "w").write(str(error))
        os._exit(0)
    os._exit(1)

REASON = "a test in a forked pytest process can't be measured"

def test_before(go_service, netpoll):
    service = go_service(command="sleep 60", ready=None)
    assert REASON in forked(service, netpoll)

@netpoll(min_wakeups=40)
def test_after(echo, ping, request):
    ping(echo)
    assert REASON in forked(echo, request.getfixturevalue("netpoll"))
"""
    )
    result.assert_outcomes(passed=2)


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
    with subprocess.Popen(PYTEST, cwd=pytester.path, stdout=subprocess.PIPE, text=True) as process:
        patiently(lambda: (pytester.path / "running").exists(), STARTED)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output
    assert "INTERNALERROR" not in output
    assert left_of(family) == []


# What pytest is doing -> the test file in which it does that for a minute; "running" shows that it began. The
# build is a long one, which pytest has announced.
PHASES = {
    "collection": "time.sleep(60)",
    "build": """
def test_it(go_service): go_service(SERVICES + "/echo", go="./slow-go")
""",
    "start": """
def test_it(go_service): go_service(command=["sh", "-c", "touch running; exec sleep 60"], timeout=60)
""",
    "agent start": """
@netpoll(max_spurious=0)
def test_it(go_service): go_service(command="sleep 60", ready=None)
""",
    "setup": """
@pytest.fixture
def slow(echo): open("running", "w").close(); time.sleep(60)
@netpoll(max_spurious=0)
def test_it(slow): pass
""",
    "teardown": """
@pytest.fixture
def slow(echo):
    yield
    open("running", "w").close(); time.sleep(60)
@netpoll(max_spurious=0)
def test_it(slow, echo, ping): ping(echo)
""",
}
# If a process that pytest starts creates "running", pytest may still be busy starting it; it prints when it
# waits.
WAITS = {
    "build": "netpoll: building ",
    "start": "netpoll: waiting for sh: ",
    "agent start": "netpoll: waiting for the eBPF agent to start",
}


@pytest.mark.bpf
@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_ends_everything_whatever_pytest_is_doing(pytester, phase):
    source = PHASES[phase]
    if phase == "collection":
        source = f"open('running', 'w').close(); {source}"
    pytester.makepyfile(test_it=f"{IMPORTS}{source}")
    options = []
    # Like go, it waits for a child that works.
    for name, works in (("slow-go", "sleep 60 & {}; wait"), ("slow-python", "{}; exec sleep 60")):
        program = pytester.path / name
        program.write_text(
            '#!/bin/sh\nif [ "$1" = version ]; then echo go version go1.26.0 linux/amd64; exit; fi\n'
            f"{works.format(f'touch {pytester.path}/running')}\n"
        )
        program.chmod(0o755)
    if phase == "agent start":
        options = ["--netpoll-python=./slow-python"]
    said = pytester.path / "said"
    with (
        said.open("w") as out,
        subprocess.Popen([*PYTEST, *options], cwd=pytester.path, stdout=out) as process,
    ):
        patiently(lambda: (pytester.path / "running").exists(), STARTED)
        patiently(lambda: WAITS.get(phase, "") in said.read_text(), STARTED)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    output = said.read_text()
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output
    assert "INTERNALERROR" not in output
    assert "Traceback" not in output
    assert left_of(family) == []


@pytest.mark.bpf
@pytest.mark.usefixtures("run")
def test_two_runs_at_once_each_count_their_own_service(pytester):
    pytester.makepyfile(
        test_it="""
import os, pytest, time

@pytest.mark.netpoll(max_spurious=0.05)
def test_it(echo, ping):
    count = int(os.environ["PINGS"])
    open(f"{count}.running", "w").close()
    while not all(os.path.exists(f"{n}.running") for n in (60, 90)): time.sleep(0.001)
    ping(echo, count)
"""
    )
    runs = {
        count: subprocess.Popen(
            [*PYTEST, f"--netpoll-json={count}.json"],
            cwd=pytester.path,
            env=os.environ | {"PINGS": str(count)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in (60, 90)
    }
    for count, process in runs.items():
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        (test,) = json.loads((pytester.path / f"{count}.json").read_text())["tests"]
        assert test["services"][0]["metrics"]["wakeups"] == pytest.approx(count + 1, rel=0.05)


@pytest.fixture
def in_namespace(pytester):
    """in_namespace("mount …") runs pytest on MEASURED, in its own mount namespace after that command."""
    pytester.makepyfile(test_it=f"{IMPORTS}{MEASURED}")

    def in_namespace(script, **environment):
        done = subprocess.run(
            ["unshare", "-m", "sh", "-ec", f'{script}; cd "$PWD"; exec "$@"', "sh", *PYTEST, "-s"],
            cwd=pytester.path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert "INTERNALERROR" not in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return in_namespace


needs_mount = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="it mounts")


@pytest.mark.bpf
@needs_mount
@pytest.mark.usefixtures("run")
def test_a_read_only_checkout_can_be_measured(in_namespace, pytester):
    here = shlex.quote(str(pytester.path))
    done = in_namespace(f"mount --bind {here} {here}; mount -o remount,ro,bind {here}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert not (pytester.path / ".pytest_cache").exists()


@pytest.mark.bpf
@needs_mount
@pytest.mark.usefixtures("run")
def test_a_full_disk_for_temporary_files_is_reported_by_the_compiler(in_namespace, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    fill = f"mount -t tmpfs -o size=64k tmpfs {full}; dd if=/dev/zero of={full}/all 2>/dev/null || true"
    done = in_namespace(fill, TMPDIR=str(full), GOTMPDIR=str(full))
    assert done.returncode == 1
    assert re.search(r"cannot build .*/echo: go build ended with exit status", done.stdout), done.stdout
    assert "no space left on device" in done.stdout


def test_collecting_starts_nothing(run):
    result = run(MEASURED, "--collect-only", "--netpoll-python=/bin/false")
    assert result.ret == 0


def left_of(family):
    """The processes that do not end."""
    return survivors((process.pid for process in family), 30)


def programs_held_by(pid):
    """The numbers of the BPF programs that the process has open."""
    found = set()
    with contextlib.suppress(OSError):  # the process has ended
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):  # this one is closed
                found |= set(re.findall(r"^prog_id:\s*(\d+)", path.read_text(), re.MULTILINE))
    return found
