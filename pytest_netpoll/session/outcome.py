"""Failures and skips of this plugin, with a message and without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest

from pytest_netpoll import clean
from pytest_netpoll.errors import NetpollError, Reason, UsageError
from pytest_netpoll.meter.privilege import NEEDS_ROOT
from pytest_netpoll.model.verdict import Verdict
from pytest_netpoll.options import Config
from pytest_netpoll.report.cells import wrap_fix


class Enforced(NamedTuple):
    """Why the plugin ended a test. exception: as raised, to tell our failure from the test's own. lenient:
    raised in report mode only so that pytest.mark.xfail sees it; it isn't a failure. messages: the
    exception's, for each reason. asked: raised only because the test asked for an unmeasured number.
    """

    exception: BaseException
    verdict: Verdict
    lenient: bool = False
    messages: tuple[str, ...] = ()
    asked: bool = False


_COLUMNS = 80
_FIX = "  fix: "

ENFORCED = pytest.StashKey["Enforced | None"]()
# How to let pytest load BPF -> the first test that says it.
_TOLD = pytest.StashKey[dict[str, str]]()


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns the user's mistakes in options and markers into exit code 4."""
    try:
        yield
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Makes errors of services and measuring fail the test or fixture with their message, without a
    traceback.
    """
    __tracebackhide__ = True
    try:
        yield
    except NetpollError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def enforce(node: pytest.Item, verdict: Verdict, options: Config, where: str = "") -> None:
    """Ends the test as the verdict demands: an unmeasured test doesn't pass. In report mode only a dead
    service fails it. where: the window that the verdict is about; "" for the whole test.
    """
    outcome = verdict.gate or verdict.outcome
    if outcome == "passed":
        return
    skip = outcome == "unmeasured" and options.unmeasured == "skip"
    lenient = options.mode == "report" and not verdict.deaths and not skip
    if lenient and node.get_closest_marker("xfail") is None:
        return
    _end(node, verdict, skip, lenient, where)


def enforce_with(node: pytest.Item, window: Enforced, verdict: Verdict, options: Config) -> None:
    """Ends the test, which a window's limits have ended already, also as the verdict on its marker demands:
    all that is broken is listed at once.
    """
    __tracebackhide__ = True
    verdict = verdict.without_deaths_of(window.verdict)
    if not verdict.reasons and not verdict.breaches:
        raise window.exception
    both = verdict.joined_to(window.verdict)
    harmless = options.mode == "report" and not both.deaths
    skip = isinstance(window.exception, pytest.skip.Exception) and (
        harmless or (both.gate or both.outcome) == "unmeasured"
    )
    _end(node, both, skip, window.lenient and harmless, before=window.messages, about=verdict)


def settle_report(report: pytest.TestReport, enforced: Enforced) -> None:
    """Adjusts pytest's report on our exception after pytest.mark.xfail was applied: xfail expects a broken
    limit, not an unmeasured test, and report mode fails nothing.
    """
    unmeasured = (enforced.verdict.gate or enforced.verdict.outcome) == "unmeasured"
    xfailed = report.skipped and hasattr(report, "wasxfail")
    if xfailed and unmeasured:
        del report.wasxfail
        report.outcome = "failed"
    if enforced.lenient and report.failed:
        report.outcome, report.longrepr = "passed", None


def refuse(node: pytest.Item, verdict: Verdict, options: Config) -> None:
    """Fails (or skips, if configured) a test that asks for unmeasured numbers."""
    harmless = options.unmeasured == "skip" or options.mode == "report"
    before = node.stash.get(ENFORCED, None)
    if before is not None and not before.asked and not before.lenient:
        # A broken limit that hasn't ended the test is not forgotten.
        _end(node, verdict.joined_to(before.verdict), skip=False, before=before.messages, about=verdict)
    _end(node, verdict, skip=harmless and verdict.outcome == "unmeasured", asked=True)


def _end(
    node: pytest.Item,
    verdict: Verdict,
    skip: bool,
    lenient: bool = False,
    where: str = "",
    before: Sequence[str] = (),
    about: Verdict | None = None,
    asked: bool = False,
) -> None:
    """before: messages of an exception that this one replaces. about: the verdict for the other messages.
    asked: as in Enforced.
    """
    unmeasured = (verdict.gate or verdict.outcome) == "unmeasured"
    messages = _messages(about or verdict)
    if where:
        messages = [f"{where}, {message}" for message in messages]
        # The window's record has its breaches.
        verdict = replace(verdict, reasons=located(verdict.reasons, where), breaches=())
    messages = list(dict.fromkeys([*before, *messages]))
    reason = "\n".join(messages if skip else _with_each_fix_once(node, messages))
    text = clean.lines(f"unmeasured: {reason}" if unmeasured else reason)
    # pytest prints the reason of a skip on one line.
    text = text.replace("\n  fix: ", "; fix: ") if skip else _with_wrapped_fixes(text)
    exception = pytest.skip.Exception(text) if skip else pytest.fail.Exception(text, pytrace=False)
    node.stash[ENFORCED] = Enforced(exception, verdict, lenient, tuple(messages), asked)
    raise exception


def located(reasons: Iterable[Reason], where: str) -> tuple[Reason, ...]:
    """The reasons with the window that they are about; as they are for the whole test ("")."""
    if not where:
        return tuple(reasons)
    return tuple(Reason(f"{where}, {reason.what}", why=reason.why, fix=reason.fix) for reason in reasons)


def _messages(verdict: Verdict) -> list[str]:
    return verdict.messages or [str(b) for b in verdict.breaches] or ["regressed against its baseline"]


def _with_each_fix_once(node: pytest.Item, messages: Iterable[str]) -> list[str]:
    """How to let pytest load BPF is the same for all tests: only the first one says it."""
    told = node.config.stash.setdefault(_TOLD, {})
    found: list[str] = []
    here: set[str] = set()
    for message in messages:
        said, _, fix = message.partition(f"\n{_FIX}")
        if fix and NEEDS_ROOT in said:
            first = told.setdefault(fix, node.nodeid)
            message = message if first == node.nodeid else f"{said}\n{_FIX}as for {first}"
            message = said if fix in here else message
            here.add(fix)
        found.append(message)
    return found


def _with_wrapped_fixes(text: str) -> str:
    """pytest doesn't wrap messages. Headlines stay whole, because pytest's summary has the first one."""
    found: list[str] = []
    for line in text.splitlines():
        is_fix = line.startswith(_FIX)
        found += wrap_fix(line.removeprefix(_FIX), _COLUMNS, "  ") if is_fix else [line]
    return "\n".join(found)
