"""Detect spurious and late goroutine wakeups in Go services under test: the names for users to import."""

__version__ = "0.1.0"  # first: the modules below read it

from pytest_netpoll.errors import NetpollError, Reason, ServiceError, UnmeasuredError, UsageError
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.evidence import CpuQuota, Offender, ParkedGoroutine, SlowWakeup, TimelinePoint
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.verdict import Breach
from pytest_netpoll.service.service import Service
from pytest_netpoll.session.fixtures import GoService, MeasuredWindow, Netpoll

__all__ = [
    "Breach",
    "CpuQuota",
    "Frame",
    "GoService",
    "Limits",
    "MeasuredWindow",
    "Measurement",
    "Netpoll",
    "NetpollError",
    "Offender",
    "ParkedGoroutine",
    "Reason",
    "Service",
    "ServiceError",
    "SlowWakeup",
    "TimelinePoint",
    "UnmeasuredError",
    "UsageError",
]
