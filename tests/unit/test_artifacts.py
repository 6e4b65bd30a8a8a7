"""The files of --netpoll-artifacts: their names, and that they are written nowhere else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pytest_netpoll.errors import NetpollError
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.trace import Look, Trace
from pytest_netpoll.options import Artifacts, Config
from pytest_netpoll.report import artifacts, record, terminal
from pytest_netpoll.report.artifacts import File
from pytest_netpoll.report.reports import Reports

IDS = [
    "test_it.py::test_it[a/b]",
    "test_it.py::test_it[a-b]",
    "test_it.py::test_it[../../../etc/passwd]",
    "test_it.py::test_it[" + "x" * 500 + "1]",
    "test_it.py::test_it[" + "x" * 500 + "2]",
    "test_it.py::test_it[\ud800\n\x00ü]",
    "..",
    "",
]


@pytest.mark.parametrize("name", [artifacts.directory_name, artifacts.service_name])
def test_any_two_names_become_two_names_of_plain_files(name: object) -> None:
    assert callable(name)
    made = [name(text) for text in IDS]
    assert len(set(made)) == len(IDS)
    for text in made:
        assert text.isascii()
        assert text[0].isalnum()
        assert not set(text) & set("/\0\n '\"$")
        assert len(text) < 100


def test_a_plain_service_name_is_kept() -> None:
    assert artifacts.service_name("echo-2") == "echo-2"
    assert artifacts.service_name("echo.window-1") != "echo-window-1"  # another service may have this name


def kept(*names: str) -> list[File]:
    return [File(name, b"\x1f\x8b", "woken for nothing", f"go tool pprof -top {name}") for name in names]


def reports(directory: Path) -> Reports:
    options = dataclasses.replace(Config.default(), artifacts=Artifacts(directory, all_tests=False))
    return Reports(options, directory)


def test_files_replace_those_of_an_earlier_run_of_the_test_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / artifacts.directory_name("t")
    directory.mkdir()
    for name in ("old.io.pb.gz", "notes.txt"):
        (directory / name).touch()
    other = tmp_path / artifacts.directory_name("other")
    other.mkdir()
    (other / "old.io.pb.gz").touch()
    reports(tmp_path).write_artifacts(artifacts.packed("t", kept("server.io.pb.gz")))
    assert sorted(path.name for path in directory.iterdir()) == ["notes.txt", "server.io.pb.gz"]
    assert (directory / "server.io.pb.gz").read_bytes() == b"\x1f\x8b"
    assert [path.name for path in other.iterdir()] == ["old.io.pb.gz"]


@pytest.mark.parametrize("damage", ["a file", "a link"])
def test_a_damaged_directory_is_named_once_and_the_run_is_not_complete(tmp_path: Path, damage: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / artifacts.directory_name("t")
    if damage == "a file":
        place.touch()
    else:
        place.symlink_to(tmp_path / "elsewhere")
    made = reports(tmp_path)
    for _ in range(3):
        made.write_artifacts(artifacts.packed("t", kept("server.io.pb.gz")))
    assert not made.complete
    (line,) = made.lines
    assert line.startswith(f"netpoll: the artifacts could not be written to {place}")
    assert "\n  fix: " in line
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_failure_ends_with_a_command_for_each_file_that_can_be_copied_whole() -> None:
    test: record.TestRecord = {
        "nodeid": "t",
        "outcome": "failed",
        "reason": "server: polls 5 > max 4",
        "window_seconds": 1.0,
        "limits": {},
        "breaches": [],
        "services": [],
        "artifacts": artifacts.record_of(
            Path("/srv/my files/t"), kept(*(f"{i}.{'x' * 80}" for i in range(20))), []
        ),
    }
    first, cd, *files, more = terminal.failure_section(test, 60).splitlines()
    assert first == "server: polls 5 > max 4"
    assert cd == "artifacts: cd '/srv/my files/t'"
    assert files[0] == f"  go tool pprof -top 0.{'x' * 80}   2 B  woken for nothing"
    assert (len(files), more) == (terminal.MOST_ARTIFACTS, "  … and 4 more files")


def test_an_unwritable_file_is_an_error_and_not_a_traceback() -> None:
    with pytest.raises(NetpollError, match=r"the artifacts could not be written to /proc/t-.*\n  fix: "):
        artifacts.write(Path("/proc"), artifacts.packed("t", kept("server.io.pb.gz")))


def test_a_trace_says_that_it_stopped_looking_at_run_queues() -> None:
    looks = [Look(2_000, 7, 1, 1), Look(12_000_000, 7, 0, 2)]
    whole, cut = Trace(looks=looks), Trace(looks=looks, missed_looks=3)
    measurement = Measurement("server", 7, "/srv", "go1.27.3", 1.0, Snapshot())
    assert artifacts.trace("t.py::t", measurement, whole).what == "trace of a repeated call"
    file = artifacts.trace("t.py::t", measurement, cut)
    assert file.what.endswith("; run queues at its beginning only: 3 looks were dropped")
    written = json.loads(file.content)
    assert written["otherData"]["missed_looks"] == 3
    (notice,) = (event for event in written["traceEvents"] if event["ph"] == "i")
    assert (notice["name"], notice["ts"]) == (
        "no more looks at run queues from here on (3 were dropped)",
        12_000,
    )
