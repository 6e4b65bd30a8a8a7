"""Prints and writes the reports when all tests have run."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_netpoll.report import tables, terminal
from pytest_netpoll.session.session import Session


def show(session: Session, terminalreporter: Any) -> None:
    """Prints the tables and the messages about files."""
    records, width = session.reports.records, session.width
    table = terminal.summary_table(records, width, session.environment)
    if table is not None:
        terminalreporter.section("netpoll")
        terminalreporter.write_line(table)
        if session.options.mode == "report":
            for line in terminal.gate_preview(records, width):
                terminalreporter.write_line(line)
    for title, table in tables.further_tables(records, width):
        terminalreporter.section(title)
        terminalreporter.write_line(table)
    for line in session.reports.lines:
        terminalreporter.write_line(line)


def write(session: Session, pytest_session: pytest.Session) -> None:
    """Writes the files; the run fails if a requested one is missing."""
    reports = session.reports
    # The controller reports the records of pytest-xdist's workers.
    if session.is_worker or not session.runs_tests:
        return
    reports.write(session.environment, say_written=session.has_terminal)
    if not reports.complete and pytest_session.exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        pytest_session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if not session.has_terminal:
        # Annotations go to the log, not through pytest's reporter.
        print(*reports.lines, sep="\n", end="\n" if reports.lines else "")
