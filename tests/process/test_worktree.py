"""--netpoll-against: a revision's packages are built beside the checkout, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_netpoll.errors import NetpollError, ServiceError, UsageError
from pytest_netpoll.service.worktree import Revision, Worktree
from tests.waiting import patiently

MAIN = 'package main\n\nimport "example.com/lib"\n\nfunc main() { println(lib.Version, "%s") }\n'
LIB = 'package lib\n\nconst Version = "%s"\n'


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "protocol.file.allow=always")
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with two commits, "then" and "now", whose module needs another one beside the
    repository."""
    root = tmp_path / "work" / "repo"
    (root / "server").mkdir(parents=True)
    (tmp_path / "work" / "lib").mkdir()
    (tmp_path / "work" / "lib" / "go.mod").write_text("module example.com/lib\n\ngo 1.19\n")
    (tmp_path / "work" / "lib" / "lib.go").write_text(LIB % "beside")
    (root / "go.mod").write_text(
        "module example.com/repo\n\ngo 1.19\n\nrequire example.com/lib v0.0.0\n\n"
        "replace example.com/lib => ../lib // beside it\n"
    )
    git(tmp_path, "init", "-q", "-b", "main", str(root))
    for name in ("then", "now"):
        (root / "server" / "main.go").write_text(MAIN % name)
        if name == "now":
            (root / "new").mkdir()
            (root / "new" / "main.go").write_text(MAIN % name)
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", name)
        git(root, "tag", name)
    return root


@pytest.fixture
def worktree(checkout: Path):
    made = Worktree(Revision("then", checkout))
    yield made
    made.remove()


def built(worktree: Worktree, package: str, base: Path) -> Path:
    return worktree.build(package, base=base, go=None, flags=(), env={})


def printed(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, timeout=30).stderr.strip()


def test_the_old_package_is_built_with_the_modules_beside_the_checkout(
    worktree: Worktree, checkout: Path
) -> None:
    first = built(worktree, "./server", checkout)
    assert printed(first) == "beside then"
    assert first.name == "server"
    # Also by its import path, and from another directory.
    assert printed(built(worktree, "example.com/repo/server", checkout)) == "beside then"
    assert built(worktree, "../server", checkout / "new") == first
    place = next(parent for parent in first.parents if parent.name.startswith("pytest-netpoll-"))
    worktree.remove()
    assert not place.exists()
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


def test_an_untracked_workspace_applies_to_the_revision_too(
    worktree: Worktree, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = checkout.parent / "other"
    other.mkdir()
    (other / "go.mod").write_text("module example.com/lib\n\ngo 1.19\n")
    (other / "lib.go").write_text(LIB % "workspace")
    workspace = checkout.parent / "go.work"
    workspace.write_text("go 1.19\n\nuse (\n\t./repo\n\t./other\n)\n")
    assert printed(built(worktree, "./server", checkout)) == "workspace then"
    monkeypatch.setenv("GOWORK", str(workspace))
    assert printed(built(worktree, "./server", checkout)) == "workspace then"


def test_missing_broken_and_outside_packages_are_reported(
    worktree: Worktree, checkout: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ServiceError, match=r"base \(then\): there is no \./new: commit [0-9a-f]{12} does not"
    ):
        built(worktree, "./new", checkout)
    with pytest.raises(
        UsageError, match=r"base \(then\): cannot build \.\./lib: .* is outside the repository"
    ):
        built(worktree, "../lib", checkout)
    with pytest.raises(UsageError, match="is outside the repository"):
        built(worktree, "example.com/repo/server", tmp_path)
    (checkout / "server" / "main.go").write_text("package main\n\nfunc main() { broken( }\n")
    git(checkout, "commit", "-qam", "broken")
    broken = Worktree(Revision("HEAD", checkout))
    try:
        with pytest.raises(ServiceError, match=r"base \(HEAD\): cannot build \./server") as caught:
            built(broken, "./server", checkout)
        assert "main.go:3" in (caught.value.detail or "")
    finally:
        broken.remove()


def test_a_module_that_names_the_checkout_by_its_absolute_path_is_refused(checkout: Path) -> None:
    text = (checkout / "go.mod").read_text().replace("../lib", str(checkout / "server"))
    (checkout / "go.mod").write_text(text)
    git(checkout, "commit", "-qam", "absolute")
    made = Worktree(Revision("HEAD", checkout))
    try:
        with pytest.raises(ServiceError, match="which is in this checkout"):
            built(made, "./server", checkout)
    finally:
        made.remove()


def test_a_missing_revision_is_a_usage_error_with_a_fix(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"=nope: there is no such commit in .*\n  fix: git fetch, and give"):
        Revision("nope", checkout)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{checkout}", str(shallow))
    with pytest.raises(UsageError, match=r"the clone is shallow.*\n  fix: .*fetch-depth: 0"):
        Revision("then", shallow)
    with pytest.raises(UsageError, match=r"=then: .* is not in a git checkout"):
        Revision("then", tmp_path)
    assert Revision("HEAD", checkout).commit == git(checkout, "rev-parse", "now^{commit}")


BUILDS_AND_SLEEPS = """
import sys, time
from pathlib import Path
from pytest_netpoll.service.worktree import Revision, Worktree
checkout = Path(sys.argv[1])
made = Worktree(Revision("then", checkout))
print(made.build("./server", base=checkout, go=None, flags=(), env={}), flush=True)
time.sleep(600)
"""


def test_a_killed_session_leaves_neither_files_nor_an_entry_in_git(checkout: Path) -> None:
    command = [sys.executable, "-c", BUILDS_AND_SLEEPS, str(checkout)]
    session = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert session.stdout is not None
    with session.stdout:
        program = Path(session.stdout.readline().strip())
        assert program.is_file()
        assert len(git(checkout, "worktree", "list").splitlines()) == 2
        os.kill(session.pid, signal.SIGKILL)
        session.wait()
    place = next(parent for parent in program.parents if parent.name.startswith("pytest-netpoll-"))
    assert patiently(lambda: not place.exists() and not list((checkout / ".git" / "worktrees").glob("*")))


def test_a_missing_git_is_an_error_of_the_plugin(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NetpollError, match="git: No such file"):
        Revision("then", checkout)
