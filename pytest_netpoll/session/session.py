"""Holds what lives as long as the pytest session: agent, services, baseline and reports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.comparison import Baseline
from pytest_netpoll.options import Config
from pytest_netpoll.report import artifacts, baseline_file
from pytest_netpoll.report.reports import Reports
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from pytest_netpoll.service.sides import Pairs, Sides
from pytest_netpoll.service.toolchains import Toolchain, resolve
from pytest_netpoll.session.attribution import Roster
from pytest_netpoll.session.deaths import Deaths
from pytest_netpoll.session.lifetimes import Lifetimes
from pytest_netpoll.session.outcome import usage_errors
from pytest_netpoll.session.progress import Progress
from pytest_netpoll.session.turns import Base


class Session:
    """The state of a session. sides, base: the other side for --netpoll-against; without it everything
    belongs to the head. workers_environment: from the agents of pytest-xdist's workers; the controller has
    none.
    """

    def __init__(self, config: pytest.Config, options: Config) -> None:
        self.config = config
        self.options = options
        self.progress = Progress(config)
        self.symbolizer = Symbolizer(config.rootpath)
        self.meter = Meter(options, self.symbolizer, self.progress.say)
        self.roster = Roster()
        self.deaths = Deaths()
        self.lifetimes = Lifetimes(self.roster, self.deaths)
        self.reports = Reports(options, config.rootpath)
        self.toolchains: dict[str, Toolchain] = {}
        self.baseline: Baseline | None = None
        self.sides = Sides()
        self.base: Base | None = None
        self.workers_environment: dict[str, Any] = {}
        self._factories: list[ServiceFactory] = []

    def start(self) -> None:
        """Finds the toolchains and the baseline that the options name; pytest.UsageError if they don't exist.
        Runs only when the session starts: --help and --markers have to work whatever the ini file says.
        """
        with usage_errors():
            found = resolve(self.options.go, self.progress.say)
            self.toolchains = {toolchain.label: toolchain for toolchain in found}
            if self.options.artifacts is not None and self.measures and not self.is_worker:
                artifacts.require(self.options.artifacts.directory)
            if self.options.compare is not None and self.measures:
                self.baseline = self._load_baseline(self.options.compare)
            if self.options.against is not None and self.measures:
                self.base = Base(self.options, self.config.rootpath, self.progress.say)

    def stop(self) -> None:
        for factory in self._factories:
            # The fixture's teardown reports it; this is for when pytest didn't get there.
            with contextlib.suppress(NetpollError):
                factory.stop_all()
        self.meter.stop()
        if self.base is not None:
            self.base.worktree.remove()

    def make_factory(self, build_dir: Path, toolchain: str | None = None) -> ServiceFactory | Pairs:
        go = self.toolchains[toolchain].tool if toolchain is not None else None
        factory = ServiceFactory(
            rootdir=self.config.rootpath,
            cache_dir=build_dir,
            on_spawn=self._spawned,
            on_exit=self._ended,
            on_ready=self._is_ready,
            taken=self.roster.taken,
            say=self.progress.say,
            go=go,
            new=Service if self.base is None else self.sides.new,
        )
        self._factories.append(factory)
        if self.base is None:
            return factory
        # The base's services have no owner: they are measured in place of the head's.
        base = ServiceFactory(
            rootdir=self.config.rootpath,
            cache_dir=build_dir,
            on_spawn=self.meter.watch,
            on_exit=self.meter.unwatch,
            on_ready=self._is_ready,
            say=self.progress.say,
            go=go,
            builder=self.base.worktree,
        )
        self._factories.append(base)
        return Pairs(factory, base, self.sides, str(self.base.revision))

    def start_agent(self, limited: Collection[str]) -> None:
        """Call if tests will be measured: the agent compiles while the services are built. limited: the
        metrics that any test limits.
        """
        if self.measures:
            self.meter.start(limited)

    @property
    def environment(self) -> dict[str, Any]:
        return self.reports.environment(self.meter.environment or self.workers_environment)

    @property
    def measures(self) -> bool:
        return self.options.mode != "off" and self.runs_tests

    @property
    def runs_tests(self) -> bool:
        return not (self.config.option.collectonly or self.config.option.setuponly)

    @property
    def is_worker(self) -> bool:
        """Whether this is one of pytest-xdist's workers, which report to their controller."""
        return hasattr(self.config, "workerinput")

    @property
    def has_terminal(self) -> bool:
        """Whether pytest has a terminal reporter; without one the user asked for silence."""
        return bool(self.config.pluginmanager.hasplugin("terminalreporter"))

    @property
    def width(self) -> int:
        return max(60, self.config.get_terminal_writer().fullwidth) if self.has_terminal else 80

    def _load_baseline(self, name: str) -> Baseline:
        try:
            return baseline_file.load(self.config.rootpath, name)
        except NetpollError as error:
            missing = not baseline_file.path_of(self.config.rootpath, name).exists()
            if missing and self.options.save == name:
                return Baseline(name)  # this run creates it
            raise UsageError(error.what, why=error.why, fix=error.fix) from None

    def _spawned(self, service: Service) -> Callable[[], None] | None:
        self.roster.enter(service)
        return self.meter.watch(service) if self.options.mode != "off" else None

    def _is_ready(self, service: Service) -> None:
        if self.options.mode != "off":
            # The processes that left the service's first process before it was watched.
            for pid in service.family().keys() - {service.pid}:
                self.meter.follow(service, pid)

    def _ended(self, service: Service) -> None:
        self.roster.leave(service)
        self.deaths.stopped(service)
        if self.options.mode != "off":
            self.meter.unwatch(service)


SESSION = pytest.StashKey[Session]()
