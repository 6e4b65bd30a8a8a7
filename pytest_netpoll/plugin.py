"""The pytest side: hooks and fixtures; wiring only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_netpoll import hookspecs
from pytest_netpoll.clean import lines as cleaned
from pytest_netpoll.clean import one_line
from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.meter.privilege import SYSTEM_PYTHON
from pytest_netpoll.model import limits as marker
from pytest_netpoll.model.comparison import (
    Baseline,
    Comparison,
    Rules,
    compare,
    confirmed,
    samples_of,
    settle,
)
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import Measurement
from pytest_netpoll.model.verdict import Death, Verdict, judge
from pytest_netpoll.options import Config, add_options
from pytest_netpoll.report import baseline_file, junit, record, tables, terminal
from pytest_netpoll.report.html import document
from pytest_netpoll.report.reports import Reports
from pytest_netpoll.service.service import Service, ServiceFactory
from pytest_netpoll.service.toolchains import Toolchain, resolve
from pytest_netpoll.session import extensions
from pytest_netpoll.session.attribution import Presence, Roster
from pytest_netpoll.session.deaths import Deaths
from pytest_netpoll.session.fixtures import WINDOWS, GoService, Netpoll, Windows
from pytest_netpoll.session.lifetimes import Lifetimes
from pytest_netpoll.session.outcome import ENFORCED, enforce, plain_failures, settle_report, usage_errors
from pytest_netpoll.session.progress import Progress
from pytest_netpoll.session.trial import Trial, is_repeated

MARKER = "netpoll"
TOOLCHAIN = "netpoll_toolchain"  # the fixture


class Judged(NamedTuple):
    """What was measured of a test, before pytest has said how the test ended."""

    limits: Limits
    measurements: list[Measurement]
    verdict: Verdict
    columns: list[extensions.Columns]
    comparison: Comparison | None = None
    requests_per_second: float | None = None


SESSION = pytest.StashKey["Session"]()
LIMITS = pytest.StashKey[Limits]()
JUDGED = pytest.StashKey["Judged | None"]()
SUBTEST = pytest.StashKey["BaseException | None"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", marker.help_text())
    with usage_errors():
        options = Config.from_pytest(config)
        if options.html is not None:
            document.require()
        # In the ini file tolerances may wait for a comparison; who types them means them.
        if options.compare is None and config.getoption("netpoll_compare_fail", None):
            raise UsageError(
                "--netpoll-compare-fail has nothing to compare with", fix="add --netpoll-compare=NAME"
            )
        marker.resolve([], "", options.limits)
    session = Session(config, options)
    config.stash[SESSION] = session
    config.pluginmanager.register(session, "netpoll-session")


@pytest.fixture(scope="session")
def netpoll_toolchain(request: pytest.FixtureRequest) -> str | None:
    """Which --netpoll-go builds the services of this test ("go1.21.13"); None without that option.

    With several of them it is parametrised: all that depends on go_service is made once for each.
    """
    toolchains = request.config.stash[SESSION].toolchains
    chosen: str | None = getattr(request, "param", next(iter(toolchains), None))
    return chosen


@pytest.fixture(scope="session")
def go_service(request: pytest.FixtureRequest, netpoll_toolchain: str | None) -> Iterator[GoService]:
    """Builds and launches Go services: go_service("./server", args=["-addr", "127.0.0.1:{port}"])."""
    session = request.config.stash[SESSION]
    factory = session.make_factory(_build_dir(request), netpoll_toolchain)
    yield GoService(factory, session.lifetimes.adopt)
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
        self._progress = Progress(config)
        config.pluginmanager.register(self._progress, "netpoll-progress")
        self.meter = Meter(options, Symbolizer(config.rootpath), self._progress.say)
        self.roster = Roster()
        self._deaths = Deaths()
        self.lifetimes = Lifetimes(self.roster, self._deaths)
        config.pluginmanager.register(self.lifetimes, "netpoll-lifetimes")
        self.toolchains: dict[str, Toolchain] = {}
        self._baseline: Baseline | None = None
        self._config = config
        self._factories: list[ServiceFactory] = []
        self.reports = Reports(options, config.rootpath)
        self._workers_environment: dict[str, Any] = {}

    def pytest_sessionstart(self) -> None:
        # Not before: --help and --markers have to work whatever the ini file says.
        with usage_errors():
            found = resolve(self.options.go, self._progress.say)
            self.toolchains = {toolchain.label: toolchain for toolchain in found}
            if self.options.compare is not None and self.options.mode != "off" and not self._measures_nothing:
                self._baseline = self._load_baseline(self.options.compare)

    def _load_baseline(self, name: str) -> Baseline:
        try:
            return baseline_file.load(self._config.rootpath, name)
        except NetpollError as error:
            missing = not baseline_file.path_of(self._config.rootpath, name).exists()
            if missing and self.options.save == name:
                return Baseline(name)  # this run makes it
            raise UsageError(error.what, why=error.why, fix=error.fix) from None

    def make_factory(self, build_dir: Path, toolchain: str | None = None) -> ServiceFactory:
        factory = ServiceFactory(
            rootdir=self._config.rootpath,
            cache_dir=build_dir,
            on_spawn=self._spawned,
            on_exit=self._ended,
            on_ready=self._is_ready,
            taken=self.roster.taken,
            say=self._progress.say,
            go=self.toolchains[toolchain].tool if toolchain is not None else None,
        )
        self._factories.append(factory)
        return factory

    def _spawned(self, service: Service) -> Callable[[], None] | None:
        self.roster.enter(service)
        return self.meter.watch(service) if self.options.mode != "off" else None

    def _is_ready(self, service: Service) -> None:
        if self.options.mode != "off":
            # Those that left the service's first process before that was watched.
            for pid in service.family().keys() - {service.pid}:
                self.meter.follow(service, pid)

    def _ended(self, service: Service) -> None:
        self.roster.leave(service)
        self._deaths.stopped(service)
        if self.options.mode != "off":
            self.meter.unwatch(service)

    def pytest_report_header(self) -> str:
        python = self.options.python or SYSTEM_PYTHON
        return terminal.header_line(self.options, f"eBPF through BCC of {python}")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Runs what is measured once with each toolchain, where there are several."""
        marked = any(metafunc.definition.iter_markers(MARKER))
        if len(self.toolchains) > 1 and (marked or "netpoll" in metafunc.fixturenames):
            if TOOLCHAIN not in metafunc.fixturenames:
                # It may still ask for go_service, by request.getfixturevalue.
                metafunc.fixturenames.append(TOOLCHAIN)
            metafunc.parametrize(
                TOOLCHAIN, list(self.toolchains), indirect=True, scope="session", ids=list(self.toolchains)
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._resolve_limits(items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # Again, for the markers that conftest.py files gave to tests meanwhile.
        self._resolve_limits(session.items)
        if self.options.mode == "off" or self._measures_nothing:
            return
        if any(LIMITS in item.stash or "netpoll" in _fixtures(item) for item in session.items):
            # It compiles while the services are being built.
            self.meter.start()

    def _resolve_limits(self, items: list[pytest.Item]) -> None:
        try:
            for item in items:
                found = list(item.iter_markers_with_node(MARKER))
                if found:
                    marks = [(mark.args, mark.kwargs) for _, mark in found]
                    levels = [node for node, _ in found]
                    item.stash[LIMITS] = marker.resolve(marks, item.nodeid, self.options.limits, levels)
        except UsageError as error:
            output = getattr(self._config, "workeroutput", None)
            if output is None:
                raise pytest.UsageError(str(error)) from None
            # Raised in a pytest-xdist worker it would be an internal error: the controller says it.
            output["netpoll_usage_error"] = str(error)
            items.clear()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A pytest-xdist worker has ended; one that crashed left no output."""
        complaint = getattr(node, "workeroutput", {}).get("netpoll_usage_error")
        if complaint is not None:
            raise pytest.UsageError(complaint)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        __tracebackhide__ = True
        limits = item.stash.get(LIMITS, None)
        if is_repeated(item):
            return (yield)
        # A test that is run again, as by pytest-rerunfailures, begins anew; its fixtures may have measured.
        item.stash[JUDGED] = item.stash[ENFORCED] = item.stash[SUBTEST] = None
        presence = self.roster.watch()
        if limits is None or self.options.mode == "off":
            return (yield from self._call_unmeasured(item, presence))
        trial = Trial(item, limits, self.meter, self.roster)
        runs = self._runs(limits)
        comparison = None
        try:
            with trial.window():
                result = yield
            trial.again(runs - 1)
            comparison = self._compare(item, trial, limits, runs)
        finally:
            # Also of a test that fails by itself: its numbers may tell why.
            measurements = median_of(trial.windows[:runs])
            requests = trial.requests_per_second(runs)
            deaths = self._dead(presence, [s for s in presence.all if s.name in limits.services], item)
            verdict = self._judge(
                item, Judged(limits, measurements, Verdict("passed"), [], comparison, requests), deaths
            )
        enforce(item, verdict, self.options)
        return result

    def _call_unmeasured(self, item: pytest.Item, presence: Presence) -> Generator[None, object, object]:
        """A test without limits: it fails all the same if one of its services dies."""
        __tracebackhide__ = True
        verdict = Verdict("passed")
        try:
            result = yield
        finally:
            deaths = self._dead(presence, [], item, again=False)
            if deaths:
                verdict = judge([], Limits(), "off", deaths=deaths)
                item.stash[JUDGED] = Judged(Limits(), [], verdict, [])
        enforce(item, verdict, self.options)
        return result

    def _dead(
        self, presence: Presence, named: list[Service], item: pytest.Item, again: bool = True
    ) -> list[Death]:
        """Of the test's own services and those its marker names the dead ones, stopped since or not.

        again: also of those that an earlier test was told of.
        """
        own = list(dict.fromkeys([*self.roster.own(item), *presence.new, *named]))
        if not again:
            own = self._deaths.untold(own)
        before = [service for service in own if service in presence.dead]
        meanwhile = [service for service in own if service not in presence.dead]
        return [
            *self._deaths.take_stopped(),
            *self._deaths.tell(before, "before the test"),
            *self._deaths.tell(meanwhile, "during the test"),
        ]

    def _judge(self, item: pytest.Item, judged: Judged, deaths: Sequence[Death]) -> Verdict:
        __tracebackhide__ = True
        limits, measurements, mode = judged.limits, judged.measurements, self.options.mode
        # Even if a user's hook fails, what was measured is reported.
        running = [service.name for service in self.roster.running]
        verdict = settle(judge(measurements, limits, mode, (), running, deaths), judged.comparison, mode)
        item.stash[JUDGED] = judged._replace(verdict=verdict)
        for measurement in measurements:
            item.ihook.pytest_netpoll_measured(item=item, measurement=measurement)
        with plain_failures():
            further = extensions.breaches(item, measurements, limits)
            columns = extensions.columns(item, measurements)
        verdict = settle(judge(measurements, limits, mode, further, running, deaths), judged.comparison, mode)
        item.stash[JUDGED] = judged._replace(verdict=verdict, columns=columns)
        return verdict

    def _runs(self, limits: Limits) -> int:
        """Windows of a test. What is compared with from now on must not be a single lucky one."""
        return limits.runs if self.options.save is None else max(limits.runs, 1 + self.options.reruns)

    def _compare(self, item: pytest.Item, trial: Trial, limits: Limits, runs: int) -> Comparison | None:
        """Against the baseline. A time that got worse is measured again: it may be the machine's fault."""
        if self._baseline is None or trial.failed:
            return None
        rules = Rules(self.options.compare_fail, self.options.compare_latencies)
        comparison = compare(
            item.nodeid,
            samples_of(median_of(trial.windows), limits),
            self.environment,
            self._baseline,
            rules,
            limits.as_json(),
            limits.binds,
        )
        return confirmed(comparison, self.options.reruns, lambda: samples_of(trial.again(runs), limits))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # Only now it is known how the test ended: a unittest.TestCase raises nothing, an xfail may be one.
        enforced = item.stash.get(ENFORCED, None)
        if enforced is not None and call.excinfo is not None and call.excinfo.value is enforced.exception:
            settle_report(report, enforced)
        if report.failed:
            for service in self._services_behind(item):
                said = _said(service)
                if said:
                    report.sections.append((f"output of service {one_line(service.name)}", said))
        if call.when == "call":
            self._attach_record(item, call, report)
        elif call.when == "teardown":
            self._attach_late_windows(item, report)
        return report

    def _attach_record(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        judged = item.stash.get(JUDGED, None)
        enforced = item.stash.get(ENFORCED, None)
        error = call.excinfo.value if call.excinfo is not None else None
        if judged is None and report.failed:
            # Of a subtest, as long as the test runs; pytest fails the test only where it counts it.
            item.stash[SUBTEST] = error
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
        windows = item.stash.get(WINDOWS, None)
        if judged is None and windows is not None:
            judged = Judged(Limits(), [], Verdict("passed"), [])
        if judged is None:
            return
        own = None if ours else error or item.stash[SUBTEST]
        made = _record(item, judged, own, getattr(report, "wasxfail", None), windows or Windows())
        item.stash[WINDOWS] = Windows()
        # Travels with the report, also from a pytest-xdist worker to its controller, which has no
        # agent to ask.
        report.netpoll = made  # type: ignore[attr-defined]
        report.netpoll_environment = record.plain(self.meter.environment)  # type: ignore[attr-defined]
        properties = junit.properties(made)
        # The item's for the teardown's report, where --junitxml looks; a test that is run again has
        # those of its last run there.
        for kept in (report.user_properties, item.user_properties):
            kept[:] = [*(pair for pair in kept if not pair[0].startswith("netpoll.")), *properties]
        if made["outcome"] != "passed":
            section = terminal.failure_section(made, self._width())
            # In pytest's own words of the failure, where JUnit looks, too; a skip's have no room for it.
            add_section = getattr(report.longrepr, "addsection", None)
            if add_section is not None:
                add_section("netpoll", section, "-")
            else:
                report.sections.append(("netpoll", section))

    def _attach_late_windows(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Of fixtures that measure around the test: they close with its teardown."""
        windows = item.stash.get(WINDOWS, None)
        if windows is not None and windows.records():
            judged = Judged(Limits(), [], Verdict("passed"), [])
            report.netpoll_late = _record(item, judged, None, None, windows)  # type: ignore[attr-defined]

    def _services_behind(self, item: pytest.Item) -> list[Service]:
        """Those whose output may explain a failure."""
        used = self.roster.own(item)
        if not used and (LIMITS in item.stash or "go_service" in _fixtures(item)):
            return self.roster.running
        return used

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        late = getattr(report, "netpoll_late", None)
        if late is not None:
            self.reports.add_windows(late)
        made = getattr(report, "netpoll", None)
        # "rerun": pytest-rerunfailures runs it again, and what it comes to then is the test's result.
        if made is not None and getattr(report, "outcome", None) != "rerun":
            self.reports.records.append(made)
            self._workers_environment = getattr(report, "netpoll_environment", {})

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        made = getattr(report, "netpoll", None)
        if made is not None and made["outcome"] == "unmeasured" and report.failed:
            return "failed", "U", "UNMEASURED"
        return None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        records = self.reports.records
        table = terminal.summary_table(records, self._width(), self.environment)
        if table is not None:
            terminalreporter.section("netpoll")
            terminalreporter.write_line(table)
            if self.options.mode == "report":
                for line in terminal.gate_preview(records, self._width()):
                    terminalreporter.write_line(line)
        for title, table in tables.further_tables(records, self._width()):
            terminalreporter.section(title)
            terminalreporter.write_line(table)
        for line in self.reports.lines:
            terminalreporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # A pytest-xdist worker's records are its controller's to report.
        if not hasattr(self._config, "workerinput") and not self._measures_nothing:
            # Who has no terminal reporter asked for silence.
            self.reports.write(self.environment, say_written=self._has_terminal)
            if not self.reports.complete and session.exitstatus in (
                pytest.ExitCode.OK,
                pytest.ExitCode.NO_TESTS_COLLECTED,
            ):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            if not self._has_terminal:
                # Annotations are for whoever reads the output, not for pytest's own reporter.
                print(*self.reports.lines, sep="\n", end="\n" if self.reports.lines else "")

    @property
    def environment(self) -> dict[str, Any]:
        return self.reports.environment(self.meter.environment or self._workers_environment)

    @property
    def _measures_nothing(self) -> bool:
        return bool(self._config.option.collectonly or self._config.option.setuponly)

    @property
    def _has_terminal(self) -> bool:
        return bool(self._config.pluginmanager.hasplugin("terminalreporter"))

    def _width(self) -> int:
        if not self._has_terminal:
            return 80
        return max(60, self._config.get_terminal_writer().fullwidth)

    def pytest_unconfigure(self) -> None:
        for factory in self._factories:
            # The fixture's teardown has told of it; here only when pytest did not get there.
            with contextlib.suppress(NetpollError):
                factory.stop_all()
        self.meter.stop()


def _said(service: Service) -> str:
    """The end of a service's output, and before it its panic, where other goroutines' stacks hide that."""
    tail, panic = service.tail(), service.last_words()
    return cleaned(tail if panic in tail else f"{panic}\n[…]\n{tail}")


def _record(
    item: pytest.Item, judged: Judged, error: BaseException | None, xfail: str | None, windows: Windows
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
        comparison=judged.comparison,
        toolchain=_toolchain_of(item),
        requests_per_second=judged.requests_per_second,
        windows=windows.records(),
        windows_left_out=windows.left_out,
    )


def _toolchain_of(item: pytest.Item) -> str | None:
    """Which of several --netpoll-go the test runs with."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(TOOLCHAIN) if callspec is not None else None


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
