"""Shows what pytest is waiting for, without garbling pytest's own progress line."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from pytest_netpoll.clean import one_line


class Progress:
    """Writes lines between pytest's. Knows which test's result is still to come."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._running: tuple[str, Any] | None = None

    def say(self, text: str) -> None:
        """Prints a line for people who wait; nothing without a terminal, as in a pytest-xdist worker."""
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if reporter is None:
            return
        writer = self._config.get_terminal_writer()
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            reporter.ensure_newline()
            # With -q pytest doesn't know that dots are on the line.
            if writer.width_of_current_line:
                writer.line()
            reporter.write(one_line(f"netpoll: {text}"))
            if self._running is not None:
                # pytest prints the test's name again on a new line, with its result.
                reporter.pytest_runtest_logstart(*self._running)
            if reporter.currentfspath is None:  # with -q, or between tests: no name was printed
                writer.line()
            reporter.flush()

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._running = nodeid, location

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._running = None

    def pytest_runtest_logfinish(self) -> None:
        self._running = None
