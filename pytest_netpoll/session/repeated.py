"""Calls a failed test once more, for a trace and for its services' own profiles from net/http/pprof.

A separate call, so that the measured one isn't slowed down.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

from pytest_netpoll.errors import NetpollError, Reason
from pytest_netpoll.meter import traced
from pytest_netpoll.meter.agent_client import START_DEADLINE
from pytest_netpoll.report import artifacts
from pytest_netpoll.report.artifacts import File
from pytest_netpoll.service.debug_endpoint import PATIENCE, Recording
from pytest_netpoll.service.service import Service
from pytest_netpoll.session.fixtures import WINDOWS, Windows
from pytest_netpoll.session.marked import LIMITS
from pytest_netpoll.session.outcome import ENFORCED
from pytest_netpoll.session.session import Session
from pytest_netpoll.session.trial import repeating

# Seconds: a call that takes longer is not repeated.
MOST_SECONDS = 60.0
# Added to the call's own seconds, so that its end is in the profiles.
_MARGIN = 0.5
# Seconds until the requests have arrived.
_HEAD_START = 0.1
_NO_TRACE = "no trace"
_NO_PROFILES = "no profiles from the service itself"


class Asked(NamedTuple):
    """traced: the services to trace, by process. pprof: the services to ask for profiles."""

    traced: Mapping[int, Service]
    pprof: Sequence[Service]

    @property
    def all(self) -> Sequence[Service]:
        return list(dict.fromkeys([*self.traced.values(), *self.pprof]))

    @property
    def lacking(self) -> str:
        """What is missing if the test isn't called again."""
        return " and ".join([_NO_TRACE] * bool(self.traced) + [_NO_PROFILES] * bool(self.pprof))


class Taken(NamedTuple):
    """notes: why other files are missing."""

    files: Sequence[File]
    notes: Sequence[Reason]


NOTHING = Taken((), ())
TAKEN = pytest.StashKey[Taken]()


def take(session: Session, item: pytest.Item, seconds: float, failed: bool) -> None:
    """Calls the test once more and puts the files in its stash. seconds: how long the first call took."""
    wanted = session.options.artifacts
    has_record = LIMITS in item.stash or WINDOWS in item.stash
    if wanted is None or session.options.mode == "off" or not has_record:
        return
    alarming = failed and item.get_closest_marker("xfail") is None
    if not (alarming or wanted.all_tests):
        return
    own = session.roster.own(item)
    # Without an agent nothing was measured, and the test already says why.
    roots = session.meter.roots if session.meter.environment else {}
    asked = Asked(
        {pid: service for pid, of in roots.items() for service in own if service is of and service.running},
        [service for service in own if service.serves_pprof],
    )
    if not asked.all:
        return
    why_not = _why_not(session, item, asked, seconds)
    item.stash[TAKEN] = Taken((), (why_not,)) if why_not is not None else _take(session, item, asked, seconds)


def _why_not(session: Session, item: pytest.Item, asked: Asked, seconds: float) -> Reason | None:
    for service in asked.all:
        if not service.running:
            return Reason(asked.lacking, why=f"{service.name} is no longer running")
    if session.roster.made_by(item):
        return Reason(
            asked.lacking,
            why="the test starts a service itself, so it can't be called again",
            fix="start it in a fixture",
        )
    if "subtests" in getattr(item, "fixturenames", ()):
        return Reason(asked.lacking, why="calling the test again would report its subtests twice")
    if seconds > MOST_SECONDS:
        return Reason(
            asked.lacking,
            why=f"the test took {seconds:.0f} s; only tests of up to {MOST_SECONDS:.0f} s are called again",
        )
    limit = _timeout(item)
    agents_start = START_DEADLINE if asked.traced else 0
    if limit is not None and session.lifetimes.elapsed + agents_start + 2 * (seconds + 2 * PATIENCE) > limit:
        return Reason(
            asked.lacking,
            why=f"the test's timeout of {limit:g} s leaves no time to call it again",
            fix="raise the timeout, or run without it",
        )
    return None


def _timeout(item: pytest.Item) -> float | None:
    """The test's limit from pytest-timeout, in seconds; None without one."""
    if not item.config.pluginmanager.hasplugin("timeout"):
        return None
    marker = item.get_closest_marker("timeout")
    given = getattr(item.config, "_env_timeout", None)
    if marker is not None:
        given = marker.args[0] if marker.args else marker.kwargs.get("timeout", given)
    return float(given) if isinstance(given, int | float) and given > 0 else None


def _take(session: Session, item: pytest.Item, asked: Asked, seconds: float) -> Taken:
    session.progress.say(f"calling {item.nodeid} again for {_wanted(asked)}")
    with _tracing(session, asked) as trace:
        recordings, notes = _recordings(asked.pprof, seconds)
        if recordings:
            time.sleep(_HEAD_START)
        _repeat(item)
    files: list[File] = []
    running = {service.name for service in asked.traced.values() if asked.traced.get(service.pid) is service}
    for recorded in trace.recorded:
        name = recorded.measurement.service
        if name not in running:
            notes.append(Reason(f"{_NO_TRACE} of {name}", why="the test restarts it"))
        elif recorded.trace is not None:
            files.append(artifacts.trace(item.nodeid, recorded.measurement, recorded.trace))
        elif recorded.measurement.unmeasured is not None:
            why = recorded.measurement.unmeasured
            notes.append(Reason(f"{_NO_TRACE} of {name}", why=why.what, fix=why.fix))
    for service, recording in recordings:
        taken, missing = recording.results()
        for view, content in taken:
            name = f"{artifacts.service_name(service.name)}.{view.file}"
            files.append(File(name, content, view.what, f"{view.command} {name}"))
        notes += _together(service.name, missing)
    return Taken(files, notes)


def _wanted(asked: Asked) -> str:
    return " and ".join(["a trace"] * bool(asked.traced) + ["its services' own profiles"] * bool(asked.pprof))


@contextlib.contextmanager
def _tracing(session: Session, asked: Asked) -> Iterator[traced.Recording]:
    """Records the block, if there is anything to record."""
    if not asked.traced:
        yield traced.Recording()
        return
    services = list(dict.fromkeys(asked.traced.values()))
    say = session.progress.say
    with traced.recording(session.options, session.symbolizer, services, asked.traced, say) as recording:
        yield recording


def _recordings(
    services: Sequence[Service], seconds: float
) -> tuple[list[tuple[Service, Recording]], list[Reason]]:
    """Starts recording profiles; also returns why some services can't be asked."""
    found: list[tuple[Service, Recording]] = []
    notes: list[Reason] = []
    for service in services:
        try:
            url = service.pprof_url
        except NetpollError as error:
            notes.append(error.reason)
            continue
        if url is not None:
            found.append((service, Recording(url, seconds + _MARGIN)))
    return found, notes


def _together(service: str, missing: Sequence[Reason]) -> list[Reason]:
    """One note if all are missing for the same reason, else one for each."""
    if len(missing) > 1 and len({reason.why for reason in missing}) == 1:
        return [Reason(f"{_NO_PROFILES}: {service}", why=missing[0].why, fix=missing[0].fix)]
    return [reason.about(service) for reason in missing]


def _repeat(item: pytest.Item) -> None:
    """Calls a test that was judged already. Failures and numbers of this call are ignored."""
    enforced, windows = item.stash.get(ENFORCED, None), item.stash.get(WINDOWS, None)
    reported = len(item.user_properties)
    # A unittest.TestCase raises nothing: pytest keeps its failures here.
    failures = list(getattr(item, "_excinfo", None) or ())
    item.stash[WINDOWS] = Windows()
    try:
        with repeating(item):
            item.ihook.pytest_runtest_call(item=item)
    except pytest.exit.Exception:
        raise
    except (Exception, pytest.fail.Exception, pytest.skip.Exception):
        pass  # it failed the first time, too
    finally:
        del item.user_properties[reported:]
        if hasattr(item, "_excinfo"):
            item._excinfo = failures or None
        item.stash[ENFORCED] = enforced
        if windows is None:
            del item.stash[WINDOWS]
        else:
            item.stash[WINDOWS] = windows
