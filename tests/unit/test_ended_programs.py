"""Programs of children that have ended, of which nothing is left but their paths."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

from pytest_netpoll.meter import privilege
from pytest_netpoll.meter.processes import ended_program


@pytest.fixture
def processes(monkeypatch):
    """The agent's Processes, of a kernel that nobody asks, while a window is open."""
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    watched = importlib.import_module("processes.watched")
    return watched.Processes(None, SimpleNamespace(any_open=True), bool)


def end(processes, path):
    processes._note_end(SimpleNamespace(root=1, executable=path, threads=2))


def test_a_service_cannot_fill_the_agents_memory_with_paths(processes):
    for number in range(3000):
        end(processes, f"/tmp/{number}")
    ended = processes.ended(1, since=0)
    assert len(ended) == 1025
    # Those that weren't kept are not taken for nothing: there is no such file, so they may have been Go's.
    (further,) = (path for path in ended if not path.startswith("/tmp/"))
    assert ended_program({"ended": [sys.executable, further]}) == "one of more than 1,024 programs"


@pytest.mark.parametrize("gone", ["/tmp/go-build1/b001/exe/server", "/app/server (deleted)"])
def test_a_program_that_cannot_be_read_may_have_been_go_s(gone):
    assert ended_program({"ended": [sys.executable, gone]}) == gone


def test_readable_programs_that_are_not_go_s_have_lost_nothing():
    assert ended_program({"ended": [sys.executable, "/bin/sh"]}) is None
