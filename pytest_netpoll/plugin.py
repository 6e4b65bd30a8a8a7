"""pytest's hooks and our fixtures: wiring only. What they do is in session/."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_netpoll import hookspecs
from pytest_netpoll.errors import UsageError
from pytest_netpoll.meter.privilege import SYSTEM_PYTHON
from pytest_netpoll.model import limits as marker
from pytest_netpoll.options import Config, add_options
from pytest_netpoll.report import terminal
from pytest_netpoll.report.html import document
from pytest_netpoll.session import judging, marked, records, summary, turns
from pytest_netpoll.session.fixtures import GoService, Netpoll
from pytest_netpoll.session.outcome import plain_failures, usage_errors
from pytest_netpoll.session.session import SESSION, Session


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
        turns.check(options)
        # Tolerances in the ini file may wait for a comparison; typed ones need one now.
        if options.compare is options.against is None and config.getoption("netpoll_compare_fail", None):
            raise UsageError(
                "--netpoll-compare-fail has nothing to compare with",
                fix="add --netpoll-against=REF or --netpoll-compare=NAME",
            )
        marker.resolve([], "", options.defaults)
    session = config.stash[SESSION] = Session(config, options)
    config.pluginmanager.register(session.progress, "netpoll-progress")
    config.pluginmanager.register(session.lifetimes, "netpoll-lifetimes")
    config.pluginmanager.register(Hooks(session), "netpoll-session")


@pytest.fixture(scope="session")
def netpoll_toolchain(request: pytest.FixtureRequest) -> str | None:
    """The Go toolchain that builds this test's services, such as "go1.21.13"; None without --netpoll-go.

    With several toolchains it is parametrised: everything that depends on go_service is made once for each.
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
    """Measures a window of a test: `with netpoll.measure("quiet", max_polls=50): …` fails the test if a limit
    is broken; `with netpoll.measure() as window: …` gives numbers such as `window[service].wakeups`.
    `netpoll.parked(service)` lists the goroutines that are parked on descriptors now.
    """
    session = request.config.stash[SESSION]
    return Netpoll(request.node, session.options, session.meter, session.roster, session.sides)


class Hooks:
    """Hooks that need the session; each delegates to the module that does the work."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def pytest_sessionstart(self) -> None:
        self._session.start()

    def pytest_report_header(self) -> list[str]:
        options, warning = self._session.options, self._session.meter.why_not_cached()
        line = terminal.header_line(options, f"eBPF through BCC of {options.python or SYSTEM_PYTHON}")
        return [line, *([] if warning is None else str(warning).splitlines())]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        marked.run_with_each(metafunc, self._session.toolchains)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        marked.resolve_limits(config, items, self._session.options)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # Again, for the markers that conftest.py files gave to tests meanwhile.
        marked.resolve_limits(session.config, session.items, self._session.options)
        if any(map(marked.is_measured, session.items)):
            self._session.start_agent(marked.limited(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        marked.raise_complaint(node)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        __tracebackhide__ = True
        return (yield from judging.around_call(self._session, item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        records.complete(self._session, item, call, report)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        records.collect(self._session, report)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return ("failed", "U", "UNMEASURED") if records.is_unmeasured(report) else None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        summary.show(self._session, terminalreporter)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        summary.write(self._session, session)

    def pytest_unconfigure(self) -> None:
        self._session.stop()


def _build_dir(request: pytest.FixtureRequest) -> Path:
    """Where built services are kept: in pytest's cache, so that running ones stay valid. Without that cache
    (`-p no:cacheprovider`, a read-only checkout) one of pytest's temporary directories: Go's own cache makes
    up for most of the difference.
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
