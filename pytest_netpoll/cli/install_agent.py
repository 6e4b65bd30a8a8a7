"""`install-agent`: installs a copy of the agent that only root can change, and allows it in sudoers. With
--remove it takes back both.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from pytest_netpoll.agent.security.trust import distrust, distrust_place
from pytest_netpoll.cli.lines import say
from pytest_netpoll.cli.sudoers import (
    InstallError,
    check_syntax,
    check_user,
    holds_only_lines_for,
    remove_lines,
    sudoers_line,
    write_sudoers,
)
from pytest_netpoll.meter.privilege import (
    AGENT,
    FILL,
    INSTALL,
    INSTALLED,
    PARTS,
    SUDOERS,
    SYSTEM_PYTHON,
    agent_command,
    bpf_sources,
    parts,
    removal_command,
    search_command,
)
from pytest_netpoll.options import Config, add_agent_options

FILL_DEADLINE = 300.0  # s; an emulated machine takes 20
# What `fill_cache` writes, below the prefix; drafts may be left of one that was killed.
_CACHED = re.compile(r"cache/\.?[0-9a-f]{64}\.(program|bytecode)(\.\d+\.\d+)?")
_COMPILED = re.compile(r"__pycache__/([^/.]+)\.[^/]+\.pyc(\.\d+)?$")
# A directory of `install`, left by one that was killed.
_UNFINISHED = re.compile(r"\.new-[a-z0-9_]{8}/(old-)?")


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    if options.remove:
        return _remove(options)
    user = options.user
    if user is None:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
        # The administrator who types it again may be somebody else.
        argv = [*argv, "--user", user]
    line = sudoers_line(user, options.python, options.prefix)
    check_user(user)
    again = f"{INSTALL} {shlex.join(argv)}"
    with_line = again if options.sudoers is not None else f"{again} --sudoers"
    if os.geteuid() != 0:
        raise InstallError(
            "install-agent needs root",
            why="what sudo starts must belong to root, or its users could change it",
            fix=with_line,
        )
    install(options.prefix)
    say(f"installed the agent in {options.prefix}, owned by root and writable only by root")
    say(fill_cache(options.prefix, options.python, Config.from_arguments(options), again))
    if options.sudoers is None:
        check_syntax(f"{line}\n")
        print(f"this line for sudoers was not written:\n\n{line}\n")
        say(f"with it, {_permission(user)}")
        print(f"to write it to {SUDOERS}:\n  {with_line}")
    else:
        replaced = write_sudoers(options.sudoers, line)
        print(f"wrote {options.sudoers}:\n\n{line}")
        for old in replaced:
            print(f"\nin place of\n\n{old}")
        print()
        say(_permission(user))
        print(f"to check that, as {'one of them' if user.startswith('%') else user}:")
        print(
            f"  {shlex.quote(sys.executable)} -m pytest_netpoll doctor"
            f"{_option('--netpoll-agent', options.prefix, INSTALLED)}"
        )
    print(
        f"to remove the agent and all lines for it again:\n  {_removal(options)}\n"
        "`install-agent --remove` does the same; run it only from an environment that the user can't write to"
    )
    if options.sudoers is None:
        print(f"neither finds the line where you paste it; this does:\n  {search_command(options.prefix)}")
    return 0


def _permission(user: str) -> str:
    who = f"members of {user}" if user.startswith("%") else user
    return f"{who} may start exactly this agent as root without a password, to measure their own processes"


def _option(name: str, value: Path, default: Path) -> str:
    return "" if value == default else f" {name}={shlex.quote(str(value))}"


def _removal(options: argparse.Namespace) -> str:
    """What removes the agent and its lines without running, as root, code that a user may have changed."""
    file = options.sudoers or SUDOERS
    if holds_only_lines_for(options.prefix, file):
        return removal_command(options.prefix, file)
    by_hand = _by_hand(file, f"the lines with {options.prefix / 'agent'}")
    return f"{by_hand}\n  {removal_command(options.prefix, None)}"


def _by_hand(file: Path, which: str) -> str:
    return f"sudo visudo -f {shlex.quote(str(file))}  # and delete {which}"


def _remove(options: argparse.Namespace) -> int:
    """Takes back what install-agent did: for one user the line, else all lines for this agent, and it."""
    user, sudoers = options.user, options.sudoers or SUDOERS
    if os.geteuid() != 0:
        raise InstallError(
            "install-agent --remove needs root",
            why="the agent and the line in sudoers belong to root",
            fix=_removal(options) if user is None else _by_hand(sudoers, f"the line of {user}"),
        )
    # The lines first: they must not allow anything that isn't there.
    removed = remove_lines(sudoers, options.prefix, user)
    for line in removed:
        print(f"removed from {sudoers}:\n\n{line}\n")
    if user is not None:
        if not removed:
            raise InstallError(
                f"{sudoers} has no line for {user!r} and the agent in {options.prefix}",
                fix=f"see which file has one, and name it with --sudoers FILE: "
                f"{search_command(options.prefix)}",
            )
        print(f"the agent in {options.prefix} stays, for others; to remove it, too:\n  {_removal(options)}")
    elif remove_agent(options.prefix):
        print(f"removed the agent from {options.prefix}")
        kept = [str(options.prefix / part) for part in PARTS if os.path.lexists(options.prefix / part)]
        if kept:
            print(
                "kept files that this version of install-agent doesn't write; to see them:\n"
                f"  sudo find {shlex.join(kept)}"
            )
    elif (options.prefix / "agent").exists():
        raise InstallError(
            f"there is no agent of install-agent in {options.prefix}, and no line for it in {sudoers}",
            why="its agent directory holds something else",
            fix="name where it was installed with --prefix DIR and --sudoers FILE",
        )
    elif not removed:
        print(f"nothing to remove: no agent at {options.prefix}, and no line for it in {sudoers}")
    print(
        "lines in other files, and lines that were edited, stay; to find them:\n"
        f"  {search_command(options.prefix)}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_netpoll install-agent",
        description="Let a user without root measure. Copies the agent to where only root can change it, "
        "compiles its program, and prints the line for sudoers that allows the user to start exactly this "
        "agent as root, and nothing else. The agent measures that user's own processes only.",
    )
    parser.add_argument(
        "--prefix", type=_path, default=INSTALLED, help="directory to install into (default: %(default)s)"
    )
    parser.add_argument(
        "--user",
        help="the user who runs pytest, or %%GROUP for all its members; lines of others stay (default: the "
        "user who called sudo)",
    )
    parser.add_argument(
        "--sudoers",
        nargs="?",
        type=_path,
        const=SUDOERS,
        metavar="FILE",
        help=f"write the line to FILE (default: {SUDOERS}); without --sudoers it is only printed",
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="remove the agent, its cache, and all lines for it in the file of --sudoers; with --user only "
        "that user's line",
    )
    add_agent_options(parser, ("max_fds", "max_processes"))
    parser.add_argument(
        "--python", type=_path, default=SYSTEM_PYTHON, help="the Python that runs it (default: %(default)s)"
    )
    return parser


def _path(text: str) -> Path:
    return Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow /usr/bin/python3


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
            sources = _sources()
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


def _sources() -> dict[str, Path]:
    return {"agent": AGENT, "bpf": bpf_sources()}


def fill_cache(prefix: Path, python: Path, config: Config, again: str) -> str:
    """Compiles what each start would compile: the installed agent's Python and its BPF program. Returns the
    result in words. Starting the agent as a user can't do this: it writes nothing for them. again: the
    command that does it once more.
    """
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
            f"after an update of either, run again:\n  {again}"
        )
    why = answer.get("failed", {}).get("what", "the agent did not answer")
    return (
        f"could not compile the BPF program now ({why}), so each start will, until you run again:\n  {again}"
    )


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


def remove_agent(prefix: Path) -> bool:
    """Removes the files that `install` and `fill_cache` put into the directory, and the directories that are
    empty then. Returns whether there were any: an earlier removal may have been interrupted.
    """
    if not os.path.lexists(prefix):
        return False
    reason = distrust_place(str(prefix))
    if reason is not None:
        raise InstallError(
            f"cannot remove the agent from {prefix}",
            why=f"{reason}, so root could be made to remove other files",
            fix=f"look at what is there, and delete it as its owner: ls -lR {shlex.quote(str(prefix))}",
        )
    ours = {f"{name}/{part.relative_to(top)}" for name, top in _sources().items() for part in parts(top)}
    try:
        top = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with os.scandir(top) as entries:
                names = [each.name for each in entries]
            parted = [name for name in names if name in PARTS or _UNFINISHED.fullmatch(f"{name}/")]
            found = [_remove_below(top, name, ours) for name in parted]
        finally:
            os.close(top)
        if any(found):
            with contextlib.suppress(OSError):  # something else is in it
                prefix.rmdir()
    except OSError as error:
        raise InstallError(f"cannot remove the agent from {prefix}", why=str(error)) from None
    return any(found)


def _remove_below(top: int, name: str, ours: Collection[str]) -> bool:
    """Removes our files in a directory, and the directories that are empty then. Returns whether there were
    any. No symbolic link is followed, even if somebody exchanges directories meanwhile. top: a descriptor of
    the directory above.
    """
    found = False
    for directory, directories, files, descriptor in os.fwalk(name, topdown=False, dir_fd=top):
        for file in files:
            path = _UNFINISHED.sub("", f"{directory}/{file}", count=1)
            if _CACHED.fullmatch(path) or _COMPILED.sub(r"\1.py", path) in ours:
                os.unlink(file, dir_fd=descriptor)
                found = True
        if found:
            for below in directories:
                with contextlib.suppress(OSError):
                    os.rmdir(below, dir_fd=descriptor)
    if found:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=top)
    return found
