"""The pytest side: hooks and fixtures; wiring only."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_netpoll import __version__, extensions, hookspecs, marker
from pytest_netpoll.attribution import Presence, Roster, used_by
from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.fixtures import GoService, Netpoll
from pytest_netpoll.marker import Limits
from pytest_netpoll.metrics import Measurement
from pytest_netpoll.options import Config, add_options
from pytest_netpoll.outcome import ENFORCED, enforce, plain_failures, usage_errors
from pytest_netpoll.privilege import SYSTEM_PYTHON
from pytest_netpoll.report import json as json_report
from pytest_netpoll.report import junit, record, summary, terminal
from pytest_netpoll.service import Service, ServiceFactory
from pytest_netpoll.symbols import Symbolizer
from pytest_netpoll.verdict import Verdict, judge
from pytest_netpoll.window import Meter

MARKER = "netpoll"


class Judged(NamedTuple):
    """What was measured of a test, before pytest has said how the test ended."""

    limits: Limits
    measurements: list[Measurement]
    verdict: Verdict
    columns: list[extensions.Columns]


SESSION = pytest.StashKey["Session"]()
LIMITS = pytest.StashKey[Limits]()
JUDGED = pytest.StashKey["Judged | None"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", marker.help_text())
    with usage_errors():
        options = Config.from_pytest(config)
        if options.html is not None:
            raise UsageError("--netpoll-html is not written yet", fix="use --netpoll-json=FILE")
        marker.resolve([], "", options.limits)
    session = Session(config, options)
    config.stash[SESSION] = session
    config.pluginmanager.register(session, "netpoll-session")


@pytest.fixture(scope="session")
def go_service(request: pytest.FixtureRequest) -> Iterator[GoService]:
    """Builds and launches Go services: go_service("./server", args=["-addr", "127.0.0.1:{port}"])."""
    factory = request.config.stash[SESSION].make_factory(_build_dir(request))
    yield GoService(factory)
    with plain_failures():
        factory.stop_all()


@pytest.fixture
def netpoll(request: pytest.FixtureRequest) -> Netpoll:
    """Measures a stretch of a test: `with netpoll.measure() as window: …`, then `window[service].wakeups`."""
    session = request.config.stash[SESSION]
    return Netpoll(request.node, session.options, session.meter, session.roster)


class Session:
    """The plugin's state of one pytest session, and the hooks that need it."""

    def __init__(self, config: pytest.Config, options: Config) -> None:
        self.options = options
        self.meter = Meter(options, Symbolizer(config.rootpath))
        self.roster = Roster()
        self._config = config
        self._factories: list[ServiceFactory] = []
        self._records: list[record.TestRecord] = []
        self._written: list[str] = []

    def make_factory(self, build_dir: Path) -> ServiceFactory:
        factory = ServiceFactory(
            rootdir=self._config.rootpath,
            cache_dir=build_dir,
            on_spawn=self._spawned,
            on_exit=self._ended,
            say=self._say,
        )
        self._factories.append(factory)
        return factory

    def _spawned(self, service: Service) -> None:
        self.roster.enter(service)
        if self.options.mode != "off":
            self.meter.watch(service)

    def _ended(self, service: Service) -> None:
        self.roster.leave(service)
        if self.options.mode != "off":
            self.meter.unwatch(service)

    def _say(self, text: str) -> None:
        """A line for who waits, on a line of its own."""
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if reporter is None:
            return
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            reporter.ensure_newline()
            reporter.write_line(f"netpoll: {text}")

    def pytest_report_header(self) -> str:
        python = self.options.python or SYSTEM_PYTHON
        return terminal.header_line(self.options, f"eBPF on sys_exit through BCC of {python}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = [(mark.args, mark.kwargs) for mark in item.iter_markers(MARKER)]
            if marks:
                with usage_errors():
                    item.stash[LIMITS] = marker.resolve(marks, item.nodeid, self.options.limits)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self.options.mode == "off" or self._only_collects:
            return
        if any(LIMITS in item.stash or "netpoll" in _fixtures(item) for item in session.items):
            # It compiles while the services are being built.
            self.meter.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        __tracebackhide__ = True
        limits = item.stash.get(LIMITS, None)
        # A test that is run again, as by pytest-rerunfailures, begins anew.
        item.stash[JUDGED] = item.stash[ENFORCED] = None
        if limits is None or self.options.mode == "off":
            return (yield)
        presence = Presence(self.roster)
        window = self.meter.open()
        try:
            result = yield
        finally:
            # Also of a test that fails by itself: its numbers may tell why.
            measurements = self.meter.close(window, presence.concerned(item, limits))
            verdict = self._judge(item, limits, measurements)
        enforce(item, verdict, self.options)
        return result

    def _judge(self, item: pytest.Item, limits: Limits, measurements: list[Measurement]) -> Verdict:
        __tracebackhide__ = True
        # Even if a user's hook fails, what was measured is reported.
        verdict = judge(measurements, limits, self.options.mode)
        item.stash[JUDGED] = Judged(limits, measurements, verdict, [])
        for measurement in measurements:
            item.ihook.pytest_netpoll_measured(item=item, measurement=measurement)
        with plain_failures():
            further = extensions.breaches(item, measurements, limits)
            columns = extensions.columns(item, measurements)
        verdict = judge(measurements, limits, self.options.mode, further)
        item.stash[JUDGED] = Judged(limits, measurements, verdict, columns)
        return verdict

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # Only now it is known how the test ended: a unittest.TestCase raises nothing, an xfail may be one.
        if report.failed:
            for service in self._services_behind(item):
                report.sections.append((f"output of service {service.name}", service.tail()))
        if call.when == "call":
            self._attach_record(item, call, report)
        return report

    def _attach_record(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        judged = item.stash.get(JUDGED, None)
        enforced = item.stash.get(ENFORCED, None)
        error = call.excinfo.value if call.excinfo is not None else None
        ours = enforced is not None and error is enforced.exception
        if ours and report.skipped and not hasattr(report, "wasxfail"):
            # Not the line of this plugin that raised it.
            path, line, _ = item.location
            report.longrepr = (str(item.config.rootpath / path), (line or 0) + 1, str(error))
        elif isinstance(error, pytest.skip.Exception | pytest.xfail.Exception):
            return  # it stopped half-way, by its own decision
        if ours:
            assert enforced is not None
            judged = (judged or Judged(Limits(), [], enforced.verdict, []))._replace(verdict=enforced.verdict)
        if judged is None:
            return
        made = _record(item, judged, None if ours else error, getattr(report, "wasxfail", None))
        # Travels with the report, also from a pytest-xdist worker to its controller.
        report.netpoll = made  # type: ignore[attr-defined]
        properties = junit.properties(made)
        report.user_properties += properties
        item.user_properties += properties  # for the teardown's report, where --junitxml looks
        if made["outcome"] != "passed":
            report.sections.append(("netpoll", terminal.failure_section(made, self._width())))

    def _services_behind(self, item: pytest.Item) -> list[Service]:
        """Those whose output may explain a failure."""
        used = used_by(item)
        if not used and (LIMITS in item.stash or "go_service" in _fixtures(item)):
            return self.roster.running
        return used

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        made = getattr(report, "netpoll", None)
        if made is not None:
            self._records.append(made)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        made = getattr(report, "netpoll", None)
        if made is not None and made["outcome"] == "unmeasured" and report.failed:
            return "failed", "U", "UNMEASURED"
        return None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        table = terminal.summary_table(self._records, self._width(), self.environment)
        if table is not None:
            terminalreporter.section("netpoll")
            terminalreporter.write_line(table)
        for line in self._written:
            terminalreporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # A pytest-xdist worker's records are its controller's to report.
        if not hasattr(self._config, "workerinput") and not self._only_collects:
            self._write_reports(session)

    def _write_reports(self, session: pytest.Session) -> None:
        if self.options.json is not None:
            try:
                json_report.write(self.options.json, self.environment, self._records)
                self._written.append(f"netpoll: wrote {self.options.json}")
            except NetpollError as error:
                # The tests' own results stay; but who asked for a report must not take it for written.
                self._written.append(f"netpoll: {error}")
                if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    session.exitstatus = pytest.ExitCode.TESTS_FAILED
        step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if step_summary and self._records:
            try:
                summary.append(Path(step_summary), summary.markdown(self._records, self.environment))
            except NetpollError as error:  # nobody asked for it: no reason to fail
                self._written.append(f"netpoll: {error}")
        if os.environ.get("GITHUB_ACTIONS") == "true":
            self._written += summary.annotations(self._records)

    @property
    def environment(self) -> dict[str, Any]:
        """Where this was measured, as in the JSON report."""
        return {
            "plugin": __version__,
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            **self.meter.environment,
        }

    @property
    def _only_collects(self) -> bool:
        return bool(self._config.option.collectonly)

    def _width(self) -> int:
        if not self._config.pluginmanager.hasplugin("terminalreporter"):
            return 80
        return max(60, self._config.get_terminal_writer().fullwidth)

    def pytest_unconfigure(self) -> None:
        for factory in self._factories:
            # The fixture's teardown has told of it; here only when pytest did not get there.
            with contextlib.suppress(NetpollError):
                factory.stop_all()
        self.meter.stop()


def _record(
    item: pytest.Item, judged: Judged, error: BaseException | None, xfail: str | None
) -> record.TestRecord:
    path, line, _ = item.location
    return record.build(
        nodeid=item.nodeid,
        location=(path, (line or 0) + 1),
        verdict=judged.verdict,
        limits=judged.limits,
        measurements=judged.measurements,
        columns=judged.columns,
        window_seconds=max((m.window_seconds for m in judged.measurements), default=0.0),
        error=None if error is None else f"{type(error).__name__}: {error}",
        xfail=xfail,
    )


def _fixtures(item: pytest.Item) -> list[str]:
    """All that the test depends on."""
    return getattr(item, "fixturenames", [])


def _build_dir(request: pytest.FixtureRequest) -> Path:
    """Where built services are kept: pytest's cache, so that a running one may stay in use.

    Without that cache (`-p no:cacheprovider`, a read-only checkout) one of pytest's temporary
    directories: Go's own cache makes up for most of the difference.
    """
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        with contextlib.suppress(OSError):
            directory = Path(cache.mkdir("netpoll"))
            if os.access(directory, os.W_OK):
                return directory
    directory = request.getfixturevalue("tmp_path_factory").mktemp("netpoll")
    assert isinstance(directory, Path)
    return directory
