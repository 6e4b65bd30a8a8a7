"""Writing where others may write too: no other file is changed, and no other user chooses where it goes."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_netpoll.errors import NetpollError
from pytest_netpoll.report import files

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="being another user takes root")


@pytest.fixture(params=[0o1777, 0o777], ids=["sticky", "not sticky"])
def public(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory in which anybody may write."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(directory.stat().st_mode | 0o711)
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(request.param)
    return public


@needs_root
@pytest.mark.parametrize("write", [files.write_atomically, files.append])
@pytest.mark.parametrize("target", ["precious", "not there yet", "/dev/null"])
def test_a_link_of_another_user_is_not_followed(
    public: Path, tmp_path: Path, write: object, target: str
) -> None:
    precious = tmp_path / target
    if target == "precious":
        precious.write_text("precious")
    (public / "report.json").symlink_to(precious)
    os.lchown(public / "report.json", NOBODY, NOBODY)
    assert callable(write)
    with pytest.raises(NetpollError, match="could not be written") as error:
        write(public / "report.json", "text", "the report")
    assert "put a link or a pipe there" in str(error.value.why)
    assert target != "precious" or precious.read_text() == "precious"
    assert target != "not there yet" or not precious.exists()


@needs_root
def test_a_pipe_of_another_user_is_not_written_to(public: Path) -> None:
    os.mkfifo(public / "report.json")
    os.chown(public / "report.json", NOBODY, NOBODY)
    with pytest.raises(NetpollError, match="could not be written"):
        files.write_atomically(public / "report.json", "text", "the report")


@pytest.fixture
def guesser(public: Path, tmp_path: Path) -> Iterator[Path]:
    """Keeps putting links to this file where a temporary file of this process might be created."""
    precious, enough = tmp_path / "precious", threading.Event()
    precious.write_text("precious")

    def guess() -> None:
        while not enough.is_set():
            for name in (f".netpoll-{os.getpid()}.tmp", f"report.json.{os.getpid()}", "report.json.tmp"):
                if not os.path.lexists(public / name):
                    (public / name).symlink_to(precious)

    thread = threading.Thread(target=guess)
    thread.start()
    yield precious
    enough.set()
    thread.join()


def test_a_temporary_file_has_no_name_that_could_be_guessed(public: Path, guesser: Path) -> None:
    for i in range(200):
        files.write_atomically(public / "report.json", f"text {i}", "the report")
        assert (public / "report.json").read_text() == f"text {i}"
        assert not (public / "report.json").is_symlink()
    assert guesser.read_text() == "precious"


@pytest.mark.parametrize("write", [files.write_atomically, files.append])
def test_the_users_own_link_stays_a_link(public: Path, tmp_path: Path, write: object) -> None:
    (tmp_path / "real").write_text("")
    (tmp_path / "second").symlink_to("real")
    (public / "report.json").symlink_to(tmp_path / "second")
    assert callable(write)
    write(public / "report.json", "text", "the report")
    assert (public / "report.json").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "real").read_text() == "text"


def test_links_in_a_circle_are_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(NetpollError, match="could not be written"):
        files.write_atomically(tmp_path / "a", "text", "the report")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_mode_is_that_of_any_new_file_and_a_replaced_one_keeps_its_own(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "new", "text", "the report")
        files.append(tmp_path / "appended", "text", "the summary")
        (tmp_path / "old").write_text("")
        (tmp_path / "old").chmod(0o640)
        files.write_atomically(tmp_path / "old", "text", "the report")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o666 & ~umask, "appended": 0o666 & ~umask, "old": 0o640}


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    (tmp_path / "link").symlink_to(f"/proc/self/fd/{writer}")  # as /dev/stdout is one
    files.write_atomically(tmp_path / "link", "here", "the report")
    files.append(tmp_path / "link", " and there", "the summary")
    files.write_atomically(Path("/dev/null"), "nowhere", "the report")
    os.close(writer)
    with open(reader) as file:
        assert file.read() == "here and there"
    assert Path("/dev/null").is_char_device()
