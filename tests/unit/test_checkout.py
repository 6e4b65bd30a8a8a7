"""Which file of the repository a stack refers to."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_netpoll.report.checkout import Checkout


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    files = (
        "repo/go.mod",
        "repo/main.go",
        "repo/server/go.mod",
        "repo/server/cmd/main.go",
        "repo/other/go.mod",
        "repo/other/same.go",
        "repo/server/same.go",
        "repo/tests/local.go",
        "repo/vendor/lib/go.mod",
        "repo/vendor/lib/lib.go",
        "repo/.cache/mod/go.mod",
        "repo/.cache/mod/cached.go",
        "elsewhere/away.go",
    )
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path / "repo"


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("local.go", "tests/local.go"),
        ("main.go", "main.go"),
        ("cmd/main.go", "server/cmd/main.go"),
        ("same.go", None),
        ("lib.go", None),
        ("cached.go", None),
        ("net/http/server.go", None),
        ("example.org/lib@v1.2.3/lib.go", None),
        ("../../elsewhere/away.go", None),
        ("", None),
        ("\0", None),
        ("x" * 5000, None),
    ],
)
def test_a_file_is_found_only_if_it_is_certain(workspace: Path, file: str, found: str | None) -> None:
    checkout = Checkout(workspace / "tests", workspace)
    assert checkout.root == Path("tests")
    assert checkout.find(file) == (None if found is None else Path(found))


def test_absolute_paths_count_inside_the_repository_only(workspace: Path) -> None:
    checkout = Checkout(workspace, workspace)
    assert checkout.find(str(workspace / "server/same.go")) == Path("server/same.go")
    assert checkout.find(str(workspace.parent / "elsewhere/away.go")) is None
    (workspace / "link.go").symlink_to(workspace.parent / "elsewhere/away.go")
    assert checkout.find("link.go") is None


def test_a_root_directory_outside_the_repository_has_no_path_in_it(workspace: Path) -> None:
    checkout = Checkout(workspace.parent / "elsewhere", workspace)
    assert checkout.root == Path()
    assert checkout.find("away.go") is None
    assert checkout.find("cmd/main.go") == Path("server/cmd/main.go")
