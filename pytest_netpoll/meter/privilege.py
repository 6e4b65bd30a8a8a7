"""How pytest gets an agent that may load BPF: with its own privileges, or through sudo.

A user who can change a program that sudo starts for them without a password is root. So the agent that an
ordinary user may start through a line in sudoers is a copy that belongs to root. It is checked before each
use; install_agent.py makes it.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shlex
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pytest_netpoll.agent.security.capabilities import missing, names
from pytest_netpoll.agent.security.trust import distrust, distrust_place, nearest_existing
from pytest_netpoll.errors import Reason, UnmeasuredError

HERE = Path(__file__).parents[1]
AGENT = HERE / "agent"
SYSTEM_PYTHON = Path("/usr/bin/python3")
INSTALLED = Path("/usr/local/lib/pytest-netpoll")
PARTS = ("agent", "bpf", "cache")  # what install-agent puts there
SUDOERS = Path("/etc/sudoers.d/pytest-netpoll")
# By its path: a virtual environment's PATH is not sudo's.
AS_ROOT = f"sudo {shlex.quote(sys.executable)}"
INSTALL = f"{AS_ROOT} -m pytest_netpoll install-agent"
# What happened if pytest may not load BPF: the same for all tests of a run.
NEEDS_ROOT = "eBPF needs root"
# Options of agent/__main__.py.
UNVERIFIED = "--unverified"
CACHE = "--cache="
FILL = "--fill="

_VFS_CAP_EFFECTIVE = 1


def bpf_sources() -> Path:
    """The directory of netpoll.c: inside the installed package, or next to it in a checkout."""
    for directory in (HERE / "bpf", HERE.parent / "bpf"):
        if (directory / "netpoll.c").is_file():
            return directory
    raise UnmeasuredError(
        "the BPF program is missing from the installation",
        why=f"there is no {HERE / 'bpf' / 'netpoll.c'}",
        fix="pip install --force-reinstall pytest-netpoll",
    )


def command(
    python: Path | None,
    sudo: Literal["auto", "never"],
    installed: Path | None = None,
    cache: Path | Literal["off"] | None = None,
) -> list[str]:
    """The agent's command line. UnmeasuredError if our privileges don't allow any. installed: where
    install-agent put the copy for sudo. cache: of --netpoll-cache; the copy has its own.
    """
    interpreter, own = python or SYSTEM_PYTHON, own_command(python)
    if cache is not None:
        own.append(f"{CACHE}{cache}")
    bpf_sources()
    if os.geteuid() == 0 or may_load_bpf(interpreter):
        return own
    if sudo == "never":
        raise UnmeasuredError(
            NEEDS_ROOT,
            why="pytest is neither root nor has CAP_BPF and CAP_PERFMON, and --netpoll-sudo=never is set",
            fix=f"{AS_ROOT} -m pytest …",
        )
    if shutil.which("sudo") is None:
        raise UnmeasuredError(
            NEEDS_ROOT,
            why="pytest is neither root nor has CAP_BPF and CAP_PERFMON, and there is no sudo",
            fix=f"as root: {shlex.quote(sys.executable)} -m pytest …",
        )
    copy = installed or INSTALLED
    return ["sudo", "-n", "--", *(agent_command(interpreter, copy / "agent") if is_usable(copy) else own)]


def copy_in(argv: Sequence[str], installed: Path | None = None) -> Path | None:
    """The directory of the installed agent, if argv starts it; None if it starts our own."""
    copy = installed or INSTALLED
    return copy if str(copy / "agent") in argv else None


def why_not_cached(argv: Sequence[str], cache: Path) -> Reason | None:
    """Why the agent that argv starts will not use --netpoll-cache, as far as we can tell. None for an
    installed agent, which has a cache of its own.
    """
    if UNVERIFIED not in argv:
        return None
    uid = 0 if argv[0] == "sudo" else os.geteuid()
    why = distrust_place(nearest_existing(str(cache.absolute())), uid)
    if why is None:
        return None
    owner = "root" if uid == 0 else "you"
    return Reason(
        f"--netpoll-cache={cache} is not used",
        why=why,
        fix=f"name a directory that only {owner} can write to; the same goes for all directories above it",
    )


def own_command(python: Path | None) -> list[str]:
    """The command that starts our own agent with our privileges. UnmeasuredError without its Python."""
    interpreter = python or SYSTEM_PYTHON
    if not os.access(interpreter, os.X_OK):
        raise UnmeasuredError(
            f"there is no Python at {interpreter}",
            why="the agent needs the system's Python, for which the distribution packages BCC",
            fix="install it, or name it with --netpoll-python=PATH",
        )
    return [*agent_command(interpreter, AGENT), UNVERIFIED]


def agent_command(interpreter: Path, agent: Path) -> list[str]:
    """The command that a line in sudoers allows, word by word, so it must not differ between runs."""
    # -I: nothing of the user's environment or working directory is imported as root.
    return [str(interpreter), "-I", "-B", str(agent)]


def is_usable(copy: Path) -> bool:
    """Whether an agent of this version is installed; UnmeasuredError if others can change it."""
    if not (copy / "agent").exists():
        return False
    for part in (copy / "agent", copy / "bpf"):
        reason = distrust(str(part))
        if reason is not None:
            raise UnmeasuredError(
                f"the agent installed in {copy} is not safe to start with sudo",
                why=reason,
                fix=f"sudo rm -r {copy}, find out who changed it, then {install_command(copy)}",
            )
    return digest(copy / "agent", copy / "bpf") == digest(AGENT, bpf_sources())


def install_command(copy: Path, user: str | None = None, python: Path = SYSTEM_PYTHON) -> str:
    """What an administrator types to install the agent there. user: who gets a line in sudoers, too."""
    options: list[str | Path] = [] if copy == INSTALLED else ["--prefix", copy]
    if python != SYSTEM_PYTHON:
        options += ["--python", python]
    if user is not None:
        options += ["--user", user, "--sudoers"]
    return " ".join([INSTALL, *(shlex.quote(str(option)) for option in options)])


def removal_command(copy: Path, sudoers: Path | None) -> str:
    """What an administrator types to remove the agent installed there. It runs no code of the environment,
    which a user may have changed. sudoers: a file with nothing but lines for that agent; left out if absent.
    """
    paths = []
    if sudoers is not None and (os.path.lexists(sudoers) or not os.access(sudoers.parent, os.R_OK | os.X_OK)):
        paths.append(sudoers)
    try:
        shared = not {path.name for path in copy.iterdir()}.issubset(PARTS)
    except OSError:
        shared = False
    paths += [copy / part for part in PARTS] if shared else [copy]
    return f"sudo rm -r {shlex.join(map(str, paths))}"


def search_command(copy: Path) -> str:
    """What an administrator types to find the lines for the agent installed there."""
    return f"sudo grep -rF {shlex.quote(str(copy / 'agent'))} /etc/sudoers /etc/sudoers.d"


def this_user() -> str:
    """The name of the user who runs this; NAME if the machine has none for them, as in a container."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "NAME"


def why_sudo_refused(argv: Sequence[str], installed: Path | None, said: str) -> UnmeasuredError | None:
    """Explains a sudo that asks for a password, or doesn't let this user start the agent; None if it said
    something else. argv: the command that it refused.
    """
    if not any(words in said for words in ("password is required", "not allowed to execute")):
        return None
    copy = installed or INSTALLED
    refuses = "asks for a password" if "password is required" in said else "doesn't let this user start it"
    if copy_in(argv, installed):
        why = f"sudo does not let this user start the agent in {copy} without a password"
    elif (copy / "agent").exists():
        why = f"the agent installed in {copy} is of another version, and sudo {refuses}"
    else:
        why = f"pytest is not root and sudo {refuses}"
    install = install_command(copy, this_user(), Path(argv[argv.index("--") + 1]))
    return UnmeasuredError(
        NEEDS_ROOT,
        why=why,
        fix="if you may use sudo for everything, run `sudo -v`, then this again in the same terminal; if "
        f"not, an administrator runs once: {install}",
    )


def may_load_bpf(interpreter: Path) -> bool:
    """Whether a program run by the interpreter has the capabilities: ambient ones, or the file's."""
    return not missing(names(_ambient() | _of_file(interpreter)))


def _ambient() -> int:
    with open("/proc/self/status") as file:
        return next((int(line.split()[1], 16) for line in file if line.startswith("CapAmb:")), 0)


def _of_file(path: Path) -> int:
    try:
        raw = os.getxattr(path, "security.capability")
    except OSError:
        return 0
    # Revision and flags, then permitted and inheritable: the low halves, and the high ones.
    magic, low, _, high, _ = struct.unpack("<5I", raw[:20].ljust(20, b"\0"))
    return low | high << 32 if magic & _VFS_CAP_EFFECTIVE else 0


def digest(agent: Path, bpf: Path) -> str:
    """A hash of all files of the agent."""
    whole = hashlib.sha256()
    for root in (agent, bpf):
        for path in parts(root):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(root)} {content}\n".encode())
    return whole.hexdigest()


def parts(root: Path) -> Iterator[Path]:
    """The agent's files under the directory, in the same order on every machine."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".c", ".h"):
            yield path
