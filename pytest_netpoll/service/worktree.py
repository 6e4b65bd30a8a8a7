"""Builds another revision of the checkout's repository, from a git worktree in a temporary directory.

The worktree has the checkout's path, but below the temporary directory instead of "/". So links there can
lead to directories outside the repository that modules and go.work name (`replace … => ../lib`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_netpoll.errors import ServiceError, UsageError
from pytest_netpoll.service import guardian
from pytest_netpoll.service.build import Builder, GoTool
from pytest_netpoll.service.patience import Say

_OPTION = "--netpoll-against"
# Directories in go.mod and go.work: behind "=>", or on a line of their own in "use (…)".
_DIRECTORY = re.compile(r'(?:=>|^\s*use|^)\s*"?((?:\.\.?)?/[^\s"]*|\.\.)"?\s*(?://.*)?$', re.MULTILINE)
_NO_MODULES = ("vendor", "testdata", "node_modules")


class Revision:
    """A commit of the repository that contains a directory. ref: as the user wrote it. root: of the checkout,
    with symlinks resolved. commit: in full.
    """

    def __init__(self, ref: str, directory: Path) -> None:
        """Raises UsageError if the revision is wrong."""
        self.ref = ref
        inside = _git(directory, "rev-parse", "--show-toplevel")
        if inside.returncode != 0 or not inside.stdout.strip():
            raise UsageError(
                f"{_OPTION}={ref}: {directory} is not in a git checkout",
                why=_said(inside),
                fix="run pytest in a clone of the repository, or leave the option out",
            )
        self.root = Path(inside.stdout.removesuffix("\n")).resolve()
        found = _git(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        if found.returncode != 0:
            shallow = _git(directory, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
            raise UsageError(
                f"{_OPTION}={ref}: there is no such commit in {self.root}",
                why="the clone is shallow, as CI's often are" if shallow else _said(found),
                fix="with actions/checkout set fetch-depth: 0; elsewhere git fetch --unshallow"
                if shallow
                else f"git fetch, and give a branch, tag or commit that is there: git rev-parse {ref}",
            )
        self.commit = found.stdout.strip()

    def __str__(self) -> str:
        return f"base ({self.ref})"


class Worktree:
    """A revision's files, created when the first package is built from them; `remove` deletes them. The
    guardian deletes them if pytest is killed.
    """

    def __init__(self, revision: Revision, say: Say | None = None) -> None:
        self.revision = revision
        self._say = say
        self._guardian = guardian.Guardian()
        self._place: Path | None = None
        self._made: Path | None = None
        self._builder: Builder | None = None
        self._lock = threading.RLock()

    def build(
        self,
        package: str,
        *,
        base: Path,
        go: str | GoTool | None,
        flags: Sequence[str],
        env: Mapping[str, str],
    ) -> Path:
        """As Builder.build, for the package at the same path in the revision. Raises UsageError if it is
        outside the repository, ServiceError if it doesn't exist or build.
        """
        with self._lock:
            root = self._root()
            there = self._counterpart(base, package) if _is_path(package, base) else package
            try:
                directory = root / base.resolve().relative_to(self.revision.root)
            except ValueError:
                if not Path(there).is_absolute():
                    raise self._outside(package, base) from None
                directory = root
            if not Path(there).is_absolute() and not directory.is_dir():
                raise self._lacks(package)
            assert self._builder is not None
            work = env.get("GOWORK", os.environ.get("GOWORK", ""))
            if work.startswith("/"):
                env = {**env, "GOWORK": str(self._link_workspace(Path(work)))}
            try:
                return self._builder.build(there, base=directory, go=go, flags=flags, env=env)
            except ServiceError as error:
                raise ServiceError(
                    f"{self.revision}: {error.what.replace(there, package)}",
                    why=error.why,
                    fix=error.fix or "give a revision that builds, or run without --netpoll-against",
                    detail=error.detail,
                ) from None

    def remove(self) -> None:
        """Removes the files, and git's entry for the worktree."""
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            _git(self.revision.root, "worktree", "prune")
            self._place = self._made = self._builder = None
        self._guardian.close()

    def _counterpart(self, base: Path, package: str) -> str:
        path = Path(os.path.normpath(base.absolute() / package))
        try:
            relative = path.resolve().relative_to(self.revision.root)
        except ValueError:
            raise self._outside(package, path) from None
        found = self._root() / relative
        if not found.exists():
            raise self._lacks(package)
        return str(found)

    def _outside(self, package: str, path: Path) -> UsageError:
        return UsageError(
            f"{self.revision}: cannot build {package}",
            why=f"{path} is outside the repository {self.revision.root}, which the revision belongs to",
            fix="test a package of this repository, or run without --netpoll-against",
        )

    def _lacks(self, package: str) -> ServiceError:
        return ServiceError(
            f"{self.revision}: there is no {package}",
            why=f"commit {self.revision.commit[:12]} does not have it",
            fix="give a revision that has it, or run the tests of new packages without --netpoll-against",
        )

    def _root(self) -> Path:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Path:
        revision = self.revision
        if self._place is None:
            self._place = Path(tempfile.mkdtemp(prefix="pytest-netpoll-")).resolve()
            try:
                self._guardian.start()
                self._guardian.remove_later(self._place)
            except guardian.NoGuardian as error:
                raise ServiceError(
                    f"{revision}: cannot make a worktree",
                    why=f"the process that would remove it if pytest were killed cannot be started: {error}",
                    detail=error.said,
                ) from None
        # Removes entries that killed runs left in git's list, so that it can be created again.
        _git(revision.root, "worktree", "prune")
        root = self._top / revision.root.relative_to("/")
        shutil.rmtree(self._top, ignore_errors=True)
        root.parent.mkdir(parents=True)
        if self._say is not None:
            self._say(f"checking out {revision.ref} ({revision.commit[:12]}) beside this checkout")
        added = _git(revision.root, "worktree", "add", "--detach", "--force", str(root), revision.commit)
        if added.returncode != 0:
            raise ServiceError(f"{revision}: git worktree add failed", why=_said(added), detail=added.stderr)
        own = _git(root, "rev-parse", "--absolute-git-dir").stdout.removesuffix("\n")
        with contextlib.suppress(guardian.NoGuardian):
            self._guardian.remove_later(Path(own))
        if (root / ".gitmodules").is_file():
            fetched = _git(root, "submodule", "update", "--init", "--recursive")
            if fetched.returncode != 0:
                raise ServiceError(
                    f"{revision}: its submodules could not be fetched",
                    why=_said(fetched),
                    fix="git submodule update --init --recursive has to work in a new clone",
                    detail=fetched.stderr,
                )
        self._link_surroundings(root)
        # Not in pytest's cache: these programs are only for this run.
        self._builder = Builder(self._place / "built", self._say_of_base)
        return root

    def _say_of_base(self, text: str) -> None:
        if self._say is not None:
            self._say(text.replace(f"{self._top}{self.revision.root}{os.sep}", f"{self.revision}: "))

    def _link_surroundings(self, root: Path) -> None:
        """Links what go.mod and go.work name outside the repository, and an uncommitted go.work."""
        checkout = self.revision.root
        for directory in (checkout, *checkout.parents):
            if (directory / "go.work").is_file():
                self._link_workspace(directory / "go.work")
                break
        for place, below, files in os.walk(root):
            below[:] = [name for name in below if not name.startswith(".") and name not in _NO_MODULES]
            for name in ("go.mod", "go.work"):
                if name in files:
                    self._link_named_in(Path(place) / name)

    def _link_workspace(self, file: Path) -> Path:
        """Links the go.work from its current place, with everything that it names."""
        there = self._top / file.resolve().relative_to("/")
        _link(there, file)
        _link(there.with_name("go.work.sum"), file.with_name("go.work.sum"))
        self._link_named_in(there)
        return there

    def _link_named_in(self, file: Path) -> None:
        for name in _DIRECTORY.findall(_text(file)):
            wanted = Path(os.path.normpath(file.parent / name))
            if wanted.is_relative_to(self._top):
                _link(wanted, Path("/") / wanted.relative_to(self._top))
            elif wanted.is_relative_to(self.revision.root):
                raise ServiceError(
                    f"{self.revision}: {file.name} names {name}, which is in this checkout",
                    why="the revision would be built with it",
                    fix="name it by a relative path",
                )

    @property
    def _top(self) -> Path:
        """The directory that stands for "/"."""
        assert self._place is not None
        return self._place / "at"


def _link(there: Path, real: Path) -> None:
    """Creates the link unless it exists, and missing parent directories."""
    if not os.path.lexists(there) and real.exists():
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(real)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _is_path(package: str, base: Path) -> bool:
    return package.startswith((".", os.sep)) or (base / package).exists()


def _git(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # git sets these in hooks, to the hook's own repository.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_DIR")}
    for name in ("GIT_WORK_TREE", "GIT_INDEX_FILE"):
        environ.pop(name, None)
    command = ["git", "-C", str(directory), *arguments]
    try:
        return subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


def _said(run: subprocess.CompletedProcess[str]) -> str | None:
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else None
