"""What a test's failure says, when this plugin ends it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.verdict import Verdict
from pytest_netpoll.options import Config
from pytest_netpoll.session.outcome import enforce

FIX = "run `sudo -v`; if you may not, an administrator runs once: sudo python -m pytest_netpoll install-agent"


def test_how_to_let_pytest_load_bpf_is_said_once() -> None:
    config = SimpleNamespace(stash=pytest.Stash())

    def ended(nodeid: str, *reasons: Reason) -> list[str]:
        item: Any = SimpleNamespace(nodeid=nodeid, config=config, stash=pytest.Stash())
        with pytest.raises(pytest.fail.Exception) as failed:
            enforce(item, Verdict("unmeasured", reasons), Config.default())
        return str(failed.value).splitlines()

    no_root = Reason("front: eBPF needs root", why="sudo asks for a password", fix=FIX)
    other = Reason("back: it ended in the window", fix="stop it after the test")
    headline = "front: eBPF needs root: sudo asks for a password"
    whole = [
        "  fix: run `sudo -v`; if you may not, an administrator runs once:",
        "    sudo python -m pytest_netpoll install-agent",
    ]
    # A test that is rerun says it again: its first failure isn't shown.
    for _ in range(2):
        assert ended("t.py::one", no_root) == [f"unmeasured: {headline}", *whole]
    pointer = "  fix: as for t.py::one"
    assert ended("t.py::two", no_root) == [f"unmeasured: {headline}", pointer]
    assert ended("t.py::three", no_root, no_root.about("window 1")) == [
        f"unmeasured: {headline}",
        pointer,
        f"window 1: {headline}",
    ]
    for nodeid in ("t.py::four", "t.py::five"):
        assert ended(nodeid, other)[1:] == ["  fix: stop it after the test"]
