"""The lines in sudoers that let users start the installed agent as root, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.meter.privilege import SUDOERS, agent_command

# Characters that need no quoting in sudoers; a wildcard could match too much.
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9._+-]+)+")
_PLAIN_USER = re.compile(r"%?[A-Za-z0-9_][A-Za-z0-9_.-]*")
# A line of ours: the user, the system's Python, the agent.
_LINE = re.compile(r"(?P<user>\S+) ALL=\(root\) NOPASSWD: /\S+ -I -B (?P<agent>/\S+/agent)")
_HEADER = "# pytest-netpoll: exactly its agent. See docs/without-root.md."


class InstallError(NetpollError):
    """The agent or a line for it could not be installed or removed."""


def holds_only_lines_for(prefix: Path, file: Path) -> bool:
    """Whether the file has nothing but lines for the agent in the directory, and can be removed with it."""
    try:
        lines = _read(file)
    except FileNotFoundError:
        return True
    except PermissionError:  # for an ordinary user; nobody but we should write to our own
        return file == SUDOERS
    except OSError:
        return False
    return all(line in ("", _HEADER) or _allows(line, prefix) for line in lines)


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


def check_syntax(text: str, fix: str | None = None) -> None:
    """Checks a whole file with visudo: a mistake in sudoers may lock everybody out."""
    complaint = _complaint(text)
    if complaint is not None:
        raise InstallError("visudo rejects the resulting sudoers", fix=fix, detail=f"{text}\n{complaint}")


def _complaint(text: str) -> str | None:
    """What visudo prints about the text if it rejects it."""
    visudo = shutil.which("visudo", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if visudo is None:
        return None
    with tempfile.NamedTemporaryFile("w", prefix="pytest-netpoll-", errors="surrogateescape") as draft:
        draft.write(text)
        draft.flush()
        run = subprocess.run([visudo, "-c", "-f", draft.name], capture_output=True, text=True, check=False)
    return f"{run.stdout}{run.stderr}" if run.returncode else None


def write_sudoers(file: Path, line: str) -> list[str]:
    """Adds the line, replacing and returning what an earlier call wrote for the same user."""
    if "." in file.name or file.name.endswith("~"):
        raise UsageError(f"install-agent: sudo does not read files named like {file.name!r} in sudoers.d")
    user = line.split()[0]
    with _changed(file) as lines:
        if not lines:
            lines.append(_HEADER)
        own = [old for old in lines if (ours := _parsed(old)) and ours["user"] == user]
        lines[:] = [*(old for old in lines if old not in own), line]
    return [old for old in own if old != line]


def remove_lines(file: Path, prefix: Path, user: str | None = None) -> list[str]:
    """Removes the lines that let the user (None: anybody) start the agent in the directory; returns them.
    A file that holds nothing else is removed.
    """
    if not os.path.lexists(file):
        return []
    with _changed(file, revoking=True) as lines:
        own = [line for line in lines if _allows(line, prefix, user)]
        lines[:] = [line for line in lines if line not in own]
    return own


def _parsed(line: str) -> re.Match[str] | None:
    """The parts of a line of ours, whatever the spaces between and around its words are."""
    return _LINE.fullmatch(" ".join(line.split()))


def _allows(line: str, prefix: Path, user: str | None = None) -> bool:
    """Whether it is a line of ours for the agent in the directory, and for that user (None: anybody)."""
    ours = _parsed(line)
    return ours is not None and ours["agent"] == str(prefix / "agent") and user in (None, ours["user"])


def _read(file: Path) -> list[str]:
    """The lines of the file; OSError (ELOOP) if it is a symbolic link."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, errors="surrogateescape") as text:
        return text.read().splitlines()


@contextlib.contextmanager
def _changed(file: Path, revoking: bool = False) -> Iterator[list[str]]:
    """The lines of a file of sudoers, which are written back; none if there is no such file. A file that is
    left with nothing but our header is removed.

    revoking: mistakes that the file had before don't matter; they must not keep a permission alive.
    """
    try:
        with _alone(file.parent):
            try:
                before = _read(file)
            except FileNotFoundError:
                before = []
            lines = list(before)
            yield lines
            if lines == before:
                return
            if lines in ([], [_HEADER]):
                file.unlink()
                return
            text = _text(lines)
            if not revoking or _complaint(_text(before)) is None:
                check_syntax(text, fix=f"change it by hand: sudo visudo -f {shlex.quote(str(file))}")
            # In one step, and never readable by others: sudo obeys any file that it finds there.
            draft = file.with_name(f".{file.name}.new")
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440)
            with open(descriptor, "w", errors="surrogateescape") as out:
                out.write(text)
            draft.rename(file)
    except OSError as error:
        if error.errno == errno.ELOOP:
            # To replace the link would leave the lines where it leads to.
            target = shlex.quote(str(file.resolve()))
            raise InstallError(
                f"{file} is a symbolic link, and wasn't changed",
                fix=f"name the file that it leads to: --sudoers {target}",
            ) from None
        fix = None if file.parent.is_dir() else "install sudo"
        raise InstallError(f"cannot write {file}", why=error.strerror, fix=fix) from None


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two installations at once would each drop the other's line."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
