"""`install-agent`: installs a copy of the agent that only root can change, and allows it in sudoers."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import getpass
import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_netpoll.agent.security.trust import distrust, distrust_place
from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.meter.privilege import (
    AGENT,
    FILL,
    INSTALLED,
    SYSTEM_PYTHON,
    agent_command,
    bpf_sources,
    install_command,
    parts,
)
from pytest_netpoll.options import Config, add_agent_options

FILL_DEADLINE = 300.0  # s; an emulated machine takes 20

SUDOERS = Path("/etc/sudoers.d/pytest-netpoll")

# Characters that need no quoting in sudoers; a wildcard could match too much.
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9._+-]+)+")
_PLAIN_USER = re.compile(r"%?[A-Za-z0-9_][A-Za-z0-9_.-]*")
# A line of ours: the user, the system's Python, the agent.
_LINE = re.compile(r"(?P<user>\S+) ALL=\(root\) NOPASSWD: /\S+ -I -B /\S+/agent")


class InstallError(NetpollError):
    """The agent could not be installed; the files that were there before are unchanged."""


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    line = sudoers_line(options.user, options.python, options.prefix)
    check_user(options.user)
    if os.geteuid() != 0:
        raise InstallError(
            "install-agent needs root",
            why="what sudo starts must belong to root, or its users could change it",
            fix=install_command(options.prefix),
        )
    install(options.prefix)
    print(f"installed the agent in {options.prefix}, owned by root and writable only by root")
    print(fill_cache(options.prefix, options.python, Config.from_arguments(options)))
    if options.sudoers is None:
        check_syntax(f"{line}\n")
        print("to let the user start it without a password, add with visudo, or by --sudoers, the line\n")
        print(line)
    else:
        replaced = write_sudoers(options.sudoers, line)
        print(f"wrote {options.sudoers}:\n\n{line}")
        for old in replaced:
            print(f"\nin place of\n\n{old}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_netpoll install-agent",
        description="Copy the agent to where only root can change it, compile its program, and print the "
        "line for sudoers that lets a user start it.",
    )
    parser.add_argument(
        "--prefix", type=_path, default=INSTALLED, help="directory to install into (default: %(default)s)"
    )
    parser.add_argument(
        "--user",
        default=os.environ.get("SUDO_USER") or getpass.getuser(),
        help="who may start it, or %%GROUP; other users' lines stay (default: the user who called sudo)",
    )
    parser.add_argument(
        "--sudoers",
        nargs="?",
        type=_path,
        const=SUDOERS,
        metavar="FILE",
        help=f"write the line to FILE (default: {SUDOERS})",
    )
    add_agent_options(parser, ("max_fds", "max_processes"))
    parser.add_argument(
        "--python", type=_path, default=SYSTEM_PYTHON, help="the Python that runs it (default: %(default)s)"
    )
    return parser


def _path(text: str) -> Path:
    return Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow /usr/bin/python3


def sudoers_line(user: str, python: Path, prefix: Path) -> str:
    """The line that allows the user exactly the installed agent: no other arguments or file, no wildcard."""
    if not _PLAIN_USER.fullmatch(user):
        raise UsageError(f"install-agent: {user!r} is not the name of a user, or of a %group")
    for path in (python, prefix):
        if not _PLAIN_PATH.fullmatch(str(path)):
            raise UsageError(
                f"install-agent: {str(path)!r} cannot stand in a line of sudoers",
                fix="use a path of letters, digits and . _ + - only",
            )
    return f"{user} ALL=(root) NOPASSWD: {' '.join(agent_command(python, prefix / 'agent'))}"


def check_user(user: str) -> None:
    """Raises UsageError if sudo can't start anything for that user, or doesn't have to."""
    name = "the user who runs pytest, or a group of such: --user NAME, --user %GROUP"
    if user.startswith("%"):
        try:
            grp.getgrnam(user[1:])
        except KeyError:
            raise UsageError(f"install-agent: there is no group {user[1:]!r}", fix=f"give {name}") from None
        return
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(f"install-agent: there is no user {user!r}", fix=f"give {name}") from None
    if uid == 0:
        raise UsageError(
            f"install-agent: {user} doesn't need a line in sudoers",
            why="root starts the agent without sudo",
            fix=f"give {name}",
        )


def install(prefix: Path) -> None:
    """Copies the agent and its BPF program to the directory, replacing what an earlier version left."""
    above = next(path for path in (prefix, *prefix.parents) if path.exists())
    reason = distrust(str(above)) if above == prefix else distrust_place(str(above))
    if reason is not None:
        raise InstallError(
            f"cannot install the agent in {prefix}",
            why=reason,
            fix="choose a directory that only root can write to, all the way up, with --prefix DIR",
        )
    prefix.mkdir(parents=True, exist_ok=True, mode=0o755)
    try:
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=prefix))
        try:
            sources = {"agent": AGENT, "bpf": bpf_sources()}
            # Copy everything first: if the disk is full, the old files stay.
            for name, source in sources.items():
                _copy(source, new / name)
            for name in sources:
                with contextlib.suppress(FileNotFoundError):
                    (prefix / name).rename(new / f"old-{name}")
                (new / name).rename(prefix / name)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        prefix.chmod(0o755)
    except OSError as error:
        raise InstallError(f"cannot install the agent in {prefix}", why=str(error)) from None
    reason = distrust(str(prefix))
    if reason is not None:
        raise InstallError(f"the agent in {prefix} must not be used", why=reason, fix=f"rm -r {prefix}")


def fill_cache(prefix: Path, python: Path, config: Config) -> str:
    """Compiles what each start would compile: the installed agent's Python and its BPF program. Returns the
    result in words. Starting the agent as a user can't do this: it writes nothing for them.
    """
    again = install_command(prefix)
    agent = str(prefix / "agent")
    _run([str(python), "-I", "-m", "compileall", "-q", agent])
    sizes = f"{FILL}{config.max_processes},{config.max_fds}"
    run = _run([*agent_command(python, prefix / "agent"), sizes])
    try:
        answer = json.loads(run.stdout) if run is not None else {}
    except ValueError:
        answer = {}
    filled = answer.get("filled")
    if filled:
        return (
            f"compiled the BPF program for Linux {filled['kernel']} with BCC {filled['bcc']}; "
            f"after an update of either, run again: {again}"
        )
    why = answer.get("failed", {}).get("what", "the agent did not answer")
    return f"could not compile the BPF program now ({why}), so each start will, until you run again: {again}"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Runs a command with a minimal environment; None if it times out."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=FILL_DEADLINE,
            env={"PATH": os.defpath},
            umask=0o022,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _copy(source: Path, target: Path) -> None:
    # Set explicitly, whatever the umask and the checkout's modes are.
    target.mkdir(mode=0o755)
    for part in parts(source):
        copied = target / part.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(part.read_bytes())
        copied.chmod(0o644)
    for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
        directory.chmod(0o755)


def check_syntax(text: str) -> None:
    """Checks a whole file with visudo: a mistake in sudoers may lock everybody out."""
    visudo = shutil.which("visudo", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if visudo is None:
        return
    with tempfile.NamedTemporaryFile("w", prefix="pytest-netpoll-", errors="surrogateescape") as draft:
        draft.write(text)
        draft.flush()
        run = subprocess.run([visudo, "-c", "-f", draft.name], capture_output=True, text=True, check=False)
    if run.returncode:
        raise InstallError("visudo rejects the resulting sudoers", detail=f"{text}\n{run.stdout}{run.stderr}")


def write_sudoers(file: Path, line: str) -> list[str]:
    """Adds the line, replacing and returning what an earlier call wrote for the same user."""
    if "." in file.name or file.name.endswith("~"):
        raise UsageError(f"install-agent: sudo does not read files named like {file.name!r} in sudoers.d")
    try:
        with _alone(file.parent):
            try:
                former = file.read_text(errors="surrogateescape").splitlines()
            except FileNotFoundError:
                former = ["# pytest-netpoll: exactly its agent. See docs/without-root.md."]
            user = line.split()[0]
            own = [old for old in former if (ours := _LINE.fullmatch(old)) and ours["user"] == user]
            text = "".join(f"{kept}\n" for kept in [*(old for old in former if old not in own), line])
            check_syntax(text)
            # In one step, and never readable by others: sudo obeys any file that it finds there.
            draft = file.with_name(f".{file.name}.new")
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440)
            with open(descriptor, "w", errors="surrogateescape") as out:
                out.write(text)
            draft.rename(file)
    except OSError as error:
        fix = None if file.parent.is_dir() else "install sudo"
        raise InstallError(f"cannot write {file}", why=error.strerror, fix=fix) from None
    return [old for old in own if old != line]


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two installations at once would each drop the other's line."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
