"""Finds files' paths in the repository, which are needed to annotate lines for a review."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Directories that hold no files of the repository's own.
_FOREIGN = {"node_modules", "vendor", "testdata"}
_MOST_DIRECTORIES = 20_000


class Checkout:
    """The repository in `workspace`, seen by a pytest whose root directory is `rootdir`.

    root: the path of pytest's root directory in the repository; empty if it is elsewhere.
    """

    def __init__(self, rootdir: Path, workspace: Path) -> None:
        self._rootdir = rootdir.resolve()
        self._workspace = workspace.resolve()
        inside = self._rootdir.is_relative_to(self._workspace)
        self.root = self._rootdir.relative_to(self._workspace) if inside else Path()
        self.find = functools.cache(self._find)

    def _find(self, file: str) -> Path | None:
        """The path in the repository of a file in a stack; None if that is not certain.

        Files in stacks are absolute, or relative to pytest's root directory or their Go module.
        """
        if not file or "\0" in file:
            return None
        if Path(file).is_absolute():
            found = [Path(file)]
        else:
            found = [self._rootdir / file] if _is_file(self._rootdir / file) else []
            found = found or [module / file for module in self._modules if _is_file(module / file)]
        paths = {path.resolve() for path in found if _is_file(path)}
        inside = [path for path in paths if path.is_relative_to(self._workspace)]
        return inside[0].relative_to(self._workspace) if len(inside) == len(paths) == 1 else None

    @functools.cached_property
    def _modules(self) -> list[Path]:
        return list(_modules_in(self._workspace))


def revision_of(rootdir: Path) -> dict[str, str | None]:
    """{"commit": …, "branch": …} of the tested checkout; None if git doesn't know. CI checks out a commit
    without a branch, and names its pull request or branch in the environment.
    """
    commit, branch = (
        _git(rootdir, "rev-parse", "HEAD"),
        _git(rootdir, "symbolic-ref", "--short", "-q", "HEAD"),
    )
    if commit is not None and branch is None:
        named = (
            os.environ.get(name) for name in ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME")
        )
        branch = next(filter(None, named), None)
    return {"commit": commit, "branch": branch}


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError:
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


def _modules_in(workspace: Path) -> Iterator[Path]:
    """The directories of Go modules in it."""
    for number, (directory, below, files) in enumerate(os.walk(workspace)):
        if number == _MOST_DIRECTORIES:
            return
        below[:] = [name for name in below if not name.startswith(".") and name not in _FOREIGN]
        if "go.mod" in files:
            yield Path(directory)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or that we may not see
        return False
