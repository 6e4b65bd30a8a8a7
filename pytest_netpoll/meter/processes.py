"""What a Meter measures, and whether its processes run Go and goroutines."""

from __future__ import annotations

import os
from typing import Protocol

from pytest_netpoll.gobinary.go_version import go_version_of_program
from pytest_netpoll.meter.messages import Measured, Process


class Watched(Protocol):
    """What a Meter needs to know about what it measures: a Service, or another group of processes."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def executable(self) -> str: ...
    @property
    def go_version(self) -> str | None: ...
    @property
    def gomaxprocs(self) -> int | None: ...
    @property
    def cpus(self) -> int | None: ...
    @property
    def stopped(self) -> bool: ...
    def check_alive(self, when: str) -> None: ...


def is_go(process: Process) -> bool:
    return _go_version(process) is not None


def runs_goroutines(process: Process) -> bool:
    """Whether it runs goroutines; also True for a program that can't be read, such as a deleted one."""
    return is_go(process) or process["calibration"]["layout"] is not None


def ended_program(process: Measured) -> str | None:
    """The path of a Go program that children ran that ended with all that only their memory held; None if
    there were none. One that can't be read, such as a container's or a deleted one, may have been Go's.
    """
    return next((path for path in process["ended"] if _may_be_go(path)), None)


def version(process: Process) -> str:
    """ "go1.26.6"."""
    return _go_version(process) or "not Go"


def _may_be_go(path: str) -> bool:
    return go_version_of_program(path) is not None or not os.access(path, os.R_OK)


def _go_version(process: Process) -> str | None:
    return go_version_of_program(process["executable"] or "")
