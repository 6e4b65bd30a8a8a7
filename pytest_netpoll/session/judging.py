"""Measures a test's call, compares it with the baseline, and judges it once."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

import pytest

from pytest_netpoll.model import confidence, ends
from pytest_netpoll.model.against import settled
from pytest_netpoll.model.comparison import Baseline, Comparison, Rules, compare, confirmed, settle
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.sample import samples_of
from pytest_netpoll.model.verdict import Death, Verdict, judge
from pytest_netpoll.options import ROUNDS, Config
from pytest_netpoll.service.service import Service
from pytest_netpoll.session import extensions, repeated
from pytest_netpoll.session.attribution import Presence
from pytest_netpoll.session.marked import resolve
from pytest_netpoll.session.outcome import ENFORCED, enforce, enforce_with, plain_failures
from pytest_netpoll.session.session import Session
from pytest_netpoll.session.trial import Trial, forget_skip, has_failed, is_repeated


class Judged(NamedTuple):
    """A test's measurements, before pytest knows how the test ended. columns: the columns of users' hooks for
    each measurement. head_round: in which round of --netpoll-against the last call was, if it was the head's;
    0 if not.
    """

    limits: Limits
    measurements: Sequence[Measurement]
    verdict: Verdict
    columns: Sequence[extensions.Columns] = ()
    comparison: Comparison | None = None
    requests_per_second: float | None = None
    head_round: int = 0

    @classmethod
    def without_limits(cls, deaths: Sequence[Death] = ()) -> Judged:
        """The judgement of a test without the marker: only a service's death fails it."""
        return cls(Limits(), [], judge([], Limits(), "off", deaths=deaths))


JUDGED = pytest.StashKey["Judged | None"]()
# What a subtest raised while its test still runs.
SUBTEST = pytest.StashKey["BaseException | None"]()
# Whether pytest's call of the test has not ended yet.
CALLING = pytest.StashKey[bool]()


def around_call(session: Session, item: pytest.Item) -> Generator[None, object, object]:
    """Measures pytest's call of the test, and ends the test as the verdict demands."""
    __tracebackhide__ = True
    if is_repeated(item):
        return (yield)
    item.stash[repeated.TAKEN] = repeated.NOTHING
    began = time.monotonic()
    item.stash[CALLING] = True
    try:
        result = yield from _around(session, item)
    except (Exception, pytest.fail.Exception) as error:
        if not isinstance(error, pytest.skip.Exception | pytest.xfail.Exception | pytest.exit.Exception):
            repeated.take(session, item, _seconds(item, began), failed=True)
        raise
    finally:
        item.stash[CALLING] = False
    judged = item.stash[JUDGED]
    failed = has_failed(item) or (judged is not None and judged.verdict.gate not in (None, "passed"))
    repeated.take(session, item, _seconds(item, began), failed)
    return result


def _seconds(item: pytest.Item, began: float) -> float:
    """How long one call of the test took. began: the first of them."""
    judged = item.stash[JUDGED]
    windows = [made.window_seconds for made in judged.measurements] if judged is not None else []
    return max(windows, default=time.monotonic() - began)


def _around(session: Session, item: pytest.Item) -> Generator[None, object, object]:
    __tracebackhide__ = True
    # A test that is rerun, as by pytest-rerunfailures, starts afresh; its fixtures may have measured.
    item.stash[JUDGED] = item.stash[ENFORCED] = item.stash[SUBTEST] = None
    presence = session.roster.watch()
    reported = {s.name for s in presence.dead} - {s.name for s in session.deaths.unreported(presence.dead)}
    with plain_failures():
        limits = resolve(item, session.options)  # again, for markers that its fixtures added
    try:
        if limits is None or session.options.mode == "off":
            result = yield from _around_unmeasured(session, item, presence)
        else:
            result = yield from _around_measured(session, item, presence, limits)
    except (pytest.fail.Exception, pytest.skip.Exception) as error:
        window, judged = item.stash[ENFORCED], item.stash[JUDGED]
        if judged is None:
            raise
        # The test may skip itself because its service is gone.
        deaths = [death for death in judged.verdict.deaths if death.service not in reported]
        if deaths:
            forget_skip(item)
        if window is None or window.exception is not error:
            if isinstance(error, pytest.skip.Exception) and deaths:
                enforce(item, judge([], Limits(), "off", deaths=deaths), session.options)
            raise
        if judged.verdict is window.verdict or (judged.verdict.gate or judged.verdict.outcome) == "passed":
            raise
    else:
        return result
    # netpoll.measure() ended the test, which has broken its marker's limits, too.
    enforce_with(item, window, judged.verdict, session.options)
    return None


def _end(item: pytest.Item, verdict: Verdict, options: Config) -> None:
    """Ends the test as the verdict on its call demands, and as netpoll.measure() did if that didn't end it:
    the test caught what that raised, or a thread or task of the test raised it.
    """
    # Not hidden from tracebacks: pytest remarks on one without any frame.
    window = item.stash[ENFORCED]
    missed = window is not None and not window.lenient and item.stash[SUBTEST] is not window.exception
    # A test may expect that a number which it asks for is unmeasured: no limit depends on that.
    if window is None or not missed or window.asked or has_failed(item):
        enforce(item, verdict, options)
        return
    window.exception.with_traceback(None).__suppress_context__ = True
    enforce_with(item, window, verdict, options)


def _around_measured(
    session: Session, item: pytest.Item, presence: Presence, limits: Limits
) -> Generator[None, object, object]:
    __tracebackhide__ = True
    trial = Trial(item, limits, session.meter, session.roster, session.sides)
    runs = _runs(session.options, limits)
    comparison = None
    try:
        with trial.window():
            result = yield
        if session.base is None:  # its rounds are runs, too
            trial.again(runs - 1)
        comparison = _compare(session, item, trial, limits, runs)
        trial.again(runs - len(trial.windows))
    finally:
        # For a failed test too: its numbers may show why.
        measurements = ends.dialers_first(ends.with_names(median_of(trial.windows[:runs])))
        requests = trial.requests_per_second(runs)
        deaths = _dead(session, presence, [s for s in presence.all if s.name in limits.services], item)
        running = [service.name for service in session.roster.running]
        fixtures = session.roster.fixtures()
        added = extensions.ask(item, measurements, limits)
        mode = session.options.mode
        verdict = settle(
            judge(measurements, limits, mode, added.breaches, running, deaths, fixtures), comparison, mode
        )
        # Even if a user's hook failed, what was measured is reported.
        head_round = trial.head_round if trial.two_sided else 0
        item.stash[JUDGED] = Judged(
            limits, measurements, verdict, added.columns, comparison, requests, head_round
        )
        if added.error is not None:
            raise added.error
    _end(item, verdict, session.options)
    return result


def _around_unmeasured(
    session: Session, item: pytest.Item, presence: Presence
) -> Generator[None, object, object]:
    """Runs a test without limits: it still fails if one of its services dies."""
    __tracebackhide__ = True
    try:
        result = yield
    finally:
        deaths = _dead(session, presence, [], item, again=False)
        judged = item.stash[JUDGED] = Judged.without_limits(deaths) if deaths else None
    _end(item, Verdict("passed") if judged is None else judged.verdict, session.options)
    return result


def _dead(
    session: Session, presence: Presence, named: list[Service], item: pytest.Item, again: bool = True
) -> list[Death]:
    """The deaths of the test's own services and of those its marker names, even if stopped since. again:
    include deaths that an earlier test reported.
    """
    own = list(dict.fromkeys([*session.roster.own(item), *presence.new, *named]))
    if not again:
        own = session.deaths.unreported(own)
    before = [service for service in own if service in presence.dead]
    meanwhile = [service for service in own if service not in presence.dead]
    return [
        *session.deaths.take_stopped(),
        *session.deaths.report(before, "before the test"),
        *session.deaths.report(meanwhile, "during the test"),
    ]


def _runs(options: Config, limits: Limits) -> int:
    """How many windows a test gets. A saved baseline must not rest on a single lucky window."""
    if options.save is None:
        return limits.runs
    rounds = options.rounds or (ROUNDS if options.against is not None else None)
    return max(limits.runs, 1 + options.reruns, 0 if rounds is None else rounds.least)


def _compare(
    session: Session, item: pytest.Item, trial: Trial, limits: Limits, runs: int
) -> Comparison | None:
    """Compares with the base, in turns, or with the baseline."""
    if session.base is not None and not trial.failed:
        return session.base.compare(item, trial, limits)
    if session.baseline is None or trial.failed:
        return None
    return _compare_with_baseline(session, item, session.baseline, trial, limits, runs)


def _compare_with_baseline(
    session: Session, item: pytest.Item, baseline: Baseline, trial: Trial, limits: Limits, runs: int
) -> Comparison:
    """Compares in as many rounds as --netpoll-rounds asks for. A time that regressed by a single number is
    remeasured, because the machine may be the cause.
    """
    options = session.options
    looks: tuple[int, ...] = (runs,)
    if options.rounds is not None:
        least, most = options.rounds
        saved = [len(sample.each) for sample in baseline.tests.get(item.nodeid, {}).values()]
        looks = confidence.looks(max(least, runs), max(most, runs), min(saved, default=0))

    def compared() -> Comparison:
        return compare(
            item.nodeid,
            samples_of(median_of(trial.windows), limits),
            session.environment,
            baseline,
            Rules(options.compare_fail, options.compare_latencies),
            limits.as_json(),
            limits.binds,
            len(looks),
        )

    def make(rounds: int) -> bool:
        trial.again(rounds - len(trial.windows))
        return not trial.failed

    found = settled(compared, looks, make)
    return confirmed(found, options.reruns, lambda: samples_of(trial.again(runs), limits))
