"""pytest as an ordinary user: a real one, with a real sudo and the test's own line in sudoers."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_netpoll.agent.constants import SCHEDULER
from pytest_netpoll.cli import install_agent
from pytest_netpoll.cli.sudoers import InstallError
from pytest_netpoll.gobinary.ready_sites import find_sites
from pytest_netpoll.gobinary.scheduler_layout import find_layout
from pytest_netpoll.meter import privilege
from tests import attacks
from tests.attacks import running
from tests.bpf.conftest import ping
from tests.waiting import fall_asleep, patiently, undisturbed

ROOT = Path(__file__).parents[2]
NOBODY = 65534
REQUIRED = ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "psutil", "pyelftools", "tabulate")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("useradd") or not shutil.which("setpriv"),
    reason="becoming an ordinary user takes root, and useradd and setpriv",
)
needs_sudo = pytest.mark.skipif(
    not shutil.which("sudo"), reason="there is no sudo: .ci/setup test installs it where it may"
)


class User(attacks.User):
    """An ordinary user with a virtual environment, a home, and a Go service to test."""

    def __init__(self, name: str, home: Path, python: Path) -> None:
        entry = pwd.getpwnam(name)
        super().__init__(name, entry.pw_uid, entry.pw_gid, home)
        self.python = python

    def pytest(self, source: str, *options: str, **how: Any) -> Any:
        """Runs pytest on the source, as `run` does; (its result, {test: as in the JSON report})."""
        write(self.home, source)
        result = self.run(*self.pytest_command, *options, **how)
        report = self.home / "report.json"
        assert "INTERNALERROR" not in result.stdout + result.stderr, result.stdout
        tests = json.loads(report.read_text())["tests"] if report.exists() else []
        report.unlink(missing_ok=True)
        return result, {test["nodeid"].partition("::")[2]: test for test in tests}

    @property
    def pytest_command(self) -> list[str]:
        command = [str(self.python), "-m", "pytest", "-q", "-p", "pytest_netpoll.plugin"]
        return [*command, "-p", "no:cacheprovider", "--netpoll-json=report.json"]


IMPORTS = '''
import contextlib, os, socket, time
from pathlib import Path
import psutil, pytest
from waiting import fall_asleep, patiently

def connects(address):
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address, timeout=20):
        return True

def pings(service, count=100):
    with socket.create_connection(service.address, timeout=20) as c:
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fall_asleep(service.pid)
        for _ in range(count + 1):
            c.sendall(b"ping")
            assert c.recv(4) == b"ping"
            fall_asleep(service.pid)
    fall_asleep(service.pid)

@pytest.fixture(scope="session")
def echo(go_service):
    return go_service(command=["./echo", "-addr", "127.0.0.1:{port}"])

@pytest.fixture
def agent():
    """{name: value} of the agent's /proc/PID/status."""
    (process,) = (p for p in psutil.Process().children(recursive=True)
                  if p.cmdline()[1:3] == ["-I", "-B"] and p.cmdline()[0].endswith("python3"))
    return dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
'''


def write(directory: Path, source: str, echo: str = "./echo") -> None:
    """test_it.py, with what it imports of ours: the user may not read our checkout."""
    shutil.copy(ROOT / "tests" / "waiting.py", directory)
    (directory / "test_it.py").write_text(IMPORTS.replace("./echo", echo) + source)


MEASURED = "@pytest.mark.netpoll\ndef test_it(echo): pings(echo)\n"


@pytest.fixture(scope="module")
def user(built, newest_go):
    name = f"netpoll{os.getpid()}"
    subprocess.run(["useradd", "--system", "--no-create-home", name], check=True)
    home = Path(tempfile.mkdtemp(prefix="netpoll-user-"))
    try:
        home.chmod(0o755)
        shutil.copy(built("echo", str(newest_go.go)), home / "echo")
        user = User(name, home, home / "venv" / "bin" / "python")
        make_venv(user)
        for own in home, home / "echo":
            shutil.chown(own, user.uid, user.gid)
        yield user
    finally:
        shutil.rmtree(home)
        for process in psutil.process_iter(["username"]):
            if process.info["username"] == name:
                process.kill()
        subprocess.run(["userdel", name], check=True, capture_output=True)


def make_venv(user: User) -> None:
    """A virtual environment of a Python that the user can run, with copies of what the plugin needs."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        version = "import sys, venv; sys.exit(sys.version_info < (3, 10))"
        if user.run(python, "-c", version, cwd="/").returncode == 0:
            break
    else:
        pytest.skip("this machine has no Python of 3.10 or newer that everybody may run")
    subprocess.run([python, "-m", "venv", "--without-pip", user.home / "venv"], check=True)
    (site,) = (user.home / "venv" / "lib").glob("python*/site-packages")
    for distribution in REQUIRED:
        for file in importlib.metadata.files(distribution) or ():
            if file.suffix in (".py", ".so") or file.parent.suffix == ".dist-info":
                target = site / file
                if target.is_relative_to(site) and ".." not in file.parts:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(str(file.locate()), target)
    shutil.copytree(ROOT / "pytest_netpoll", site / "pytest_netpoll")
    shutil.copytree(ROOT / "bpf", site / "pytest_netpoll" / "bpf")
    tried = user.run(user.python, "-c", "import pytest, psutil, elftools, tabulate", cwd="/")
    if tried.returncode:
        pytest.skip(f"the tests' packages do not work with {python}: {tried.stderr}")


@pytest.fixture(scope="module")
def filled():
    """What install-agent does to fill the cache, with these tests' sizes; it compiles once."""
    fill_cache, caches = install_agent.fill_cache, []
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "cache"

        def fill(prefix, python, config, again):
            if not kept.exists():
                caches.append(fill_cache(prefix, python, config, again))
                fill_cache(prefix, python, dataclasses.replace(config, max_processes=4, max_fds=64), again)
                shutil.copytree(prefix / "cache", kept)
            shutil.copytree(kept, prefix / "cache", dirs_exist_ok=True)
            return caches[0]

        yield fill


@pytest.fixture
def installed(user, filled, monkeypatch):
    """The directory of an agent that is installed for the user, with its line in sudoers."""
    monkeypatch.setattr(install_agent, "fill_cache", filled)
    prefix = Path(f"/usr/local/lib/netpoll-test-{os.getpid()}")
    sudoers = Path(f"/etc/sudoers.d/netpoll-test-{os.getpid()}")
    try:
        options = ["--prefix", str(prefix), "--user", user.name, "--sudoers", str(sudoers)]
        assert install_agent.main(options) == 0
        yield prefix
    finally:
        shutil.rmtree(prefix, ignore_errors=True)
        sudoers.unlink(missing_ok=True)


def wakeups(tests):
    (service,) = tests["test_it"]["services"]
    return service["metrics"]["productive_wakeups"]


@needs_sudo
@pytest.mark.parametrize(
    ("goready", "capabilities", "counted"),
    [
        pytest.param("off", 0, False, id="off"),
        pytest.param("auto", 1 << 21, True, id="auto", marks=pytest.mark.uprobes),
    ],
)
def test_the_installed_agent_measures_and_keeps_what_uprobes_take(
    user, installed, goready, capabilities, counted
):
    """CAP_SYS_ADMIN, and without uprobes nothing; in both cases the user that it became can't inspect it."""
    source = "@pytest.mark.netpoll\ndef test_it(echo, agent):\n    pings(echo)\n" + "".join(
        f"    assert agent[{name!r}].split() == {value!r}\n"
        for name, value in {
            "Uid": [str(user.uid)] * 4,
            "Gid": [str(user.gid)] * 4,
            "CapPrm": [f"{capabilities:016x}"],
            "CapEff": ["0" * 16],  # except while a probe is placed
            "CapBnd": ["0" * 16],
            "CapInh": ["0" * 16],
            "CapAmb": ["0" * 16],
            "Groups": [str(user.gid)],
            "NoNewPrivs": ["1"],
            "Seccomp": ["2"],  # a filter
        }.items()
    )
    source += """
    for part in ("mem", "maps", "environ", "fd/0"):
        with pytest.raises(PermissionError):
            open(f"/proc/{agent['Pid'].strip()}/{part}", "rb")
"""
    result, tests = user.pytest(source, f"--netpoll-agent={installed}", f"--netpoll-goready={goready}")
    assert result.returncode == 0, result.stdout
    assert wakeups(tests) == pytest.approx(103, abs=2)
    (service,) = tests["test_it"]["services"]
    assert (service["metrics"]["ready_calls"] is not None) == counted
    assert not agents(installed)


@needs_sudo
def test_the_doctor_finds_an_agent_that_is_installed_elsewhere(user, installed):
    command = [user.python, "-m", "pytest_netpoll", "doctor", "--json", f"--netpoll-agent={installed}"]
    run = user.run(*command, env={**user.environment, "PATH": "/usr/bin:/bin"})
    findings = {check["name"]: check for check in json.loads(run.stdout)["checks"]}
    assert findings["agent"]["status"] == "ok", findings
    assert run.returncode == 0, findings


def test_a_directory_that_only_root_may_read_ends_no_check(user):
    """Like tracefs; the text of an agent's failure comes from these checks, too."""
    closed = user.home / "closed"
    closed.mkdir(mode=0o700)
    look = "from pathlib import Path; from pytest_netpoll.meter import checks; "
    look += f"checks.TRACEFS = (Path({str(closed)!r}),); print(checks.tracefs().seen)"
    try:
        run = user.run(user.python, "-c", look)
    finally:
        closed.rmdir()
    assert run.stdout == "not mounted, or visible to root only (not needed)\n", run.stderr


@needs_sudo
def test_killing_pytest_ends_the_agent_behind_sudo(user, installed):
    source = "def test_it(echo, netpoll):\n    with netpoll.measure():\n"
    source += "        Path('running').touch(); time.sleep(60)\n"
    write(user.home, source)
    command = user.become(*user.pytest_command, "-s", f"--netpoll-agent={installed}")
    with subprocess.Popen(command, cwd=user.home, env=user.environment, stdout=subprocess.DEVNULL) as process:
        patiently((user.home / "running").exists)
        assert agents(installed)
        os.kill(process.pid, signal.SIGKILL)
    patiently(lambda: not agents(installed))


@needs_sudo
def test_an_agent_behind_sudo_loads_nothing_after_pytest_was_killed(user, installed):
    write(user.home, MEASURED)
    shutil.rmtree(installed / "cache")
    command = user.become(*user.pytest_command, f"--netpoll-agent={installed}")
    with subprocess.Popen(command, cwd=user.home, env=user.environment, stdout=subprocess.DEVNULL) as process:
        patiently(lambda: "libbcc" in seen_of_agents(installed, "maps"), step=0.005)
        os.kill(process.pid, signal.SIGKILL)
    while agents(installed):
        # The program that holds its slot among the user's agents has two instructions.
        sizes = re.findall(r"^verified_insns:\s*(\d+)", seen_of_agents(installed, "fdinfo/*"), re.M)
        assert set(sizes) <= {"2"}


@needs_sudo
@pytest.mark.parametrize("uid", [NOBODY, 0], ids=["nobody", "root"])
def test_another_users_process_is_refused(user, installed, uid):
    command = [user.home / "echo", "-addr", "127.0.0.1:0"]
    with subprocess.Popen(command, user=uid, stdout=subprocess.DEVNULL) as other:
        source = f"@pytest.mark.netpoll\ndef test_it(go_service): go_service(pid={other.pid}, ready=None)\n"
        result, tests = user.pytest(source, f"--netpoll-agent={installed}")
        other.kill()
    assert result.returncode == 1
    assert tests["test_it"]["outcome"] == "unmeasured"
    assert f"process {other.pid} belongs to another user" in tests["test_it"]["reason"]
    assert "run pytest as root" in tests["test_it"]["reason"]


@needs_sudo
def test_a_process_that_was_root_before_is_refused(user, installed):
    """It may still have data that only root may read."""
    become = f"import os, time; os.setresuid({user.uid}, {user.uid}, {user.uid}); print('x'); time.sleep(60)"
    command = ["/usr/bin/python3", "-u", "-c", become]
    with running(user, installed) as ask, subprocess.Popen(command, stdout=subprocess.PIPE) as was_root:
        was_root.stdout.read(1)
        assert set(psutil.Process(was_root.pid).uids()) == {user.uid}
        answer = ask("watch", pid=was_root.pid)
        was_root.kill()
    assert "belongs to another user" in answer["error"]["what"]


@needs_sudo
def test_a_child_that_becomes_root_is_not_reported(user, installed):
    """It runs the same service from a file with the setuid bit."""
    if os.statvfs(user.home).f_flag & os.ST_NOSUID:
        pytest.skip(f"{user.home} does not honour the setuid bit")
    raised = user.home / "raised"
    shutil.copy(user.home / "echo", raised)
    raised.chmod(0o4755)
    source = """
@pytest.mark.netpoll
def test_it(go_service):
    script = "./raised -addr 127.0.0.1:{port} & wait"
    service = go_service(command=["sh", "-c", script], ready=None)
    patiently(lambda: connects(service.address))
    pings(service, 10)
"""
    try:
        _, tests = user.pytest(source, f"--netpoll-agent={installed}")
    finally:
        raised.unlink()
        for process in psutil.process_iter(["exe"]):
            if process.info["exe"] and process.info["exe"].startswith(str(raised)):
                process.kill()
    (service,) = tests["test_it"]["services"]
    assert tests["test_it"]["outcome"] == "unmeasured"
    assert service["metrics"]["wakeups"] in (0, None)


@needs_sudo
@pytest.mark.parametrize(
    "spoil",
    [
        lambda agent, _: (agent / "processes/proc.py").chmod(0o666),
        lambda agent, _: agent.chmod(0o775),
        lambda agent, _: agent.parent.chmod(0o777),
        lambda agent, user: os.chown(agent / "processes/proc.py", user.uid, 0),
        lambda agent, user: os.chown(agent.parent / "bpf" / "netpoll.c", user.uid, 0),
        lambda agent, _: agent.rename(agent.parent / "moved") and agent.symlink_to("moved"),
    ],
    ids=["file writable", "directory writable", "writable above", "file", "bpf file", "link"],
)
def test_an_installed_agent_that_others_can_change_is_not_used(user, installed, spoil):
    spoil(installed / "agent", user)
    # Not by pytest …
    result, tests = user.pytest(MEASURED, f"--netpoll-agent={installed}")
    assert result.returncode == 1
    assert f"installed in {installed} is not safe to start with sudo" in tests["test_it"]["reason"]
    # … and the agent itself refuses if it is started anyway.
    first = start(user, *privilege.agent_command(privilege.SYSTEM_PYTHON, installed / "agent"))
    assert "refuses to run as root where others can change it" in first["failed"]["what"]


@needs_sudo
def test_the_installed_agent_reads_its_cache_and_never_writes_it(user, installed):
    with running(user, installed) as ask:
        assert (ask.ready["program"], ask.ready["not_cached"]) == ("cache", None)
    entries = sorted((installed / "cache").iterdir())
    for entry in entries:
        assert (entry.stat().st_uid, entry.stat().st_mode & 0o777) == (0, 0o600)
        entry.write_bytes(entry.read_bytes()[:-1])
    damaged = [entry.read_bytes() for entry in entries]
    with running(user, installed) as ask:
        assert ask.ready["program"] == "compiled"
        assert ask.ready["not_cached"] == {
            "what": "the cached file is damaged, or in another format",
            "fix": "sudo python -m pytest_netpoll install-agent",
        }
    assert [entry.read_bytes() for entry in sorted((installed / "cache").iterdir())] == damaged


@needs_sudo
def test_a_cache_that_others_can_write_is_not_read(user, installed):
    (installed / "cache").chmod(0o777)
    with running(user, installed) as ask:
        assert ask.ready["program"] == "compiled"
        why = ask.ready["not_cached"]["what"]
        assert why == f"{installed}/cache can be written to by others than root (mode 777)"


@needs_sudo
@pytest.mark.parametrize("argument", ["--cache=/home", "--fill=4,64", "--unverified"])
def test_a_user_can_neither_choose_nor_fill_a_cache_through_sudo(user, installed, argument):
    command = privilege.agent_command(privilege.SYSTEM_PYTHON, installed / "agent")
    refused = user.run("sudo", "-n", "--", *command, argument)
    assert refused.returncode == 1
    assert "password is required" in refused.stderr


@needs_sudo
def test_a_full_disk_leaves_the_installed_agent(installed, monkeypatch):
    def contents():
        return {path: path.read_bytes() for path in installed.rglob("*") if path.is_file()}

    (installed / "agent" / "processes/proc.py").write_text("# of an earlier version\n")
    before = contents()
    copy = install_agent._copy

    def full(source, target):
        if source.name == "bpf":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(install_agent, "_copy", full)
        with pytest.raises(InstallError, match="No space left on device"):
            install_agent.install(installed)
    assert contents() == before
    install_agent.install(installed)
    assert privilege.is_usable(installed)
    assert sorted(path.name for path in installed.iterdir()) == ["agent", "bpf", "cache"]


@needs_sudo
def test_an_installed_agent_of_another_version_is_not_used(user, installed):
    with open(installed / "agent" / "processes/proc.py", "a") as file:
        file.write("# changed\n")
    result, tests = user.pytest(MEASURED, f"--netpoll-agent={installed}")
    assert result.returncode == 1
    reason = tests["test_it"]["reason"]
    assert "is of another version, and sudo asks for a password" in reason
    assert f"install-agent --prefix {installed}" in reason


@needs_sudo
@pytest.mark.usefixtures("installed")
def test_without_an_installed_agent_a_user_with_full_sudo_measures(user):
    sudoers = Path(f"/etc/sudoers.d/netpoll-test-{os.getpid()}")
    sudoers.write_text(f"{user.name} ALL=(root) NOPASSWD: ALL\n")
    result, tests = user.pytest(MEASURED, "--netpoll-agent=/nowhere")
    assert result.returncode == 0, result.stdout
    assert wakeups(tests) == pytest.approx(103, abs=2)


@needs_sudo
@pytest.mark.parametrize("language", ["en", "de"])  # without its translations sudo always speaks English
def test_a_user_without_sudo_is_told_what_to_install(user, language):
    environment = {**user.environment, "LANGUAGE": language}
    result, tests = user.pytest(MEASURED, "--netpoll-agent=/nowhere", env=environment)
    assert result.returncode == 1
    assert "eBPF needs root: pytest is not root and sudo asks for a password" in tests["test_it"]["reason"]
    command = f"install-agent --prefix /nowhere --user {user.name} --sudoers"
    assert command in tests["test_it"]["reason"]
    assert any(command in line and "sudo " in line for line in result.stdout.splitlines()), "in one line"


@needs_sudo
def test_a_sudo_that_knows_the_user_but_refuses_the_agent_is_explained(user):
    sudoers = Path(f"/etc/sudoers.d/netpoll-test-{os.getpid()}")
    sudoers.write_text(f"{user.name} ALL=(root) NOPASSWD: ALL, !/usr/bin/python3\n")
    try:
        _, tests = user.pytest(MEASURED, "--netpoll-agent=/nowhere")
    finally:
        sudoers.unlink()
    assert "pytest is not root and sudo doesn't let this user start it" in tests["test_it"]["reason"]
    assert f"--user {user.name} --sudoers" in tests["test_it"]["reason"]


@needs_sudo
def test_the_line_in_sudoers_allows_the_agent_and_nothing_else(user, installed):
    python, agent = str(privilege.SYSTEM_PYTHON), str(installed / "agent")
    for command in (
        [python],
        [python, "-c", "print('ready')"],
        [python, "-I", "-B", agent, "--unverified"],
        [python, "-B", agent],
        [python, "-I", "-B", f"{agent}/../agent"],
        [python, "-I", "-B", str(user.home)],
        ["sh"],
    ):
        run = user.run("sudo", "-n", "--", *command, input="")
        assert (run.returncode, run.stdout) == (1, ""), command
        assert "password is required" in run.stderr, command
    # Sudo compares arguments joined by spaces: it allows these, but Python does not understand them.
    for command in ([python, f"-I -B {agent}"], [python, "-I", f"-B {agent}"], [python, "-I -B", agent]):
        run = user.run("sudo", "-n", "--", *command, input="")
        assert run.returncode != 0, command
        assert "ready" not in run.stdout, command


@needs_sudo
def test_a_users_messages_to_the_agent_are_checked(user, installed):
    agent = privilege.agent_command(privilege.SYSTEM_PYTHON, installed / "agent")
    for message, complaint in (
        ({"do": "watch", "pid": 1}, "the first command must be load"),
        (
            {"do": "load", "max_processes": 4000, "max_fds": 1 << 30, "uprobes": 0, "answers": 0},
            "more than 1 GiB of kernel memory",
        ),
        # 0.98 GB of descriptors, and the counters of this many processes.
        (
            {"do": "load", "max_processes": 4095, "max_fds": 3000, "uprobes": 0, "answers": 0},
            "more than 1 GiB of kernel memory",
        ),
        ({"do": "load", "max_processes": "4"}, "load needs max_processes, a whole number"),
    ):
        assert complaint in start(user, *agent, message=message)["failed"]["what"]


@needs_sudo
def test_the_limits_hold_for_all_agents_of_a_user_together(user, installed):
    agent = privilege.agent_command(privilege.SYSTEM_PYTHON, installed / "agent")
    sudo = user.become("sudo", "-n", "--", *agent)
    most = installed / "agent" / "security/budget.py"
    most.write_text(
        most.read_text().replace("AGENTS = 8", "AGENTS = 2").replace("PATIENCE = 5", "PATIENCE = 1")
    )
    with running(user, installed):
        with running(user, installed):
            what = waited_for(sudo)["failed"]["what"]
            assert "this user has 2 agents" in what
            assert "2 agents and 1024 MiB are the maximum" in what
            # Root's don't count for the user, and aren't limited.
            assert "ready" in waited_for(agent)
        patiently(lambda: "ready" in waited_for(sudo))  # the kernel takes a moment to free a slot
    large = {"max_processes": 100, "max_fds": 60_000}  # 0.7 GB
    with running(user, installed, **large):
        what = waited_for(sudo, **large)["failed"]["what"]
        assert "this user has 1 agents, which take" in what
        patiently(lambda: "ready" in waited_for(sudo))


@needs_sudo
def test_a_false_agent_takes_no_slot_of_the_user(user, installed):
    """A program with the token's name, but not loaded by root."""
    load_nothing = f"from bpf import tracing; tracing.load_nothing(b'netp{user.uid:08x}_ff')"
    command = ["python3", "-c", f"{load_nothing}; print('there', flush=True); input()"]
    environment = {**user.environment, "PYTHONPATH": str(installed / "agent")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen(user.become(*command, capabilities="+bpf"), **pipes) as process:
        assert process.stdout.readline() == b"there\n"
        with running(user, installed):
            process.stdin.close()


def waited_for(command, **sizes):
    """The first answer of an agent, after waiting for it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd="/", **pipes) as process:
        message = {"do": "load", "max_processes": 4, "max_fds": 64, "uprobes": 0, "answers": 0, **sizes}
        process.stdin.write(load(message))
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        process.stdin.close()
    return answer


@needs_sudo
def test_processes_of_others_are_not_reported_in_a_window_and_free_their_slot_at_once(user, installed):
    if os.statvfs(user.home).f_flag & os.ST_NOSUID:
        pytest.skip(f"{user.home} does not honour the setuid bit")
    raised = user.home / "sleep"
    shutil.copy(os.path.realpath(shutil.which("sleep")), raised)
    raised.chmod(0o4755)
    command = user.become("sh", "-c", f"{raised} 60 & wait")
    with running(user, installed, max_processes=2) as ask, subprocess.Popen(command) as family:
        try:
            patiently(lambda: [p for p in psutil.Process(family.pid).children() if p.uids().effective == 0])
            window = ask("open", **attacks.WINDOW)["ok"]["window"]
            # Another user's process, the user's own with a child that is root's, and all slots for the user's
            # own.
            for pid in (1, family.pid):
                refusal = ask("watch", pid=pid)["error"]["what"]
                assert "belongs to another user" in refusal
            (child,) = psutil.Process(family.pid).children()
            assert f"process {child.pid}, a descendant of process {family.pid}, belongs" in refusal
            assert ask("programs")["ok"] == {"processes": []}
            assert ask("learn", pid=1, **dict.fromkeys(SCHEDULER, 8))["error"]
            with contextlib.ExitStack() as stack:
                for _ in range(2):
                    assert "ok" in ask("watch", pid=stack.enter_context(asleep(user)))
                answer = ask("close", window=window, settle_ms=0)["ok"]
            assert {"1", str(family.pid)}.isdisjoint(answer["services"])
        finally:
            for process in psutil.Process(family.pid).children():
                process.kill()
            raised.unlink()


@needs_sudo
def test_a_shell_is_watched_without_the_agent_that_it_started(user, installed):
    with running(user, installed) as ask, attacks.watched(ask, ask.shell):
        assert [process["pid"] for process in ask("programs")["ok"]["processes"]] == [ask.shell]


@needs_sudo
@pytest.mark.uprobes
def test_a_users_probes_are_only_in_the_users_process(user, installed):
    with running(user, installed, uprobes=1) as ask:
        attacks.a_users_probes_are_only_in_the_users_process(ask, user, user.home / "echo")


@needs_sudo
def test_a_user_sees_only_the_users_own_parked_goroutines(user, installed):
    with running(user, installed) as ask:
        attacks.a_user_sees_only_the_users_own_parked_goroutines(ask, user, user.home / "echo")


@needs_sudo
@pytest.mark.uprobes
def test_a_user_cannot_choose_the_place_of_a_probe(user, installed):
    with running(user, installed, uprobes=1) as ask:
        attacks.a_user_cannot_choose_the_place_of_a_probe(ask, user, user.home / "echo")


@needs_sudo
@pytest.mark.uprobes
@pytest.mark.parametrize("how", attacks.OVERLAYS)
def test_a_file_on_a_users_overlay_gets_no_probes(user, installed, how):
    with running(user, installed, uprobes=1) as ask:
        attacks.a_file_on_a_users_overlay_gets_no_probes(ask, user, user.home / "echo", how)


@needs_sudo
@pytest.mark.uprobes
def test_children_that_exist_when_the_window_opens_have_probes_for_a_user(user, installed, built, newest_go):
    program = user.home / "ready"
    shutil.copy(built("ready", str(newest_go.go)), program)
    shutil.chown(program, user.uid, user.gid)
    site = find_sites(str(program)).ready
    start = f"{program} -n 50 -addr 127.0.0.1:0 &"
    script = f"{start} {start} read _; {start} read _; /bin/true; echo; wait"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        running(user, installed, uprobes=1, max_processes=8) as ask,
        subprocess.Popen(user.become("sh", "-c", script), **pipes) as shell,
        contextlib.ExitStack() as stack,
    ):

        def started():
            host, port = shell.stdout.readline().split()[-1].decode().rsplit(":", 1)
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            ping(connection)
            return connection

        def measured(act):
            window = ask("open", **attacks.WINDOW)["ok"]["window"]
            result = act()
            processes = ask("close", window=window, settle_ms=20)["ok"]["services"][str(shell.pid)]
            return result, processes, [p["ready_calls"] for p in processes if p["executable"] == str(program)]

        def pings():
            for _ in range(20):
                for connection in connections:
                    ping(connection)
                fall_asleep(shell.pid)  # all that were woken have parked again

        def next_step():
            shell.stdin.write(b"\n")
            shell.stdin.flush()

        def another():
            next_step()
            return started()

        def one_that_ends():
            next_step()
            assert shell.stdout.readline() == b"\n"

        try:
            connections = [started(), started()]
            _, first, *_ = [p["pid"] for p in ask("watch", pid=shell.pid)["ok"]["processes"]]
            assert "ok" in ask("attach", pid=first, ready=site, deadline=0)
            # The agent attaches to the other one by itself.
            _, _, calls = measured(pings)
            assert calls == [pytest.approx(1000, rel=0.05)] * 2
            # What the third one did before its probes were there makes this window unmeasured …
            third, _, calls = measured(another)
            assert sorted(calls, key=str)[-1] is None
            assert calls.count(None) == 1
            # … and from the next window on it has probes.
            connections.append(third)
            _, _, calls = measured(pings)
            assert calls == [pytest.approx(1000, rel=0.05)] * 3
            # One that has ended before the agent could look at it.
            _, processes, _ = measured(one_that_ends)
            assert [p["unprobed"] for p in processes] == [1, 0, 0, 0]
        finally:
            for child in psutil.Process(shell.pid).children():
                child.kill()
            program.unlink()


@needs_sudo
@pytest.mark.parametrize("how", attacks.EXEC_GAINS)
def test_a_process_that_gains_rights_by_an_exec_is_no_longer_counted(user, installed, built, newest_go, how):
    brief = built("brief", str(newest_go.go))
    with running(user, installed, trace=1000) as ask:
        check = attacks.a_process_that_gains_rights_by_an_exec_is_no_longer_counted
        (undisturbed(check) if how == "plain" else check)(ask, user, brief, how)


@needs_sudo
def test_invented_descriptors_reveal_nothing_to_a_user(user, installed, built, newest_go):
    hostile = user.home / "hostile"
    shutil.copy(built("hostile", str(newest_go.go)), hostile)
    with running(user, installed, max_fds=16384) as ask:
        told = attacks.invented_descriptors_reveal_only_the_programs_own(ask, user, hostile, 4, 150, 1000)
    assert told > 1000


@needs_sudo
def test_the_ninth_agent_of_a_user_is_refused(user, installed):
    attacks.the_ninth_agent_is_refused(user, installed)


@needs_sudo
def test_the_agent_keeps_what_security_md_lists(user, installed):
    with running(user, installed, uprobes=1):
        attacks.what_the_agent_keeps(user, installed)


# Stops the agent before it opens a process's memory, as long as the pipe is open for writing.
STOP = """
class Memory(Memory):
    def __init__(self, pid):
        if os.path.exists({pipe!r}):
            with open({pipe!r}) as f:
                f.read()
        super().__init__(pid)
"""


@contextlib.contextmanager
def exec_before_memory_is_read(user, process, program):
    """Makes the agent, for requests in the block, read the memory of the program that the process execs in
    between."""
    pipe = user.home / "pipe"

    def act():
        with open(pipe, "w"):  # the agent is there
            pipe.unlink()
            process.send_signal(signal.SIGUSR1)
            patiently(lambda: b"ready on" in process.stdout.readline())
            assert Path(f"/proc/{process.pid}/exe").readlink() == program

    os.mkfifo(pipe, 0o644)
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError), open(pipe):  # if the agent did not get that far
            pass
        thread.join()


@needs_sudo
@pytest.mark.uprobes
@pytest.mark.parametrize(
    ("successor", "refusal"),
    [
        # The same program, so that everything that was read fits.
        ("learn reexec", "the memory of process {pid} does not hold the scheduler's counters"),
        ("attach reexec", "it now runs another program"),
        # Another one, which has something else at that place; the agent doesn't report what.
        ("attach ready", "it now runs another program"),
    ],
)
def test_nothing_read_from_a_process_that_meanwhile_exec_ed_is_used(
    user, installed, built, newest_go, successor, refusal
):
    """One of the user's programs, because the kernel refuses to read the memory of one with other rights."""
    command, name = successor.split()
    with (installed / "agent" / "processes" / "proc.py").open("a") as file:
        file.write(STOP.format(pipe=str(user.home / "pipe")))
    before, after = user.home / "before", user.home / "after"
    shutil.copy(built("reexec", str(newest_go.go)), before)
    shutil.copy(built(name, str(newest_go.go)), after)
    shutil.chown(before, user.uid, user.gid)
    become = user.become(before, "-then", f"exec {after} -addr 127.0.0.1:0")
    try:
        with (
            running(user, installed, uprobes=1) as ask,
            attacks.executed(*become, program=before) as process,
        ):
            assert "ok" in ask("watch", pid=process.pid)
            with exec_before_memory_is_read(user, process, after):
                if command == "learn":
                    answer = ask("learn", pid=process.pid, **find_layout(str(before)).places)
                else:
                    answer = ask("attach", pid=process.pid, ready=find_sites(str(before)).ready, deadline=0)
    finally:
        before.unlink()
        after.unlink()
    assert answer["error"]["what"] == refusal.format(pid=process.pid)


@needs_sudo
def test_a_process_unwatched_in_a_window_is_dropped_at_its_end(user, installed):
    with running(user, installed, max_processes=1) as ask, asleep(user) as pid:
        window = ask("open", **attacks.WINDOW)["ok"]["window"]
        ask("watch", pid=pid)
        ask("unwatch", pid=pid)
        (process,) = ask("programs")["ok"]["processes"]
        assert process["exited"]
        ask("close", window=window, settle_ms=0)
        assert ask("programs")["ok"] == {"processes": []}
        assert "ok" in ask("watch", pid=pid)


def test_ambient_capabilities_suffice_instead_of_root(user):
    source = MEASURED + "def test_agent(agent, netpoll):\n    with netpoll.measure(): pass\n"
    result, tests = user.pytest(source, "--netpoll-sudo=never", capabilities="+bpf,+perfmon")
    assert wakeups(tests) == pytest.approx(103, abs=2), result.stdout


def test_the_missing_capability_for_uprobes_is_named(user):
    result, tests = user.pytest(MEASURED, "--netpoll-goready=on", capabilities="+bpf,+perfmon")
    assert tests["test_it"]["outcome"] == "unmeasured", result.stdout
    assert "CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN)" in tests["test_it"]["reason"]
    assert "runtime.ready" not in result.stdout.partition("attached:")[2]


def test_half_of_the_capabilities_are_not_enough(user):
    result, tests = user.pytest(MEASURED, "--netpoll-sudo=never", capabilities="+bpf")
    assert result.returncode == 1
    assert "pytest is neither root nor has CAP_BPF and CAP_PERFMON" in tests["test_it"]["reason"]
    assert "attached:" not in result.stdout


def test_capabilities_of_the_agents_python_suffice(user):
    """setcap on a copy that only this user's group may run."""
    setcap = shutil.which("setcap") or "/usr/sbin/setcap"
    if not Path(setcap).exists():
        pytest.skip("there is no setcap")
    python = user.home / "python3"
    shutil.copy(os.path.realpath(privilege.SYSTEM_PYTHON), python)
    try:
        os.chown(python, 0, user.gid)
        python.chmod(0o750)
        subprocess.run([setcap, "cap_bpf,cap_perfmon+ep", python], check=True)
        result, tests = user.pytest(MEASURED, "--netpoll-sudo=never", f"--netpoll-python={python}")
    finally:
        python.unlink()
    assert wakeups(tests) == pytest.approx(103, abs=2), result.stdout


# What Docker gives by default (containerd's default set), by hand, because there is no Docker here.
DOCKER = """
    chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod
    audit_write setfcap
"""


def in_container(directory, *arguments, added=(), env=None):
    """Our Python, run by root with Docker's default capabilities and what --cap-add adds, in its
    namespaces."""
    bounds = ",".join(["-all", *(f"+{name}" for name in (*DOCKER.split(), *added))])
    wall = ["unshare", "--pid", "--fork", "--mount-proc", "--net"]
    wall += ["sh", "-c", 'ip link set lo up; exec "$@"', "sh", "setpriv", f"--bounding-set={bounds}"]
    return subprocess.run(
        [*wall, sys.executable, "-m", *arguments],
        cwd=directory,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("added", [("bpf", "perfmon"), ()])
def test_root_in_a_container_needs_two_capabilities_added(user, tmp_path, added):
    write(tmp_path, MEASURED, echo=f"{user.home}/echo")
    options = ["-q", "-p", "no:cacheprovider", "--netpoll-json=report.json"]
    run = in_container(tmp_path, "pytest", *options, added=added)
    (test,) = json.loads((tmp_path / "report.json").read_text())["tests"]
    if added:
        assert run.returncode == 0, run.stdout
        assert wakeups({"test_it": test}) == pytest.approx(103, abs=2)
    else:
        assert run.returncode == 1
        assert "the agent lacks CAP_BPF and CAP_PERFMON" in test["reason"]
        assert "--cap-add BPF --cap-add PERFMON" in test["reason"]


def test_the_doctor_finds_that_container_fit_for_measuring(newest_go, tmp_path):
    path = f"{newest_go.go.parent}:{os.environ['PATH']}"
    run = in_container(
        tmp_path, "pytest_netpoll", "doctor", "--json", added=("bpf", "perfmon"), env={"PATH": path}
    )
    report = json.loads(run.stdout)
    findings = {check["name"]: check for check in report["checks"]}
    assert (run.returncode, report["works"], report["proven"]) == (0, True, True), run.stdout
    assert findings["privileges"]["status"] == "warn"
    assert "CAP_SYS_PTRACE" in findings["privileges"]["seen"]


def test_a_pods_test_container_measures_the_service_of_another_one(user, tmp_path):
    """example_project/ci/kubernetes-job.yaml: one pid namespace, two users, the capabilities that it asks
    for."""
    manifest = (ROOT / "example_project" / "ci" / "kubernetes-job.yaml").read_text()
    (added,) = re.findall(r"add: \[(.*)\]", manifest)
    (name,) = re.findall(r"go_service\(process=(.*)\)", manifest)
    source = f"""
@pytest.mark.netpoll
def test_it(go_service): pings(go_service(process={name.replace("/server", f"{user.home}/server")}))
"""
    write(tmp_path, source)
    shutil.copy(user.home / "echo", user.home / "server")
    bounds = "-all,+" + added.lower().replace(", ", ",+")
    script = f"""
ip link set lo up
setpriv --reuid={user.uid} --regid={user.gid} --clear-groups --bounding-set=-all {user.home}/server &
exec setpriv --bounding-set={bounds} {sys.executable} -m pytest -p no:cacheprovider --netpoll-json=report.json
"""
    run = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout
    (test,) = json.loads((tmp_path / "report.json").read_text())["tests"]
    assert wakeups({"test_it": test}) == pytest.approx(103, abs=2)


def test_root_in_a_user_namespace_is_refused(user):
    """As in a rootless container."""
    agent = [*privilege.agent_command(privilege.SYSTEM_PYTHON, privilege.AGENT), privilege.UNVERIFIED]
    shutil.copytree(ROOT / "pytest_netpoll", user.home / "readable", dirs_exist_ok=True)
    agent[-2] = str(user.home / "readable" / "agent")
    run = user.run("unshare", "--user", "--map-root-user", *agent, input=load())
    if "unshare failed" in run.stderr:
        pytest.skip("ordinary users may not create user namespaces here")
    failed = json.loads(run.stdout.splitlines()[0])["failed"]
    assert "root only in a user namespace" in failed["what"]


def load(message=None):
    message = message or {"do": "load", "max_processes": 4, "max_fds": 64, "uprobes": 0, "answers": 0}
    return json.dumps({"id": 0, **message}) + "\n"


def start(user, *agent, message=None):
    """The first answer of an agent that the user starts through sudo."""
    run = user.run("sudo", "-n", "--", *agent, input=load(message))
    return json.loads(run.stdout.splitlines()[0])


@contextlib.contextmanager
def asleep(user):
    """The pid of one of the user's processes."""
    with subprocess.Popen(user.become("sleep", "60")) as process:
        try:
            patiently(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
            yield process.pid
        finally:
            process.kill()


def agents(prefix):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(prefix / "agent") in (process.info["cmdline"] or ()):
            found.append(process)
    return found


def seen_of_agents(prefix, files):
    """The content of these files in their /proc directories."""
    text = ""
    for process in agents(prefix):
        for path in Path(f"/proc/{process.pid}").glob(files):
            with contextlib.suppress(OSError):
                text += path.read_text()
    return text
