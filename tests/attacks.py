"""What a user with the line in sudoers tries against the agent; each function asserts that it fails.

For `ask` see `running`. tests/kernels/suite runs the same on other kernels, so nothing here may need a Go
toolchain, or more than Python, sudo and util-linux. Needs root, to become that user.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_netpoll.gobinary.ready_sites import find_sites
from pytest_netpoll.meter import privilege
from tests.waiting import fall_asleep, patiently

EXEC_GAINS = ("plain", "setuid", "setgid", "capabilities", "unreadable")
OTHERS, ELSEWHERE, OWN = "127.66.0.", "127.88.0.", "127.77.0.1"
NOTHING = (
    *("ready_stacks", "unclaimed", "io_stacks", "io_calls", "cpu_samples", "parked", "woken"),
    *("held_writes", "mutexes"),
)
WINDOW = dict.fromkeys(NOTHING, 0)
CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_BPF = 1 << 19, 1 << 21, 1 << 39


class User:
    """An ordinary user with a home."""

    def __init__(self, name, uid, gid, home):
        self.name, self.uid, self.gid, self.home = name, uid, gid, home

    def run(self, *command, capabilities="", **options):
        return subprocess.run(
            self.become(*command, capabilities=capabilities),
            **{"cwd": self.home, "env": self.environment, "capture_output": True, "text": True, **options},
            timeout=600,
            check=False,
        )

    def become(self, *command, capabilities=""):
        """The command line that runs this command as the user; capabilities: ambient ones,
        "+bpf,+perfmon"."""
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if capabilities:
            become += [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
        # setpriv itself still has root's capabilities when it looks for the program; env doesn't.
        return [*become, "env", *map(str, command)]

    @property
    def environment(self):
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}


def agent_of(installed):
    """The command that a user starts with sudo. installed: the agent's directory."""
    return privilege.agent_command(privilege.SYSTEM_PYTHON, installed / "agent")


@contextlib.contextmanager
def running(user, installed, **sizes):
    """ask("watch", pid=1) is the installed agent's answer to the user; ask.ready is its first message,
    ask.shell the pid of the shell that started it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # Below a shell of the user's, as behind pytest.
    sudo = shlex.join(["sudo", "-n", "--", *agent_of(installed)])
    command = user.become("sh", "-c", f"{sudo}; exit")
    with subprocess.Popen(command, cwd=user.home, env=user.environment, **pipes) as process:

        def ask(do, **arguments):
            process.stdin.write(json.dumps({"id": 1, "do": do, **arguments}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            first = ask("load", **{"max_processes": 4, "max_fds": 64, "uprobes": 0, "answers": 0, **sizes})
            assert "ready" in first, first
            ask.ready, ask.shell = first["ready"], process.pid
            yield ask
        finally:
            process.stdin.close()


@contextlib.contextmanager
def executed(*command, program=None, **options):
    """The process, after it has exec'ed the program and printed that it is ready."""
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, **options) as process:
        try:
            wanted = str(program or command[0])
            patiently(lambda: str(Path(f"/proc/{process.pid}/exe").readlink()) == wanted)
            assert b"ready on" in process.stdout.readline()
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def watched(ask, pid):
    """The agent's answer about the process, which it watches until the end."""
    answer = ask("watch", pid=pid)
    assert "ok" in answer, answer
    try:
        yield answer["ok"]
    finally:
        ask("unwatch", pid=pid)


# Uprobes.


def byte_at(pid, offset):
    """The byte in the process's memory where that offset of its program's file is executed."""
    exe = str(Path(f"/proc/{pid}/exe").readlink())
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, mode, at, _, _, *path = line.split()
        start, end = (int(part, 16) for part in addresses.split("-"))
        within = offset - int(at, 16)
        if path == [exe] and "x" in mode and 0 <= within < end - start:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(start + within)
                return memory.read(1)
    return None


def code_at(program, offset):
    return program.read_bytes()[offset : offset + 1]


def a_users_probes_are_only_in_the_users_process(ask, user, program):
    """program: services/echo, the user's. Root runs it, too."""
    site = find_sites(str(program)).ready
    command = [program, "-addr", "127.0.0.1:0"]
    with (
        executed(*user.become(*command), program=program) as own,
        executed(*command) as roots,
        watched(ask, own.pid),
    ):
        answer = ask("attach", pid=own.pid, ready=site, deadline=0)
        assert "ok" in answer, answer
        assert ask("attach", pid=roots.pid, ready=site, deadline=0)["error"]
        assert byte_at(own.pid, site) not in (code_at(program, site), None)
        assert byte_at(roots.pid, site) == code_at(program, site)


def a_user_sees_only_the_users_own_parked_goroutines(ask, user, program):
    """program: services/echo, the user's. Root runs it, too."""
    command = [program, "-addr", "127.0.0.1:0"]
    with (
        executed(*user.become(*command), program=program) as own,
        executed(*command) as roots,
        watched(ask, own.pid),
    ):
        fall_asleep(own.pid)  # it has parked after it printed that it is ready
        (process,) = ask("parked", pid=own.pid)["ok"]["processes"]
        assert [row[1:3] for row in process["goroutines"]] == [["read", "listener"]]
        assert len(process["stacks"][0]) > 3
        for pid in (roots.pid, os.getpid(), 1):
            assert ask("parked", pid=pid)["error"]["what"] == f"process {pid} is not watched"
        window = ask("open", **{**WINDOW, "parked": 1})["ok"]["window"]
        answer = ask("close", window=window, settle_ms=0)["ok"]
    ((told,),) = answer["services"].values()
    assert (told["pid"], told["parked"]["after"][0][2:4]) == (own.pid, [1, "listener"])


def a_user_cannot_choose_the_place_of_a_probe(ask, user, program):
    """Each has a first byte that the kernel would accept: in other functions, and in the middle of
    instructions."""
    sites = find_sites(str(program))
    code = program.read_bytes()
    if os.uname().machine == "x86_64":
        amid = [at for at in range(sites.ready + 1, sites.ready + 300) if code[at] & 0xF8 == 0x50]
    else:
        amid = range(sites.ready + 4, sites.ready + 100, 4)
    assert amid
    command = user.become(program, "-addr", "127.0.0.1:0")
    with executed(*command, program=program) as own, watched(ask, own.pid):
        for ready in (*amid, sites.deadline):
            assert ask("attach", pid=own.pid, ready=ready, deadline=0)["error"]["what"]
        for deadline in (sites.ready, *amid):
            assert ask("attach", pid=own.pid, ready=sites.ready, deadline=deadline)["error"]
        assert byte_at(own.pid, sites.ready) == code_at(program, sites.ready)
        assert "ok" in ask("attach", pid=own.pid, ready=sites.ready, deadline=sites.deadline)


# Run with ROOTS-DIRECTORY OWN-DIRECTORY COMMAND…, as root of a user namespace: mounts an overlay over the
# command's directory, and execs the command. A metacopy shows root's file as the user's own: the file has the
# attributes of the user's file, and the data of root's (Linux 6.16 and later).
METACOPY = """
import os, subprocess, sys
roots, own, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
name = os.path.basename(argv[0])
lower = own + "/lower"
os.mkdir(lower)
with open(lower + "/" + name, "w") as f:
    os.truncate(f.fileno(), os.path.getsize(roots + "/" + name))
    os.chmod(f.fileno(), 0o755)
os.setxattr(lower + "/" + name, "user.overlay.metacopy", b"")
os.setxattr(lower + "/" + name, "user.overlay.redirect", b"/" + name.encode())
layers = "%s::%s" % (lower, roots)
"""
# On older kernels, from 5.11 on, only an overlay is possible.
COPY = """
import os, shutil, subprocess, sys
roots, own, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
name = os.path.basename(argv[0])
lower = own + "/lower"
os.mkdir(lower)
shutil.copy(roots + "/" + name, lower)
os.mkdir(own + "/empty")
layers = lower + ":" + own + "/empty"
"""
OVERLAYS = {"metacopy": METACOPY, "copy": COPY}
MOUNT = """
mount = ["mount", "-t", "overlay", "overlay", "-o", "userxattr,lowerdir=" + layers, os.path.dirname(argv[0])]
mounted = subprocess.run(mount, stderr=subprocess.PIPE)
if mounted.returncode:
    print("cannot be mounted:", mounted.stderr.decode().strip(), flush=True)
    sys.exit(1)
try:
    os.execv(argv[0], argv)
except OSError as error:
    print("cannot be run:", error, flush=True)
"""


def a_file_on_a_users_overlay_gets_no_probes(ask, user, program, how):
    """program: services/echo. how: of OVERLAYS. Skips if the kernel refuses the overlay itself."""
    roots, own = user.home / "roots", user.home / "disguise"
    try:
        for directory in roots, own, own / "seen":
            directory.mkdir()
            shutil.chown(directory, 0 if directory == roots else user.uid)
        shutil.copy(program, roots / "daemon")
        os.chown(roots / "daemon", 0, 0)
        site = find_sites(str(roots / "daemon")).ready
        script = ["/usr/bin/python3", "-c", OVERLAYS[how] + MOUNT, roots, own]
        command = ["unshare", "-Urm", *script, own / "seen" / "daemon", "-addr", "127.0.0.1:0"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": user.home}
        with (
            executed(roots / "daemon", "-addr", "127.0.0.1:0") as daemon,
            subprocess.Popen(user.become(*command), **options) as process,
        ):
            said = process.stdout.readline()
            try:
                if b"ready on" not in said:
                    pytest.skip(f"ordinary users cannot mount that overlay here: {said.decode()}")
                assert Path(f"/proc/{process.pid}/exe").stat().st_uid == user.uid
                with watched(ask, process.pid):
                    answer = ask("attach", pid=process.pid, ready=site, deadline=0)
                    assert byte_at(daemon.pid, site) == code_at(roots / "daemon", site)
                    assert "on an overlay that the user may have mounted" in answer["error"]["what"]
            finally:
                process.kill()
    finally:
        shutil.rmtree(roots, ignore_errors=True)
        shutil.rmtree(own, ignore_errors=True)


# Programs with other rights.


def gives_rights(program, how):
    """Makes it a program that gives its user more rights than the user has, or that can't be inspected."""
    os.chown(program, 0, 0)
    program.chmod({"setuid": 0o4755, "setgid": 0o2755, "unreadable": 0o711}.get(how, 0o755))
    if how == "capabilities":  # CAP_NET_RAW, permitted and effective; linux/capability.h: VFS_CAP_REVISION_2
        os.setxattr(program, "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))


RECORDED = ("polls", "events", "calls", "readies", "looks", "stacks")


def a_process_that_gains_rights_by_an_exec_is_no_longer_counted(ask, user, brief, how):
    """However briefly it runs: it ends before the agent can look at it. brief: services/brief."""
    if os.statvfs(user.home).f_flag & os.ST_NOSUID:
        pytest.skip(f"{user.home} does not honour the setuid bit")
    program = user.home / "brief-with-rights"
    shutil.copy(brief, program)
    gives_rights(program, how)
    command = user.become("sh", "-c", f"read _; exec {program}")
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            patiently(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sh\n")
            with watched(ask, process.pid):
                window = ask("open", **{**WINDOW, "unclaimed": 1})["ok"]["window"]
                process.stdin.close()
                process.wait()
                answer = ask("close", window=window, settle_ms=20)["ok"]
    finally:
        program.unlink()
    assert process.returncode == 0
    (process,) = answer["services"][str(process.pid)]
    counted = {name: value for name, value in process["counters"].items() if value}
    # Of an agent that was asked for them.
    recorded = [any(trace[name] for name in RECORDED) for trace in answer["traces"].values()]
    assert not any(recorded) if how != "plain" else all(recorded)
    if how == "plain":
        # On a busy machine data often arrives before its reader parks.
        assert not process["foreign"], process
        assert process["counters"]["productive_wakeups"] >= 1, process
    else:
        assert (process["foreign"], process["executable"], counted) == (True, None, {})
        assert (process["offenders"], process["slowest"], process["histogram"]) == ([], [], {})
        (rows,) = answer["timelines"].values()
        # Each: when, ten counters, run delay, threads.
        assert not any(value for row in rows for value in row[1:11])


# A program that lies.

# Its children hold sockets in descriptor tables as large as the hostile program's: in the kernel, such tables
# are adjacent, so that reading beyond the end of one reaches the next. With a third argument everything
# happens in a separate network namespace.
SOMEBODY = """
import ctypes, fcntl, os, socket, struct, sys
addresses, children, elsewhere = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if elsewhere:
    assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1 | 64))  # SIOCSIFFLAGS: up and running
end, begin = os.pipe()
kept = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(220)]
for i, s in enumerate(kept):
    s.bind((addresses + str(i + 1), 0))
for _ in range(2):
    for _ in range(children):
        if not os.fork():
            os.close(begin)
            os.read(end, 1)
            os._exit(0)
    print("there", flush=True)
    os.read(0, 1)
"""


@contextlib.contextmanager
def on_one_cpu():
    """What is started in the block runs on one CPU, where the kernel allocates adjacent memory."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def others(children=150):
    """more() makes as many more processes: root's, with sockets, half of them in another network
    namespace."""
    with contextlib.ExitStack() as stack:
        crowd = []
        for arguments in ([OTHERS, children], [ELSEWHERE, children, "elsewhere"]):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            command = [sys.executable, "-c", SOMEBODY, *map(str, arguments)]
            crowd.append(stack.enter_context(subprocess.Popen(command, **pipes)))
            stack.callback(crowd[-1].stdin.close)

        def more():
            for process in crowd:
                assert process.stdout.readline() == b"there\n"
                process.stdin.write(b".")
                process.stdin.flush()

        more()
        yield more


def reported_of_others(processes):
    """(how many entries the agent reported of these processes, the addresses in them that are not their
    own)."""
    told = [entry for process in processes for entry in (*process["offenders"], *process["slowest"])]
    ends = {entry[end] for entry in told for end in ("local", "peer")} - {None, "/dev/null"}
    return len(told), {end for end in ends if end.rpartition(":")[0] != OWN}


def invented_descriptors_reveal_only_the_programs_own(ask, user, hostile, seconds, children, enough=0):
    """hostile: services/hostile, which lies for that long, or longer if the machine is so busy that no more
    than `enough` entries were reported."""
    command = user.become(hostile, "-own", f"{OWN}:0", "-for", f"{seconds + 600}s")
    processes = []

    def unclaimed():
        return sum(p["counters"]["unclaimed_events"] for p in processes)

    def too_few():
        return unclaimed() <= 1000 or reported_of_others(processes)[0] <= enough

    with (
        on_one_cpu(),
        others(children) as more,
        executed(*command, program=hostile, stderr=subprocess.DEVNULL) as process,
        watched(ask, process.pid),
    ):
        more()
        ask("close", window=ask("open", **WINDOW)["ok"]["window"], settle_ms=0)  # it tells no lies yet
        process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + seconds
        while time.monotonic() < end or (too_few() and time.monotonic() < end + 60):
            window = ask("open", **{**WINDOW, "unclaimed": 1, "io_stacks": 1, "io_calls": 1})["ok"]["window"]
            time.sleep(min(2, seconds / 2))
            answer = ask("close", window=window, settle_ms=20)["ok"]
            processes += answer["services"][str(process.pid)]
        assert process.poll() is None
    count, strange = reported_of_others(processes)
    assert strange == set()
    assert unclaimed() > 1000
    return count


# The agents themselves.


def agents(installed):
    """{pid: names of files that it has open}: all running agents that have loaded something."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = status.read_bytes().split(b"\0")
            if os.fsencode(installed / "agent") in arguments:
                fds = list((status.parent / "fdinfo").iterdir())
                if any("prog_id" in fd.read_text() for fd in fds):
                    found[int(status.parent.name)] = fds
    return found


def the_ninth_agent_is_refused(user, installed):
    """The eight needn't be ready: a slot is taken before anything is compiled."""
    message = {"id": 0, "do": "load", "max_processes": 4, "max_fds": 64, "uprobes": 0, "answers": 0}
    command = user.become("sudo", "-n", "--", *agent_of(installed))
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": "/"}
    before = len(agents(installed))
    with contextlib.ExitStack() as stack:
        for number in range(before + 1, 10):
            process = stack.enter_context(subprocess.Popen(command, **options))
            stack.callback(process.stdin.close)
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            if number < 9:
                patiently(lambda number=number: len(agents(installed)) >= number, seconds=300)
        what = json.loads(process.stdout.readline())["failed"]["what"]
    assert "this user has 8 agents" in what
    assert "8 agents and 1024 MiB are the maximum" in what
    patiently(lambda: len(agents(installed)) == before)


def what_the_agent_keeps(user, installed):
    """Of the one agent that runs, with uprobes: as in the table of SECURITY.md. {its rights: value}."""
    (pid,) = agents(installed)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    effective = CAP_SYS_PTRACE if yama.exists() and yama.read_text().strip() != "0" else 0
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    restricted = Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() != "0"
    if release < (6, 0) and restricted:
        effective |= CAP_BPF
    expected = {
        "Uid": [str(user.uid)] * 4,
        "Gid": [str(user.gid)] * 4,
        "Groups": [str(user.gid)],
        "CapPrm": [f"{effective | CAP_SYS_ADMIN:016x}"],
        "CapEff": [f"{effective:016x}"],  # except while a probe is placed
        **{name: ["0" * 16] for name in ("CapBnd", "CapInh", "CapAmb")},
        "NoNewPrivs": ["1"],
        "Seccomp": ["2"],  # a filter
    }
    assert {name: status[name] for name in expected} == expected
    for part in ("mem", "maps", "environ", "fd/0"):
        looked = user.run("cat", f"/proc/{pid}/{part}")
        assert "Permission denied" in looked.stderr, part
    return expected
