"""Collects the records of one pytest session, and writes all reports at its end."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytest_netpoll import __version__
from pytest_netpoll.errors import NetpollError
from pytest_netpoll.model.verdict import worse
from pytest_netpoll.options import Config
from pytest_netpoll.report import artifacts, baseline_file, delta, github, json_report, wording
from pytest_netpoll.report.attached import attached
from pytest_netpoll.report.checkout import Checkout, revision_of
from pytest_netpoll.report.html import document
from pytest_netpoll.report.record import TestRecord


def _add_verdict(known: TestRecord, late: TestRecord) -> None:
    """Adds what ended a test's teardown to the test's record."""
    known["gate"] = worse(known.get("gate", known["outcome"]), late.get("gate", late["outcome"]))
    if late["outcome"] == "passed":
        return
    known["outcome"] = worse(known["outcome"], late["outcome"])
    known["reason"] = "\n".join(filter(None, (known["reason"], late["reason"])))
    known["reasons"] = [*known.get("reasons", ()), *late.get("reasons", ())]
    known["deaths"] = [*known.get("deaths", ()), *late.get("deaths", ())]
    known["xfail"] = None  # which doesn't expect errors at teardown


class Reports:
    """records: of the measured tests, in the order in which they ended. lines: messages about the files, and
    GitHub's annotations. complete: whether all requested files were written.
    """

    def __init__(self, options: Config, rootdir: Path) -> None:
        self.records: list[TestRecord] = []
        self.lines: list[str] = []
        self.complete = True
        self._artifacts_complete = True
        self._tests_with_artifacts: set[str] = set()
        self._options = options
        self._rootdir = rootdir

    def forget(self, nodeid: str) -> None:
        """Drops the records of a test that is run again: the last run is the test's result."""
        self.records = [record for record in self.records if record["nodeid"] != nodeid]

    def add_windows(self, late: TestRecord) -> None:
        """Adds a test's windows that closed after its call, and what they say of it. late: a record with only
        these."""
        for known in reversed(self.records):
            if known["nodeid"] == late["nodeid"]:
                known.setdefault("windows", []).extend(late["windows"])
                _add_verdict(known, late)
                return
        self.records.append(late)

    def write_artifacts(self, packed: Mapping[str, str]) -> None:
        """Writes one test's artifacts, from artifacts.packed. After a failure it doesn't try again."""
        if self._options.artifacts is None or not self._artifacts_complete:
            return
        try:
            artifacts.write(self._options.artifacts.directory, packed)
            # A failed subtest's artifacts are its test's.
            self._tests_with_artifacts |= {path.partition("/")[0] for path in packed}
        except NetpollError as error:
            self.complete = self._artifacts_complete = False
            self.lines.append(f"netpoll: {error}")

    @functools.cached_property
    def _revision(self) -> Mapping[str, str | None]:
        return revision_of(self._rootdir)

    def environment(self, agent: Mapping[str, Any]) -> dict[str, Any]:
        """The environment in the JSON report. agent: what the agent reports about itself."""
        services = wording.all_services(self.records)
        reported = dict(agent)
        return {
            "plugin": __version__,
            **self._revision,
            "mode": self._options.mode,
            "python": platform.python_version(),
            "agent_python": reported.pop("python", None),
            "cpus": os.cpu_count(),
            "cpus_usable": len(os.sched_getaffinity(0)),
            "go_versions": sorted({s["go_version"] for s in services if s["go_version"]}),
            "arch": platform.machine(),
            "kernel": platform.release(),
            **reported,
            "attached": attached(self.records),
            "command": command_line(sys.argv),
        }

    def write(self, environment: Mapping[str, Any], say_written: bool) -> None:
        """Writes the requested files, and the output for GitHub Actions."""
        asked: list[tuple[Callable[..., list[str] | None], Path]] = []
        if self._options.json is not None:
            asked.append((json_report.write, self._options.json))
        if self._options.html is not None:
            asked.append((document.write, self._options.html))
        if self._options.markdown is not None:
            asked.append((delta.write, self._options.markdown))
        if self._options.save is not None:
            path = baseline_file.path_of(self._rootdir, self._options.save)
            if self.records:
                asked.append((baseline_file.write, path))
            else:
                self.lines.append(f"netpoll: no test was measured, {path} stays as it is")
        for write, path in asked:
            try:
                remarks = write(path, environment, self.records)
            except NetpollError as error:
                # The tests' results stay, but a missing report that was requested has to show.
                self.complete = False
                self.lines.append(f"netpoll: {error}")
                continue
            if say_written:
                self.lines.append(f"netpoll: wrote {path}")
            self.lines += [wording.one_line(f"netpoll: {line}") for line in remarks or ()]
        if say_written and self._options.artifacts is not None and self._tests_with_artifacts:
            count = len(self._tests_with_artifacts)
            tests = "1 test" if count == 1 else f"{count:,} tests"
            self.lines.append(f"netpoll: wrote artifacts of {tests} to {self._options.artifacts.directory}")
        self._tell_github(environment)

    def _tell_github(self, environment: Mapping[str, Any]) -> None:
        step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if step_summary and self.records:
            try:
                text = github.markdown(self.records, environment)
                if any(record.get("comparison") for record in self.records):
                    text = f"{delta.markdown(self.records, environment)}\n{text}"
                github.append(Path(step_summary), text)
            except NetpollError as error:  # nobody requested it, so it isn't a failure
                self.lines.append(f"netpoll: {error}")
        if os.environ.get("GITHUB_ACTIONS") == "true":
            found = Checkout(self._rootdir, Path(os.environ.get("GITHUB_WORKSPACE") or self._rootdir))
            level: Literal["error", "warning"] = "warning" if self._options.mode == "report" else "error"
            self.lines += github.annotations(self.records, found.root, found.find, level)


def command_line(argv: Sequence[str]) -> str:
    """ "pytest -q", or "python -m pytest -q", as sys.argv has it."""
    program = Path(argv[0])
    started = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*started, *argv[1:]])
