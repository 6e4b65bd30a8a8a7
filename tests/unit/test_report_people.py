"""The reports for people: terminal, step summary, annotations."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_netpoll.errors import NetpollError, Reason, UnmeasuredError
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS, METRICS
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import Death, judge
from pytest_netpoll.options import Config
from pytest_netpoll.report import (
    evidence_entries,
    evidence_text,
    github,
    record,
    recording,
    terminal,
    wording,
)
from pytest_netpoll.report.cells import layout, shorten
from tests import made_up
from tests.made_up import WATCHER, late, point

HEALTHY = {"wakeups": 200, "productive_wakeups": 200, "events": 200, "polls": 210}
WASTEFUL = {
    "wakeups": 1000,
    "productive_wakeups": 499,
    "spurious_wakeups": 500,
    "abandoned_wakeups": 1,
    "stale_retries": 7,
    "events": 1000,
    "polls": 1200,
    "blocking_polls": 1000,
    "nonblocking_polls": 200,
}
ENVIRONMENT = {"kernel": "6.8.0", "bcc": "0.29.1", "python": "3.12.3"}


def measured(counts: Mapping[str, int], name: str = "server", **more: Any) -> Measurement:
    counters = {**dict.fromkeys(COUNTERS, 0), **counts}
    snapshot = Snapshot(counters, {bucket_of(10_000): 200}, 10_000, 340_000_000, 12_000_000)
    return Measurement(name, 42, "/srv/server", "go1.26.6", 1.0, snapshot, **more)


def offender(count: int = 499, frames: int = 1, **more: Any) -> Offender:
    stack = tuple(replace(WATCHER, line=33 + i) for i in range(frames))
    return made_up.offender(
        count, **{"share": count / 500, "stack": stack, "cause": "registered twice", **more}
    )


def built(
    *measurements: Measurement,
    nodeid: str = "tests/test_echo.py::test_echo",
    error: str | None = None,
    mode: Any = "gate",
    **limits: object,
) -> record.TestRecord:
    demanded = resolve([((), limits)], nodeid)
    verdict = judge(measurements, demanded, mode)
    return recording.build(nodeid, ("tests/test_echo.py", 7), verdict, demanded, measurements, 1.0, error)


def passed(nodeid: str = "tests/test_echo.py::test_ok", name: str = "server") -> record.TestRecord:
    return built(measured(HEALTHY, name), nodeid=nodeid, max_spurious=0.05)


def wasteful(*offenders: Offender, **changes: Any) -> record.TestRecord:
    return built(measured(WASTEFUL, offenders=offenders), **{"max_spurious": 0.05, **changes})


def gone(nodeid: str = "tests/test_echo.py::test_gone") -> record.TestRecord:
    reason = UnmeasuredError("eBPF needs root", why="pytest is not root", fix="sudo -v").reason
    return built(replace(measured({}), unmeasured=reason), nodeid=nodeid, max_spurious=0.05)


def cells(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def table(*records: record.TestRecord, width: int = 80) -> str:
    text = terminal.summary_table(records, width, ENVIRONMENT)
    assert text is not None
    assert all(cells(line) <= width for line in text.splitlines())
    return text


def test_the_header_announces_the_mode() -> None:
    config = Config.default()
    assert terminal.header_line(config, "eBPF through BCC") == (
        "netpoll: gate, unmeasured tests fail; eBPF through BCC"
    )
    assert terminal.header_line(replace(config, mode="off"), "eBPF through BCC") == "netpoll: off"
    skipping = replace(config, mode="report", unmeasured="skip")
    assert terminal.header_line(skipping) == "netpoll: report, unmeasured tests are skipped"


def test_without_records_there_is_no_table() -> None:
    assert terminal.summary_table([], 80) is None


def test_the_table_shows_the_main_numbers_with_the_bad_tests_first() -> None:
    text = table(passed(), gone(), wasteful())
    rows = text.splitlines()
    assert rows[0].split() == ["test", "wakeups", "spurious", "p99", "polls/ev", "CPU", "verdict"]
    assert re.match(r"\S*test_echo +1,000 +50.1 % +10.0 µs +1.20 +0.34 s +FAILED$", rows[2])
    assert re.match(r"\S*test_gone +– +– +– +– +– +unmeasured$", rows[3])  # noqa: RUF001
    assert re.match(r"\S*test_ok +200 +0.0 % .* passed$", rows[4])
    assert rows[5:] == ["", "kernel 6.8.0, bcc 0.29.1, go1.26.6"]


def test_numbers_that_are_not_exact_are_not_shown() -> None:
    text = table(built(measured({**HEALTHY, "lost": 3}), max_spurious=0.05))
    assert "unmeasured" in text
    assert "200" not in text


def test_several_services_each_have_a_row_and_there_is_a_column_for_them() -> None:
    both = built(
        measured(WASTEFUL, "front", offenders=(offender(),)), measured(HEALTHY, "back"), max_spurious=0.05
    )
    rows = table(both).splitlines()
    assert "service" in rows[0]
    assert re.search(r" front .* FAILED$", rows[2])
    assert re.search(r" back .* passed$", rows[3])
    assert "service" not in table(passed(), wasteful())


def test_a_test_without_services_has_a_row() -> None:
    assert re.search(r"test_echo .* unmeasured$", table(built(max_polls=1)), re.MULTILINE)
    assert re.search(r"test_echo .* passed$", table(built()), re.MULTILINE)


def test_a_broken_limit_that_report_mode_lets_pass_is_listed_above_the_passed_tests() -> None:
    rows = table(passed(), wasteful(mode="report")).splitlines()
    assert rows[2].endswith("would fail")
    assert rows[3].endswith("passed")


def test_the_table_of_thousands_of_tests_stays_short_and_names_every_bad_one() -> None:
    many = [passed(f"tests/test_many.py::test_many[{i}]") for i in range(1000)]
    text = table(*many[:500], wasteful(), *many[500:], gone())
    assert "test_echo" in text
    assert "test_gone" in text
    assert "test_many[39]" in text
    assert "test_many[40]" not in text
    assert "… and 960 more that passed" in text
    assert len(text.splitlines()) == 2 + 2 + 40 + 1 + 2


def test_thousands_of_bad_tests_do_not_flood_the_terminal() -> None:
    text = table(*(wasteful(nodeid=f"t.py::test[{i}]") for i in range(3000)))
    assert "… and 2,800 more that failed or were not measured" in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "nodeid",
    [
        "tests/integration/very/deep/down/in/the/tree/test_echo.py::TestEcho::test_echo",
        "tests/test_echo.py::test_echo_with_a_name_so_long_that_nobody_would_want_to_type_it_ever",
        "tests/test_echo.py::test_echo[" + "x" * 200 + "-last]",
        "tests/test_echo.py::test_echo[::1|a\\nb]",
        "tests/test_エコー.py::test_エコーサーバーは誰も無駄に起こさない[引数]",
        "doc/index.md",
        "",
    ],
)
def test_the_table_fits_whatever_a_test_is_called(nodeid: str, width: int) -> None:
    text = table(
        passed(nodeid), built(measured(WASTEFUL, "数" * 30), nodeid=nodeid, max_spurious=0), width=width
    )
    verdicts = {
        cells(line.partition(word)[0])
        for line in text.splitlines()
        for word in ("verdict", "FAILED", "passed")
        if word in line
    }
    assert len(verdicts) == 1  # in one column


@pytest.mark.parametrize(
    ("nodeid", "width", "short"),
    [
        ("a/test_x.py::test_x", 19, "a/test_x.py::test_x"),
        ("a/test_x.py::test_x", 18, "…test_x.py::test_x"),
        ("a/test_x.py::TestX::test_x", 7, "…test_x"),
        ("a/test_x.py::test_echo[a::b]", 16, "…test_echo[a::b]"),
        ("a/test_x.py::test_echo[first-second-third]", 16, "test_ech…-third]"),
        ("a/test_x.py", 7, "…t_x.py"),
        ("test\x1b[31m\n", 80, "test [31m"),
    ],
)
def test_shortening_a_nodeid_keeps_the_tests_name(nodeid: str, width: int, short: str) -> None:
    assert shorten(nodeid, width) == short


def test_a_failure_names_limit_numbers_and_go_line() -> None:
    text = terminal.failure_section(wasteful(offender(499, 2)), 100)
    assert text.splitlines() == [
        "server: spurious 50.1 % (500 of 999 wakeups) > max 5.0 %",
        "server (pid 42, go1.26.6):",
        "  499 of 500 (99.8 %) spurious wakeups (read on tcp 127.0.0.1:7777 ← 127.0.0.1:5012), parked at",
        "    server/fault_dup.go:33  main.(*watcher).run",
        "    server/fault_dup.go:34  main.(*watcher).run",
        "  wakeups  1,000  499 productive, 500 spurious, 1 abandoned, 7 stale retries",
        "server: NP101 second-reader at server/fault_dup.go:33: 499 of 999 wakeups found nothing to read or",
        "  write: another reader of the same socket had already consumed the data (the socket is registered",
        "  with epoll more than once). Typically a connection was duplicated (File, FileConn, an inherited",
        "  descriptor) and both ends are read.",
        "  fix: read from one goroutine only, and close the duplicate.",
    ]


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        ({"max_spurious_wakeups": 0}, "wakeups"),
        ({"max_polls_per_event": 0}, "events polls"),
        ({"max_latency_p999": "1ns"}, "latency CPU"),
        ({"max_polls_per_second": 0}, "events polls"),
        ({"max_cpu_seconds": 0}, "CPU"),
    ],
)
def test_a_broken_limit_shows_the_numbers_that_matter_for_it(limits: dict[str, Any], rows: str) -> None:
    made = built(measured(HEALTHY if "max_spurious_wakeups" not in limits else WASTEFUL), **limits)
    section = terminal.failure_section(made, 100)
    assert re.findall("^  ([a-zA-Z/ ]+?)  +[0-9]", section, re.MULTILINE) == rows.split(" ")


def test_a_place_that_explains_little_is_only_counted() -> None:
    few = offender(9, stack=(WORKER,), share=0.02)
    text = terminal.failure_section(wasteful(offender(490, share=0.98), few), 100)
    assert "main.worker" not in text
    assert "… 2 more lines; --netpoll-html=FILE shows all" in text


def test_a_broken_limit_of_a_hook_shows_all_numbers() -> None:
    made = built(measured(HEALTHY), max_polls=1)
    made["breaches"][0] = {**made["breaches"][0], "metric": "polls per wakeup"}
    section = terminal.failure_section(made, 100)
    assert all(f"\n  {row} " in section for row in ("wakeups", "events", "polls", "latency", "CPU"))


def test_each_service_with_a_broken_limit_shows_its_line() -> None:
    callers = [
        offender(9, offence="ready", share=0.5, stack=tuple(replace(WATCHER, line=n + i) for i in range(6)))
        for n in (100, 200)
    ]
    one = measured({**WASTEFUL, "ready_calls": 9}, "front", offenders=tuple(callers))
    other = measured(WASTEFUL, "back", offenders=(offender(),))
    made = built(one, other, max_ready_calls=0, max_spurious=0.05)
    lines = terminal.failure_section(made, 80).splitlines()
    assert len(lines) <= terminal.SECTION_LINES
    at = next(n for n, line in enumerate(lines) if line.startswith("back (pid"))
    assert "    server/fault_dup.go:33  main.(*watcher).run" in lines[at:]
    assert "    server/fault_dup.go:100  main.(*watcher).run" in lines[:at]
    # However many there are, the first ones are shown.
    many = built(*(measured(WASTEFUL, f"s{n}", offenders=(offender(),)) for n in range(9)), max_spurious=0.05)
    lines = terminal.failure_section(many, 80).splitlines()
    assert any(line.startswith("s0 (pid") for line in lines)


def test_offenders_are_shown_only_for_limits_they_explain() -> None:
    stale = offender(7, offence="stale", syscall="accept4", fd_type="tcp listener", peer=None)
    spurious = offender(499)
    section = terminal.failure_section
    assert "spurious wakeups (" not in section(wasteful(spurious, max_spurious="100%", max_polls=1), 80)
    text = section(wasteful(spurious, stale, max_spurious="100%", max_stale_retries=0), 120)
    assert "7 of 7 (100.0 %) stale retries (accept4 on tcp listener 127.0.0.1:7777), tried again" in text
    assert "parked" not in text
    assert "parked at" in section(wasteful(spurious, stale, max_spurious="100%", max_spurious_wakeups=0), 120)


def test_unclaimed_events_are_shown_without_a_stack() -> None:
    nobody = offender(3, offence="unclaimed", syscall=None, stack=())
    idle = measured({**HEALTHY, "unclaimed_events": 9}, offenders=(nobody,))
    text = terminal.failure_section(built(idle, max_unclaimed_events=0), 120)
    ends = "127.0.0.1:7777 ← 127.0.0.1:5012"
    assert f"\n  3 of 9 (33.3 %) unclaimed events (read on tcp {ends}), nobody waiting\n" in text


def test_outcomes_of_events_are_shown_by_direction_and_fit_the_terminal() -> None:
    """An event has up to two directions: without explanation the parts would seem to exceed the whole."""
    found = {"events": 101, "unclaimed_events": 87, "duplicate_events": 74, "parking_events": 2}
    text = terminal.failure_section(built(measured({**HEALTHY, **found}), max_events=1), 80)
    [first, second] = [line for line in text.splitlines() if "direction" in line or "parking" in line]
    assert first == "  events   101  directions (read, write): 87 unclaimed, 74 duplicate, 2 to"
    assert second.strip() == "parking goroutines"


def test_offenders_of_one_of_several_runs_are_marked_as_such() -> None:
    windows = [
        [measured({**WASTEFUL, "spurious_wakeups": n}, offenders=(offender(n - 2, share=(n - 2) / n),))]
        for n in (100, 200, 300, 400)
    ]
    text = terminal.failure_section(built(*median_of(windows), max_spurious=0.05), 120)
    assert "198 of 200 (99.0 %) spurious wakeups in one run (read on tcp" in text


def test_the_latest_wakeups_are_shown_for_a_latency_limit() -> None:
    stack = (Frame("main.reply", "server/main.go", 5),)
    wakeup = late(12_300_000, goroutine=18, direction="write", local="a", peer="b", stack=stack)
    slow = measured(HEALTHY, slowest=(wakeup,))
    text = terminal.failure_section(built(slow, max_latency_p99="1us"), 100)
    assert "12.3 ms to run (write on tcp a → b, goroutine 18), parked at\n    server/main.go:5" in text
    assert "parked" not in terminal.failure_section(built(slow, max_polls=1), 100)


def test_a_late_wakeup_shows_what_the_threads_did_meanwhile() -> None:
    points = [
        point(100.0 * (i + 1), threads=5, threads_running=i, run_delay_ns=i * 7_000_000) for i in range(3)
    ]
    slow = measured(HEALTHY, slowest=(late(9_000_000, at_ms=150.0),), timeline=tuple(points))
    text = terminal.failure_section(built(slow, max_latency_p99="1us"), 200)
    said = "sampled over 100.0 ms: 1 of 5 threads running, and threads waited 7.0 ms for a CPU), no stack"
    assert f"(read on tcp; {said}" in text
    untold = replace(slow, snapshot=replace(slow.snapshot, run_delay_ns=None))
    text = terminal.failure_section(built(untold, max_latency_p99="1us"), 200)
    assert "(read on tcp; 1 of 5 threads running), no stack" in text


def test_the_diagnosis_of_a_service_within_its_limits_is_left_to_the_reports() -> None:
    both = built(
        measured(WASTEFUL, "front", offenders=(offender(),)),
        measured(HEALTHY, "back"),
        max_polls=205,
        service="back",
    )
    assert len(both["diagnosis"]) == 1
    assert "front" not in terminal.failure_section(both, 80)


def test_a_failure_is_at_most_a_screenful_and_counts_what_it_left_out() -> None:
    deep = terminal.failure_section(wasteful(*(offender(100 - i, 20 + i) for i in range(9))), 80)
    assert len(deep.splitlines()) == terminal.SECTION_LINES
    assert "\n… 58 more lines; --netpoll-html=FILE shows all\nserver: NP101 second-reader at server/" in deep
    assert deep.endswith("close the duplicate.")  # the diagnosis is worth more than a third stack
    shallow = terminal.failure_section(wasteful(*(offender(100 - i, 1 + i) for i in range(9))), 80)
    assert shallow.count("parked") == terminal.MOST_OFFENDERS
    assert "… 45 more lines; --netpoll-html=FILE shows all\n" in shallow
    written = terminal.failure_section(
        wasteful(*(offender(100 - i, 20 + i) for i in range(9))), 80, False, "out.html"
    )
    assert "more lines; out.html shows all\n" in written
    limits: dict[str, Any] = {f"max_{name}": 0 for name in METRICS if METRICS[name].unit == "count"}
    services = [measured(WASTEFUL, f"s{i}") for i in range(20)]
    broad = terminal.failure_section(built(*services, **limits), 80)
    assert len(broad.splitlines()) <= terminal.SECTION_LINES


def test_however_many_limits_are_broken_the_line_that_explains_the_first_is_shown() -> None:
    counted = {name: 1_234_567 for name in COUNTERS if METRICS[name].row is not None and name != "lost"}
    busy = measured({**counted, **HEALTHY}, offenders=(offender(), offender(9, stack=(WORKER,))))
    for limits in ({}, {"max_polls": 1, "max_wakeups": 1, "max_productive_wakeups": 1, "max_io_calls": 1}):
        made = built(busy, max_spurious_wakeups=1, **limits)
        lines = terminal.failure_section(made, 80).splitlines()
        assert len(lines) <= terminal.SECTION_LINES
        assert "    server/fault_dup.go:33  main.(*watcher).run" in lines
        rows = {line.split("  ")[1] for line in lines if line.startswith("  ")}
        # Rows are dropped for it, but none about what is broken.
        assert {"wakeups", *(["polls", "I/O calls"] if limits else [])} <= rows
        assert "more lines; --netpoll-html=FILE shows all" in "\n".join(lines)


def test_entries_that_explain_less_never_displace_those_that_explain_more() -> None:
    counted = {name: 1_234_567 for name in COUNTERS if METRICS[name].row is not None and name != "lost"}
    long = offender(400, local="a " * 900, stack=(Frame("main.long", "server/long.go", 1),))
    busy = measured({**counted, **HEALTHY}, offenders=(offender(499), long, offender(1, stack=(WORKER,))))
    shown = terminal.failure_section(built(busy, max_spurious_wakeups=1, max_polls=1), 80)
    assert "main.worker" not in shown


def test_answers_do_not_lead_where_another_limit_is_broken_first() -> None:
    counts = {"io_calls": 210, "futile_calls": 0}
    woken = made_up.offender(200, offence="woken", syscall=None, stack=(WORKER,))
    slow = measured({**HEALTHY, **counts}, offenders=(woken,), slow_answers=(made_up.slow_answer(9_000_000),))
    made = built(slow, max_wakeups=1, max_polls=1)
    made["breaches"][1] = {**made["breaches"][1], "metric": "response_p99"}
    first, second = evidence_entries.explaining(made, made["services"][0])
    assert (first.stack[0]["function"], second.text[:15]) == ("main.worker", "response 9.0 ms")


def test_only_the_services_that_failed_are_described() -> None:
    both = built(
        measured(WASTEFUL, "front", offenders=(offender(),)), measured(HEALTHY, "back"), max_spurious=0.05
    )
    text = terminal.failure_section(both, 80)
    assert "front (pid" in text
    assert "back" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_stacks_fit_and_keep_the_ends_of_files_and_functions(width: int) -> None:
    frame = Frame("example.org/" + "x" * 90 + ".Run", "/src/" + "y" * 90 + "/main.go", 3)
    text = terminal.failure_section(wasteful(offender(stack=(frame,))), width)
    (line,) = [line for line in text.splitlines() if "main.go:3  " in line]
    assert len(line) <= width
    assert line.endswith("x.Run")


def test_missing_information_in_the_binary_is_no_obstacle() -> None:
    nowhere = offender(stack=(), syscall=None, fd_type=None, local=None, peer=None)
    text = terminal.failure_section(wasteful(nowhere), 120)
    assert "spurious wakeups (read on a descriptor), no stack" in text
    unknown = wasteful(offender())  # as in a file from another version
    unknown["services"][0]["offenders"][0]["stack"] = [{"function": None, "file": None, "line": None}]
    assert "    ?  ?" in terminal.failure_section(unknown, 120)
    assert github.annotations([wasteful(nowhere), unknown])


def test_an_unmeasured_test_shows_why_and_how_to_fix_it() -> None:
    lines = terminal.failure_section(gone(), 80).splitlines()
    assert lines[:2] == ["server: eBPF needs root: pytest is not root", "  fix: sudo -v"]
    assert "--netpoll-unmeasured=skip" in lines[2]


def test_a_test_whose_own_assertion_failed_gets_the_numbers_without_repeating_the_error() -> None:
    text = terminal.failure_section(built(measured(HEALTHY), error="assert 1 == 2"), 80)
    assert "assert" not in text
    assert re.search("^  wakeups +200$", text, re.MULTILINE)
    assert terminal.failure_section(built(error="assert 1 == 2"), 80) == ""
    assert re.search(r"test_echo .* FAILED$", table(built(measured(HEALTHY), error="x")), re.MULTILINE)


def test_names_cannot_control_the_terminal() -> None:
    evil = offender(peer="@\x1b[2J\n::error::x")
    reason = built(replace(measured({}), unmeasured="\x1b[2J"))
    assert "\x1b" not in terminal.failure_section(reason, 80)
    for text in (terminal.failure_section(wasteful(evil), 200), *github.annotations([wasteful(evil)])):
        assert "\x1b" not in text
        assert not any(line.startswith("::error::x") for line in text.splitlines())


def markdown_cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_step_summary_lists_the_bad_tests_then_all_in_a_table() -> None:
    text = github.markdown([passed(), wasteful(offender()), gone()], ENVIRONMENT)
    lines = text.splitlines()
    assert lines[2] == "❌ 1 failed, ❔ 1 unmeasured, ✅ 1 passed"
    assert lines[4:11] == [
        "- ❌ `tests/test_echo.py::test_echo`",
        "  - server: spurious 50.1 % (500 of 999 wakeups) > max 5.0 %",
        "  - 499 of 500 (99.8 %) spurious wakeups (read on tcp 127.0.0.1:7777 ← 127.0.0.1:5012), "
        "parked at server/fault_dup.go:33 main.(\\*watcher).run",
        "  - server: NP101 second-reader at server/fault_dup.go:33: 499 of 999 wakeups found nothing to read "
        "or write: another reader "
        "of the same socket had already consumed the data (the socket is registered with epoll more than "
        "once). Typically a connection was duplicated (File, FileConn, an inherited descriptor) and both "
        "ends are read. Fix: read from one goroutine only, and close the duplicate.",
        "- ❔ `tests/test_echo.py::test_gone`",
        "  - server: eBPF needs root: pytest is not root",
        "  - fix: sudo -v",
    ]
    rows = [markdown_cells(line) for line in lines if line.startswith("|")]
    assert [row[0] for row in rows] == ["", "---", "❌", "❔", "✅"]
    assert {len(row) for row in rows} == {3 + len(wording.COLUMNS)}
    assert rows[2][1:5] == ["`tests/test_echo.py::test_echo`", "`server`", "1,000", "50.1 %"]
    assert lines[-1] == "kernel 6.8.0, bcc 0.29.1, go1.26.6"


def test_the_step_summary_shows_the_spread_of_medians_that_are_judged() -> None:
    windows = [[measured({**HEALTHY, "polls": 210 + i, "wakeups": 200 + i})] for i in range(3)]
    text = github.markdown([built(*median_of(windows), max_polls_per_event=2, runs=3)], {})
    (row,) = [markdown_cells(line) for line in text.splitlines() if line.startswith("| ✅")]
    shown = dict(zip(wording.COLUMNS, row[3:], strict=True))
    assert shown["polls_per_event"] == "1.05 (1.05 to 1.06)"
    assert shown["wakeups"] == "201", "no limit is judged by it"
    assert "In brackets: the minimum and maximum over the runs" in text
    assert "In brackets" not in github.markdown([passed()], {})


@pytest.mark.parametrize("nodeid", ["t.py::t[a|b]", "t.py::t[||]", "t.py::t[\\|]", "t.py::t[`|``]", "`"])
def test_no_nodeid_breaks_the_markdown_table(nodeid: str) -> None:
    text = github.markdown([passed(nodeid, name="a|b")], {})
    (row,) = [markdown_cells(line) for line in text.splitlines() if line.startswith("| ✅")]
    assert len(row) == 3 + len(wording.COLUMNS)
    code = row[1].replace("\\|", "|")
    fence = re.match("`+", code)
    assert fence is not None
    assert code.endswith(fence[0])
    inside = code[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inside)  # which would end the code
    assert inside.strip() == nodeid


def test_markdown_escapes_text() -> None:
    odd = built(measured({}, unmeasured="<nil> *a* _b_ c_d [e](f)"))
    assert "server: \\<nil> \\*a\\* \\_b\\_ c_d \\[e\\](f)" in github.markdown([odd], {})


def test_a_summary_without_tests_has_a_note() -> None:
    assert "No test was measured." in github.markdown([], {})


def test_the_step_summary_of_thousands_of_tests_is_below_githubs_limit() -> None:
    text = github.markdown([wasteful(*[offender()] * 9, nodeid="x" * 500)] * 3000 + [passed()] * 3000, {})
    assert len(text.encode()) < 1 << 20
    assert "… and 2,800 more that failed or were not measured" in text
    assert "… and 2,960 more that passed" in text


def test_the_step_summary_is_appended_to_existing_content(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    github.append(path, "## ✅\udcff\n")
    assert path.read_text(encoding="utf-8") == "before\n## ✅\\udcff\n"
    with pytest.raises(NetpollError, match="step summary could not be written"):
        github.append(tmp_path / "no" / "such", "x")


def test_annotations_mark_failed_and_unmeasured_tests_on_one_line_each() -> None:
    first, second = github.annotations([passed(), gone("a.py::t[1,2]"), wasteful(offender())])
    assert first.startswith(
        "::error file=tests/test_echo.py,line=7,title=netpoll%3A tests/test_echo.py%3A%3Atest_echo::"
        "server: spurious 50.1 %25 (500 of 999 wakeups) > max 5.0 %25%0A499 of 500"
    )
    assert (
        "at server/fault_dup.go:33 main.(*watcher).run%0A"
        "server: NP101 second-reader at server/fault_dup.go:33: 499 of 999 wakeups found" in first
    )
    assert first.endswith("close the duplicate.")
    assert "title=netpoll%3A a.py%3A%3At[1%2C2]::server: eBPF needs root" in second
    assert "\n" not in first + second


def test_the_go_line_is_annotated_once_for_all_tests_with_the_diagnosis() -> None:
    def find(file: str) -> Path | None:
        return Path("src") / file if file.startswith("server/") else None

    library = Frame("net/http.serve", "net/http/server.go", 9)
    mine = Frame("main.run", "server/main.go", 33)
    tests = [wasteful(offender(stack=(library, mine)), nodeid=f"a.py::test_{i}") for i in range(3)]
    *_, third, in_go = github.annotations([*tests, passed()], Path("py"), find)
    assert third.startswith("::error file=py/tests/test_echo.py,line=7,")
    assert in_go.startswith(
        "::error file=src/server/main.go,line=33,title=netpoll%3A a.py%3A%3Atest_0 and 2 more tests::"
        "499 of 500 (99.8 %25) spurious wakeups"
    )
    assert "%0Aserver: NP101 second-reader at net/http/server.go:9: 499 of 999 wakeups found" in in_go
    assert "test_0 and 1 more test::" in github.annotations(tests[:2], Path("py"), find)[-1]
    assert len(github.annotations([wasteful(offender(stack=(library,)))], Path(), find)) == 1
    reported = wasteful(offender(stack=(mine,)), mode="report")
    first, second = github.annotations([reported], Path(), find, "warning")
    assert first.startswith("::warning file=tests/test_echo.py,line=7")
    assert second.startswith("::warning file=src/server/main.go,line=33")


def test_a_panic_is_annotated_where_it_was() -> None:
    words_ = (
        "panic: boom\n\ngoroutine 50 [running]:\npanic({0x1, 0x2})\n\t/go/src/runtime/panic.go:7 +0x1\n"
        "main.(*server).explode(0xc000)\n\t/repo/server/main.go:17 +0x3f\n"
        "created by main.main in goroutine 1\n\t/repo/server/main.go:9 +0x1"
    )
    demanded = resolve([((), {})], "t")
    verdict = judge(
        [], demanded, deaths=[Death("server", Reason("ended", why="exit status 2: panic: boom"), words_)]
    )
    dead = recording.build("t.py::t", ("t.py", 7), verdict, demanded, [], 1.0)
    first, second = github.annotations([dead], Path(), lambda file: Path(file).relative_to("/repo"))
    assert second.endswith("::server: panic: boom")
    assert "server: panic: boom at /repo/server/main.go:17 main.(*server).explode" in first
    assert second.startswith(
        "::error file=server/main.go,line=17,title=netpoll%3A t.py%3A%3At::server: panic: boom"
    )


def two_services() -> record.TestRecord:
    """Both break the limit, each at a line of its own."""
    front, back = (
        measured(WASTEFUL, name, offenders=(offender(stack=(Frame("main.run", f"{name}/main.go", line),)),))
        for name, line in (("front", 3), ("back", 4))
    )
    return built(front, back, max_spurious=0.05)


def test_each_broken_service_is_annotated_at_its_own_line() -> None:
    at_test, front, back = github.annotations([two_services()], Path(), Path)
    for name, line, annotation in (("front", 3, front), ("back", 4, back)):
        assert f" at {name}/main.go:{line} main.run%0A" in at_test
        assert annotation.startswith(f"::error file={name}/main.go,line={line},")
        assert f"::{name}: 499 of 500" in annotation
        assert f"%0A{name}: NP101" in annotation
        assert ", parked here%0A" in annotation
    assert "back" not in front
    assert "front" not in back
    summary = github.markdown([two_services()], ENVIRONMENT)
    assert "parked at front/main.go:3 main.run" in summary
    assert "parked at back/main.go:4 main.run" in summary


def test_two_services_with_one_line_share_an_annotation() -> None:
    one, other = (measured(WASTEFUL, name, offenders=(offender(),)) for name in ("a", "b"))
    _, go = github.annotations([built(one, other, max_spurious=0.05)], Path(), Path)
    assert "title=netpoll%3A tests/test_echo.py%3A%3Atest_echo::a: 499 of 500" in go
    assert "%0Ab: 499 of 500" in go


def test_a_late_wakeup_is_annotated_with_its_line() -> None:
    wakeup = late(12_300_000, goroutine=18, stack=(Frame("main.reply", "server/main.go", 5),))
    slow = built(measured(HEALTHY, slowest=(wakeup,)), max_latency_p99="1us")
    first, second = github.annotations([slow], Path(), Path)
    assert "parked at server/main.go:5 main.reply" in first
    assert second.startswith("::error file=server/main.go,line=5,")


def test_a_tests_own_error_is_annotated_before_what_else_was_found() -> None:
    (line,) = github.annotations([wasteful(error="assert 1 == 2")])
    assert "::assert 1 == 2%0Aserver: spurious" in line


def ready(stack: tuple[Frame, ...], woken: tuple[Frame, ...]) -> Offender:
    nothing = dict.fromkeys(("syscall", "fd_type", "local", "peer"))
    return made_up.offender(70, offence="ready", direction="", stack=stack, woken_stack=woken, **nothing)


WORKER = Frame("main.worker", "server/pool.go", 31)
DEADLINE = Frame("runtime.netpolldeadlineimpl", "runtime/netpoll.go", 656)


def test_a_ready_call_shows_the_waker_first_and_then_the_wakee() -> None:
    counts = {**HEALTHY, "ready_calls": 70}
    made = built(measured(counts, offenders=(ready((WATCHER,), (WORKER,)),)), max_ready_calls=5)
    shown = terminal.failure_section(made, 100)
    assert "  100.0 % of 70 ready calls, made at\n    server/fault_dup.go:33  main.(*watcher).run\n" in shown
    assert "\n  which woke the goroutine parked at server/pool.go:31 main.worker\n" in f"{shown}\n"


def test_a_ready_call_of_the_runtime_shows_the_wakee_first() -> None:
    counts = {**HEALTHY, "ready_calls": 70, "deadline_wakeups": 70}
    made = built(measured(counts, offenders=(ready((DEADLINE,), (WORKER,)),)), max_deadline_wakeups=5)
    shown = terminal.failure_section(made, 100)
    said = "  100.0 % of 70 ready calls, made by runtime.netpolldeadlineimpl, woke the goroutine parked at\n"
    assert f"{said}    server/pool.go:31  main.worker" in shown
    assert "which woke" not in shown
    [evidence] = evidence_entries.worst_places(made)
    assert evidence.stack[0]["file"] == "server/pool.go"


def test_a_woken_reader_is_shown_with_its_descriptor() -> None:
    woken = made_up.offender(200, offence="woken", syscall=None, fd_type="inotify", local=None, peer=None)
    shown = terminal.failure_section(built(measured(HEALTHY, offenders=(woken,)), max_wakeups=20), 100)
    assert "  100.0 % of 200 wakeups (read on inotify), parked at\n    server/fault_dup.go:33" in shown


PARKED = {"parked_goroutines": 40, "parked_growth": 30, "abandoned_descriptors": 9, "stuck_goroutines": 0}


def test_parked_goroutines_are_shown_for_the_limit_that_they_break() -> None:
    grown = made_up.offender(
        30, offence="parked", syscall=None, local=None, growth=30, abandoned=2, peers=("a:1", "b:2")
    )
    others = replace(grown, count=10, growth=0, abandoned=0, peers=(), stack=(WORKER,))
    kept = replace(grown, count=0, growth=0, abandoned=7, direction="", local="c:3", peers=(), stack=())
    m = measured({**HEALTHY, **PARKED}, offenders=(grown, kept, others))
    made = built(m, max_parked_growth=0)
    shown = terminal.failure_section(made, 160)
    assert "server: parked_growth 30 > max 0" in shown
    assert (
        "  30 goroutines (read on tcp, peers a:1, b:2): 2 whose peers have closed, 30 more than at the "
        "start, parked at\n    server/fault_dup.go:33  main.(*watcher).run"
    ) in shown
    assert "main.worker" not in shown
    assert "7 tcp descriptors" not in shown
    shown = terminal.failure_section(built(m, max_abandoned_descriptors=0), 160)
    assert "  7 tcp descriptors whose peers have closed, and nobody is parked on them (c:3)\n" in f"{shown}\n"
    assert "no stack" not in shown
    rested = replace(others, count=900, growth=1)
    made_too = built(measured({**HEALTHY, **PARKED}, offenders=(grown, rested)), max_parked_growth=0)
    assert [entry.text[:4] for entry in evidence_entries.explaining(made_too, made_too["services"][0])] == [
        "30 g",
        "900 ",
    ]
    few = measured({**HEALTHY, **PARKED}, offenders=(replace(grown, count=1), replace(kept, abandoned=1)))
    shown = terminal.failure_section(built(few, max_parked_goroutines=0, max_abandoned_descriptors=0), 160)
    assert "  1 goroutine (read on tcp" in shown
    assert "  1 tcp descriptor whose peer has closed, and nobody is parked on it (c:3)\n" in f"{shown}\n"
    assert [group["growth"] for group in made["services"][0]["parked"] or ()] == [30, 0, 0]
    assert built(measured(HEALTHY))["services"][0]["parked"] is None


HTTP = tuple(Frame(f"net/http.{name}", "net/http/server.go", 2200) for name in ("h", "serve", "run"))
CACHE, LEAK, TICKS = (
    Frame(f"main.{name}", "shop/main.go", n) for n, name in ((7, "get"), (8, "leak"), (9, "tick"))
)


def faulty() -> Measurement:
    """An HTTP service with a ticker, a mutex held during I/O and connections that leak."""
    notify = Frame("sync.runtime_notifyListNotifyAll", "runtime/sema.go", 600)
    parked = Frame("sync.runtime_notifyListWait", "runtime/sema.go", 617)
    tick, unlock = Frame("time.sendTime", "time/sleep.go", 178), Frame("main.get", "shop/main.go", 38)
    deferred = Frame("main.get.deferwrap1", "shop/main.go", 29)
    lock: dict[str, Any] = {"offence": "mutex", "lock": "sync.Mutex.Lock", "waited_ns": 9_000_000_000}
    calls = [
        replace(ready((notify, *HTTP), (parked, *HTTP)), count=50, share=0.5),
        replace(ready((tick,), (TICKS,)), count=20, share=0.2),
        replace(ready((deferred, unlock, *HTTP), (CACHE, *HTTP)), count=30, share=0.3, unlocks=True),
    ]
    held = made_up.offender(90, **lock, stack=(CACHE, *HTTP))
    left = made_up.offender(5, offence="parked", growth=5, peers=("a:1",), stack=(LEAK, *HTTP))
    network = made_up.offender(200, offence="woken", syscall=None, stack=HTTP)
    counts = {
        **HEALTHY,
        **PARKED,
        "ready_calls": 652,
        "polls": 900,
        "blocking_polls": 300,
        "timed_polls": 500,
    }
    m = measured(
        {**counts, "timeout_polls": 450, "break_polls": 50},
        offenders=(*calls, held, left, network),
        slow_answers=(made_up.slow_answer(88_000_000, stack=(CACHE, *HTTP)),),
    )
    return replace(m, snapshot=replace(m.snapshot, mutex_wait_ns=9_000_000_000, mutex_looked=True))


def with_limits(*metrics: str) -> record.TestRecord:
    """The faulty service with these limits broken, in this order."""
    return built(faulty(), **dict.fromkeys((f"max_{name}" for name in metrics), 0))


@pytest.mark.parametrize("width", [80, 120])
def test_each_broken_limit_shows_its_best_line_before_any_further_one(width: int) -> None:
    made = with_limits("polls_per_second", "mutex_wait_seconds", "parked_growth")
    about = {
        **made["breaches"][0],
        "metric": "response_p90",
        "text": "server: response_p90 88 ms > max 25 ms",
    }
    made["breaches"].insert(1, about)
    entries = evidence_entries.explaining(made, made["services"][0])
    assert [entry.stack[0]["line"] for entry in entries if entry.leads] == [9, 7, 7, 8, 38]
    assert len({(entry.kind, entry.text) for entry in entries}) == len(entries)
    shown = terminal.failure_section(made, width, after_reasons=True)
    places = re.findall(r"^    (shop/main.go:\d+|net/http\S+) +(\S+)", shown, re.MULTILINE)
    assert [function for _, function in places[:4]] == ["main.tick", "main.get", "main.get", "main.leak"]
    assert shown.index("main.leak") < shown.index("held until its Unlock") < shown.index("calls, made at")
    [worst] = evidence_entries.worst_places(made)
    assert worst.stack[0]["function"] == "main.tick"


def test_two_stacks_of_one_limit_leave_room_for_the_next_limit() -> None:
    made = with_limits("mutex_wait_seconds", "parked_growth")
    shown = terminal.failure_section(made, 80)
    assert "main.leak" in shown
    assert shown.index("main.leak") < shown.index("held until its Unlock")
    assert "deferwrap" not in shown
    assert "shop/main.go:38  main.get\n" in shown
    assert "9.00 s (added up over goroutines, in 1.00 s) > max" in shown


def test_where_only_libraries_woke_goroutines_they_are_shown_for_polls() -> None:
    m = faulty()
    library = replace(m, offenders=m.offenders[:1])
    shown = terminal.failure_section(built(library, max_polls=1), 100)
    assert "made by sync.runtime_notifyListNotifyAll, woke the goroutine parked" in shown
    assert "    net/http/server.go:2200" in shown
    # Where timers end few polls, whatever is the program's own leads.
    counters = {**m.snapshot.counters, "timeout_polls": 5, "break_polls": 0}
    other = built(replace(m, snapshot=replace(m.snapshot, counters=counters)), max_polls=1)
    first, *_ = evidence_entries.explaining(other, other["services"][0])
    assert first.stack[0]["line"] == 38


def test_report_mode_says_once_how_to_let_pytest_load_bpf() -> None:
    preview = terminal.gate_preview([gone(f"t.py::{name}") for name in ("one", "two")], 100)
    assert preview[2:] == [
        "  t.py::one: unmeasured",
        "    server: eBPF needs root: pytest is not root",
        "      fix: sudo -v",
        "  t.py::two: unmeasured",
        "    server: eBPF needs root: pytest is not root",
    ]


def test_report_mode_counts_the_reasons_that_it_does_not_list() -> None:
    limits: dict[str, Any] = {
        f"max_{name}": 0 for name in ("stale_retries", "events", "polls", "spurious_wakeups")
    }
    made = wasteful(mode="report", max_spurious="100%", **limits)
    assert terminal.gate_preview([made], 100)[-1] == "    … 1 more"
    limits.pop("max_polls")
    made = wasteful(mode="report", max_spurious="100%", **limits)
    assert "more" not in "\n".join(terminal.gate_preview([made], 100))


SHA = Frame("crypto/sha256.block", "crypto/sha256/sha256block_amd64.s", 734)
HASHER = Frame("main.rehash", "server/main.go", 22)


@pytest.mark.parametrize(
    ("stack", "is_cut_short"),
    [
        ((SHA,), True),
        ((WATCHER, Frame("crosscall2", "runtime/cgo/asm_amd64.s", 43)), True),
        ((WATCHER, Frame("?", "server+0x4c962c", 0)), True),
        ((Frame("?", "server+0x4c962c", 0),), True),
        ((WATCHER,), False),
        ((SHA, HASHER), False),
        ((Frame("runtime.mcall", "runtime/asm_amd64.s", 1),), False),
        # The program's symbols can't be read.
        ((Frame("?", "server+0x10", 0), Frame("?", "server+0x20", 0)), False),
        ((), False),
    ],
)
def test_a_stack_that_ends_in_c_or_assembly_is_explained_once(
    stack: tuple[Frame, ...], is_cut_short: bool
) -> None:
    burnt = [
        made_up.offender(count, offence="cpu", share=0.5, stack=of) for count, of in ((9, stack), (8, (SHA,)))
    ]
    shown = terminal.failure_section(
        built(measured(WASTEFUL, offenders=tuple(burnt)), max_cpu_seconds=0.001), 100
    )
    assert shown.count(evidence_text.CUT_SHORT) == 1
    before = shown.partition(evidence_text.CUT_SHORT)[0]
    assert (before.count("CPU samples, running") == 1) == is_cut_short


@pytest.mark.parametrize("caller", ["?", "crosscall2", "net/http.(*conn).serve"])
def test_a_stack_is_shown_up_to_the_programs_own_outermost_frame(caller: str) -> None:
    inner, own, outer = Frame("?", "server+0x10", 0), HASHER, Frame(caller, "x", 1)
    burnt = made_up.offender(9, offence="cpu", share=0.5, stack=(inner, own, outer))
    (entry,) = built(measured(WASTEFUL, offenders=(burnt,)))["services"][0]["offenders"]
    assert [frame["function"] for frame in evidence_text.up_to_own_code(entry["stack"])] == [
        "?",
        "main.rehash",
    ]
    assert evidence_text.has_own_code(entry["stack"])
    assert not evidence_text.has_own_code([entry["stack"][0], entry["stack"][2]])
    assert [frame.is_own for frame in (inner, own, outer)] == [False, True, False]


def test_after_pytests_message_only_the_evidence_of_broken_rules_is_repeated() -> None:
    made = built(measured(WASTEFUL), max_spurious="5%")
    made["breaches"].append(
        {
            "service": "server",
            "metric": "NP101",
            "kind": "max",
            "measured": 500,
            "limit": 0,
            "text": "server: NP101 second-reader at a.go:1 main.read: two read it",
            "fix": "read from one",
        }
    )
    broken = {"code": "NP101", "name": "second-reader", "text": "two read it", "line": "a.go:1"}
    made["services"][0]["rules"] = [{**broken, "fix": "read from one", "forbidden": True}]
    alone, after = terminal.failure_section(made, 100), terminal.failure_section(made, 100, True)
    assert "server: spurious 50.1 %" in alone
    assert "server: NP101 second-reader at a.go:1 main.read: two read it\n  fix: read from one" in alone
    assert "server: spurious" not in after
    assert "server: NP101 second-reader: two read it\n" in after
    assert "fix: read from one" not in after
    for text in (alone, after):
        assert "server (pid 42, go1.26.6):" in text


def test_tests_can_be_told_apart_in_a_table_that_is_too_wide() -> None:
    columns = {f"metric {i}": ["0.0 % → 49.6 %"] * 2 for i in range(6)}
    names = [
        "tests/test_a.py::test_that_is_long_and_ends_one",
        "tests/test_a.py::test_that_is_long_and_ends_two",
    ]
    shown = layout(names, columns, 80, [])
    assert [line.split()[0] for line in shown.splitlines()[2:]] == ["…nd_ends_one", "…nd_ends_two"]
