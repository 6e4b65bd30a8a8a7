"""Makes a test's record once pytest knows how the test ended, and attaches it to pytest's report. This also
carries it from a pytest-xdist worker to the controller.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_netpoll.clean import lines as cleaned
from pytest_netpoll.clean import one_line
from pytest_netpoll.report import artifacts, cells, junit, record, recording, terminal, wording
from pytest_netpoll.service.service import Service
from pytest_netpoll.session import repeated
from pytest_netpoll.session.fixtures import WINDOWS, Windows
from pytest_netpoll.session.judging import CALLING, JUDGED, SUBTEST, Judged
from pytest_netpoll.session.marked import LIMITS, fixtures_of, toolchain_of
from pytest_netpoll.session.outcome import ENFORCED, settle_report
from pytest_netpoll.session.session import Session

# Whether the test skipped itself, or called pytest.xfail().
STOPPED = pytest.StashKey[bool]()


def complete(
    session: Session, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    """Call with each of pytest's reports: adds the outcome and the record."""
    # Only now do we know how the test ended: a unittest.TestCase raises nothing, and it may be an xfail.
    enforced = item.stash.get(ENFORCED, None)
    if enforced is not None and call.excinfo is not None and call.excinfo.value is enforced.exception:
        settle_report(report, enforced)
        crash = getattr(report.longrepr, "reprcrash", None)
        if crash is not None:
            # For --tb=line and for other plugins: not the line of this plugin that raised it.
            crash.path, crash.lineno = _place(item)
    if report.failed:
        for service in _services_behind(session, item):
            said = _said(service)
            if said:
                report.sections.append((f"output of service {one_line(service.name)}", said))
    if call.when == "call":
        _attach_record(session, item, call, report)
    elif call.when == "teardown":
        _attach_late_windows(session, item, call, report)


def collect(session: Session, report: pytest.TestReport) -> None:
    """Collects what a report carries, here or in the controller of pytest-xdist's workers."""
    if report.when == "setup" and getattr(report, "rerun", None):
        # pytest-rerunfailures counts there how often it ran the test before.
        session.reports.forget(report.nodeid)
    late = getattr(report, "netpoll_late", None)
    if late is not None:
        session.reports.add_windows(late)
    made = getattr(report, "netpoll", None)
    packed = getattr(report, "netpoll_artifacts", None)
    if packed is not None and not session.is_worker:
        del report.netpoll_artifacts  # pytest keeps the report
        if getattr(report, "outcome", None) != "rerun":
            session.reports.write_artifacts(packed)
    # "rerun": pytest-rerunfailures runs it again, and the last run is the test's result.
    if made is not None and getattr(report, "outcome", None) != "rerun":
        session.reports.records.append(made)
        session.workers_environment = getattr(report, "netpoll_environment", {})


def is_unmeasured(report: pytest.TestReport) -> bool:
    """Whether the test failed only because it is unmeasured."""
    made = getattr(report, "netpoll", None)
    return made is not None and made["outcome"] == "unmeasured" and report.failed


def _attach_record(
    session: Session, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    judged = item.stash.get(JUDGED, None)
    enforced = item.stash.get(ENFORCED, None)
    error = call.excinfo.value if call.excinfo is not None else None
    subtest = item.stash.get(CALLING, False)
    if subtest and report.failed:
        # pytest fails the test only if it counts that.
        item.stash[SUBTEST] = error
    ours = enforced is not None and error is enforced.exception
    if ours and report.skipped and not hasattr(report, "wasxfail"):
        # Not the line of this plugin that raised it.
        report.longrepr = (*_place(item), str(error))
    elif isinstance(error, pytest.skip.Exception | pytest.xfail.Exception):
        item.stash[STOPPED] = not subtest  # the test stopped half-way on its own
        return
    item.stash[STOPPED] = False
    windows = item.stash.get(WINDOWS, None)
    own = error or item.stash[SUBTEST]
    if enforced is not None and own is enforced.exception:
        judged = (judged or Judged.without_limits())._replace(verdict=enforced.verdict)
        own = None
    elif judged is None and windows is not None:
        judged = Judged.without_limits()
    if judged is None:
        return
    made = _record(item, judged, own, getattr(report, "wasxfail", None), windows or Windows())
    if subtest:  # the test's record will have all of it
        _explain(session, report, made, ours)
        return
    item.stash[WINDOWS] = Windows(windows.closed if windows is not None else 0)
    _keep_artifacts(session, item, made, report)
    # The environment, too: a controller has no agent.
    report.netpoll = made  # type: ignore[attr-defined]
    report.netpoll_environment = record.plain(session.meter.environment)  # type: ignore[attr-defined]
    properties = junit.properties(made)
    # On the item for the teardown's report, where --junitxml looks; a rerun test has those of its last run
    # there.
    for kept in (report.user_properties, item.user_properties):
        kept[:] = [*(pair for pair in kept if not pair[0].startswith("netpoll.")), *properties]
    _explain(session, report, made, ours, 0 if ours else judged.head_round)


def _place(item: pytest.Item) -> tuple[str, int]:
    """The file and the line, from 1, of the test."""
    path, line, _ = item.location
    return str(item.config.rootpath / path), (line or 0) + 1


def _explain(
    session: Session, report: pytest.TestReport, made: record.TestRecord, ours: bool, head_round: int = 0
) -> None:
    """Adds to pytest's report why the test didn't pass. ours: whether pytest shows our message above it.
    head_round: as in Judged, if the test itself failed.
    """
    if made["outcome"] == "passed":
        return
    # Added to pytest's text of the failure, which JUnit shows, too; a skip has no such text.
    add_section = getattr(report.longrepr, "addsection", None)
    full = session.options.html or session.options.json
    section = terminal.failure_section(made, session.width, ours and report.failed, full)
    if report.failed and head_round and session.base is not None:
        where = (
            f"The call that failed was on the head, not on {session.base.revision}, in round {head_round}."
        )
        section = "\n".join(filter(None, [*cells.wrap(where, session.width), section]))
    if section and add_section is not None:
        add_section("netpoll", section, "-")
    elif section:
        report.sections.append(("netpoll", section))


def _keep_artifacts(
    session: Session, item: pytest.Item, made: record.TestRecord, report: pytest.TestReport
) -> None:
    """Adds the artifacts to the record; pytest's report carries them to the process that writes reports."""
    wanted = session.options.artifacts
    if wanted is None or not (wanted.all_tests or wording.alarming(made)):
        return
    taken = item.stash.get(repeated.TAKEN, repeated.NOTHING)
    kept = [*artifacts.profiles(made, session.symbolizer.source_of), *taken.files]
    for service in _services_behind(session, item):
        printed = service.log
        if printed:
            kept.append(artifacts.log(service.name, printed))
    directory = wanted.directory / artifacts.directory_name(made["nodeid"])
    made["artifacts"] = record.plain(artifacts.record_of(directory, kept, taken.notes))
    if kept:
        report.netpoll_artifacts = artifacts.packed(made["nodeid"], kept)  # type: ignore[attr-defined]


def _attach_late_windows(
    session: Session, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    """Adds windows of fixtures that measure around the test; they close at teardown."""
    windows, enforced = item.stash.get(WINDOWS, None), item.stash.get(ENFORCED, None)
    if windows is not None:
        del item.stash[WINDOWS]  # a rerun counts them anew
    error = call.excinfo.value if call.excinfo is not None else None
    # Errors of several fixtures are grouped.
    raised = (error, *getattr(error, "exceptions", ()))
    ours = enforced is not None and enforced.exception in raised
    if windows is None or not windows.records() or (item.stash.get(STOPPED, False) and not ours):
        return
    judged = Judged.without_limits()
    if enforced is not None and ours:
        judged = judged._replace(verdict=enforced.verdict)
    late = _record(item, judged, None, None, windows)
    report.netpoll_late = late  # type: ignore[attr-defined]
    if ours:
        _explain(session, report, late, ours)


def _record(
    item: pytest.Item, judged: Judged, error: BaseException | None, xfail: str | None, windows: Windows
) -> record.TestRecord:
    path, line, _ = item.location
    verdict = judged.verdict
    unmeasured = windows.unmeasured()
    if unmeasured and error is None and verdict.outcome == "passed" and verdict.gate in (None, "passed"):
        # Report mode went on; elsewhere the window ended the test.
        verdict = replace(verdict, outcome="unmeasured", reasons=tuple(unmeasured))
    return recording.build(
        nodeid=item.nodeid,
        location=(path, (line or 0) + 1),
        verdict=verdict,
        limits=judged.limits,
        measurements=judged.measurements,
        columns=judged.columns,
        window_seconds=max((m.window_seconds for m in judged.measurements), default=0.0),
        error=None if error is None else f"{type(error).__name__}: {error}",
        xfail=xfail,
        comparison=judged.comparison,
        toolchain=toolchain_of(item),
        requests_per_second=judged.requests_per_second,
        windows=windows.records(),
        windows_left_out=windows.left_out,
    )


def _services_behind(session: Session, item: pytest.Item) -> list[Service]:
    """The services whose output may explain a failure."""
    used = session.roster.own(item)
    if not used and (LIMITS in item.stash or "go_service" in fixtures_of(item)):
        return session.roster.running
    return used


def _said(service: Service) -> str:
    """The end of a service's output, preceded by its panic if other goroutines' stacks hide that."""
    tail, panic = service.tail(), service.last_words()
    return cleaned(tail if panic in tail else f"{panic}\n[…]\n{tail}")
