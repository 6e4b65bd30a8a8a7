"""The text of `python -m pytest_netpoll dump`; tests/bpf runs it on a process."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_netpoll.cli import dump
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.evidence import ParkedGoroutine

# Innermost first.
STACK = (Frame("main.read", "a.go", 7), Frame("main.serve", "server/main.go", 112))


def test_functions_are_aligned_and_goroutines_in_order() -> None:
    where: dict[str, Any] = {
        "direction": "read",
        "fd_type": "tcp",
        "local": None,
        "peer": "[::1]:9",
        "stack": STACK,
    }
    parked = [ParkedGoroutine(goroutine=number, **where) for number in (31, None, 4, 118)]
    (text,) = dump._groups(parked)
    assert text.splitlines() == [
        "4 goroutines, read on tcp:",
        "    a.go:7              main.read",
        "    server/main.go:112  main.serve",
        "  goroutine 4  [::1]:9",
        "  goroutine 31  [::1]:9",
        "  goroutine 118  [::1]:9",
        "  goroutine ?  [::1]:9",
    ]


def test_the_help_has_no_option_about_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dump.main(["--help"])
    shown = capsys.readouterr().out
    assert "--netpoll-agent" in shown
    assert "--netpoll-response" not in shown
    assert "--netpoll-goready" not in shown
