"""The HTML report as text; tests/plugin/test_html_report.py opens it in a browser."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS, METRICS
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import evidence_text, recording
from pytest_netpoll.report.html import document, sections
from pytest_netpoll.report.reports import command_line
from tests.made_up import WATCHER, late, offender, point

EVIL = "</script><script>alert(1)</script>\"'<b>&\x1b[31m"
COUNTS = {"wakeups": 200, "productive_wakeups": 150, "spurious_wakeups": 50, "events": 200, "polls": 210}


def measured(name: str = "server", histogram: Any = None, **more: Any) -> Measurement:
    latencies = {bucket_of(10_000): 150, bucket_of(3_000_000): 50} if histogram is None else histogram
    snapshot = Snapshot({**dict.fromkeys(COUNTERS, 0), **COUNTS}, latencies, 3_000_000, 340_000_000, None)
    return Measurement(name, 42, "/srv/server", "go1.26.6", 1.0, snapshot, **more)


def built(*measurements: Measurement, mode: Any = "gate", nodeid: str = "t.py::test", **more: Any) -> Any:
    limits = {key: more.pop(key) for key in list(more) if key.startswith(("max_", "min_"))}
    demanded = resolve([((), limits)], nodeid)
    made = recording.build(
        nodeid,
        ("t.py", 7),
        judge(measurements, demanded, mode),
        demanded,
        measurements,
        1.25,
        more.pop("error", None),
    )
    return {**made, **more}


def details(*records: Any) -> list[dict[str, Any]]:
    """What the page unpacks when tests are opened, in the order of its table."""
    match = re.search(r'id="details">([^<]*)<', document.render({}, records))
    assert match is not None
    loaded: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(match[1])))
    return loaded


def test_artifacts_are_shown_with_the_commands_that_open_them() -> None:
    kept = {
        "directory": "/srv/out/t",
        "files": [
            {"name": "s.io.pb.gz", "what": EVIL, "bytes": 1234, "command": "go tool pprof -top s.io.pb.gz"}
        ],
        "notes": [{"what": "no profiles", "why": "the service does not run", "fix": "start it"}],
    }
    (shown,) = details(built(measured(), artifacts=kept))
    section = shown["html"].partition('<section class="artifacts">')[2].partition("</section>")[0]
    assert "<code>cd /srv/out/t</code>" in section
    assert "<code>go tool pprof -top s.io.pb.gz</code>" in section
    assert ">1.2 kB<" in section
    assert "<script>" not in section
    assert "no profiles: the service does not run" in section
    assert "<code>start it</code>" in section


def rows(*records: Any) -> list[tuple[str, str]]:
    """(status, name) of each row."""
    page = document.render({}, records)
    return re.findall(
        r'<tbody data-number="\d+" data-outcome="([^"]*)".*?class="name">([^<]*)<', page, re.DOTALL
    )


def compared(outcome: str = "passed", *notes: str, **then: Any) -> Any:
    """The comparison of a test of "server" with a baseline that has these metrics."""
    services = [{"name": "server", "metrics": then}]
    about = {"baseline": "main", "outcome": outcome, "regressions": [], "notes": list(notes), "measured": 1}
    return {**about, "services": services}


def worse(metric: str, measured: Any, baseline: Any, tolerance: str, *again: Any) -> Any:
    text = f"server: {metric} {measured} > {baseline} {tolerance} of baseline main"
    numbers = {"measured": measured, "baseline": baseline, "again": list(again)}
    return {"service": "server", "metric": metric, "tolerance": tolerance, "text": text, **numbers}


def cells(fragment: str, table: str) -> list[list[str]]:
    """The texts of a table's rows, heading first; table: what its class attribute begins with."""
    rows = fragment.partition(f'<table class="{table}')[2].partition("</table>")[0].split("<tr")[1:]
    return [[text(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def choices(page: str) -> dict[str, list[str]]:
    """The values of each filter's boxes."""
    filters = re.findall(r'<fieldset class="filter" name="([^"]*)">(.*?)</fieldset>', page, re.DOTALL)
    return {name: re.findall(r'value="([^"]*)"', boxes) for name, boxes in filters}


def text(fragment: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", fragment).split())


def test_the_page_holds_all_it_needs_and_forbids_to_fetch_more() -> None:
    page = document.render({"kernel": "6.8.0"}, [built(measured())])
    assert re.findall(r'\b(?:src|href)="([^"]*)"', page) == ["data:,"]
    assert "default-src &#39;none&#39;" in page
    assert "@import" not in page


def test_the_environment_is_in_words_and_without_the_agents_own_affairs() -> None:
    probe = {"probe": "raw tracepoint sys_exit", "services": ["server"], "cost": "see the docs"}
    environment = {
        "plugin": "0.1.0",
        "commit": None,
        "cpus_usable": 2,
        "program": "cache",
        "not_cached": None,
        "typed": True,
        "no_arrivals": "answers were not timed",
        "attached": [probe],
        "new": "7",
    }
    page = document.render(environment, [built(measured())])
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page) == [
        ("pytest-netpoll", "0.1.0"),
        ("CPUs that the tests may use", "2"),
        ("new", "7"),
        ("attached", "raw tracepoint sys_exit"),
    ]


def test_text_of_tests_and_services_never_becomes_html() -> None:
    evil = built(
        measured(EVIL, unmeasured=EVIL),
        nodeid=f"t.py::test[{EVIL}]",
        error=EVIL,
        diagnosis=[EVIL],
        xfail=EVIL,
    )
    evil["services"][0]["columns"] = {EVIL: EVIL}
    evil["toolchain"] = EVIL
    evil["comparison"] = {**compared(spurious=0.0), "baseline": EVIL, "notes": [EVIL, f"{EVIL}: {EVIL}"]}
    evil["comparison"]["services"][0]["name"] = EVIL
    other = {**evil, "toolchain": "go1.26.6", "nodeid": f"t.py::test[go1.26.6-{EVIL}]"}
    other["comparison"] = {**evil["comparison"], "outcome": "new"}
    page = document.render({EVIL: {EVIL: [EVIL]}}, [evil, other])
    detail, _ = details(evil, other)
    for part in (page, detail["html"]):
        assert "<b>" not in part
        assert "alert(1)</script>" not in part
        assert "\x1b" not in part
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;script&gt;alert(1)" in detail["html"]
    # Its own two and the two that it unpacks.
    assert page.count("<script") == page.count("</script>") == 3


def test_the_worst_come_first_and_passes_by_report_mode_are_marked() -> None:
    tests = [
        built(measured(), nodeid="a::passed"),
        built(measured(), nodeid="b::xfailed", max_polls=1, xfail="known"),
        built(measured(), nodeid="c::reported", mode="report", max_polls=1),
        built(measured(unmeasured="gone"), nodeid="d::gone", max_polls=1),
        built(measured(), nodeid="e::broken", max_polls=1),
    ]
    assert rows(*tests) == [
        ("failed", "broken"),
        ("unmeasured", "gone"),
        ("would fail", "reported"),
        ("passed", "passed"),
        ("xfailed", "xfailed"),
    ]


def test_a_limit_is_shown_with_what_was_measured_and_whether_it_was_kept() -> None:
    (detail,) = details(built(measured(), max_polls=300, max_spurious="5%", max_ready_calls=3))
    limits = text(detail["html"].partition("<tbody>")[2].partition("</tbody>")[0])
    assert "max_spurious 5.0 % 25.0 % ✗ broken" in limits
    assert "max_polls 300 210 ✓ kept" in limits
    assert "max_ready_calls 3 – ? not measured" in limits  # noqa: RUF001
    assert "min_wakeups 10 200 ✓ kept" in limits


def test_a_limit_on_a_rate_is_shown_with_the_rate() -> None:
    (detail,) = details(built(measured(), max_polls_per_second=1000, max_events_per_second=0.5))
    limits = text(detail["html"].partition("<tbody>")[2].partition("</tbody>")[0])
    assert "max_polls_per_second 1,000.00 168.00 ✓ kept" in limits  # 210 in the record's 1.25 s
    assert "max_events_per_second 0.50 200.00 ✗ broken" in limits


def test_a_services_own_limit_is_shown_with_that_service_alone() -> None:
    demanded = resolve([((), {"max_polls": 1000}), ((), {"max_polls": 5, "service": "back"})], "t")
    measurements = [measured("front"), measured("back")]
    made = recording.build("t", ("t.py", 1), judge(measurements, demanded), demanded, measurements, 1.0, None)
    (detail,) = details(made)
    # The one whose limit is broken comes first.
    back, front = detail["html"].split('<section class="service-detail"')[1:]
    assert "max_polls 5 210 ✗ broken" in text(back)
    assert "max_polls 1,000 210 ✓ kept" in text(front)
    # The charts are distinguished by their place in the record.
    assert 'data-service="1"' in back
    assert 'data-service="0"' in front


def test_the_latency_chart_has_every_latency_and_the_limits() -> None:
    (detail,) = details(built(measured(histogram={0: 3, bucket_of(10_000): 5}), max_latency_p99="5ms"))
    chart = detail["charts"][0]["latency"]
    assert [count for _, _, count, _ in chart["bars"]] == [3, 5]
    assert chart["bars"][0][0] == 1  # a logarithmic axis has no 0
    assert all(low < high for low, high, _, _ in chart["bars"])
    low, high = chart["bars"][1][:2]
    assert low <= 10_000 < high
    assert chart["limits"] == [["max_latency_p99", 5_000_000, "5.0 ms"]]
    assert "latency_p99" in METRICS


def test_every_kind_of_offender_and_late_wakeups_are_shown_with_their_stacks() -> None:
    where: dict[str, Any] = {"syscall": "read", "local": "a", "peer": "b", "stack": (WATCHER,)}
    kinds = get_args(Offence)
    offenders = tuple(offender(9, offence=kind, share=0.9, **where) for kind in kinds)
    wakeup = late(12_300_000, goroutine=18, at_ms=5.0, **where)
    (detail,) = details(built(measured(offenders=offenders, slowest=(wakeup,)), max_latency_p99="1us"))
    assert detail["html"].count("server/fault_dup.go:33") == len(kinds) + 1 + 1  # and the diagnosis
    assert "12.3 ms to run (read on tcp a ← b, goroutine 18" in text(detail["html"])


def test_unrecorded_offenders_are_mentioned() -> None:
    offenders = tuple(offender(9, share=share, stack=()) for share in (0.5, 0.3))
    (detail,) = details(built(measured(offenders=offenders)))
    assert "20.0 % of the spurious wakeups not listed" in text(detail["html"])
    (detail,) = details(built(measured(offenders=(offender(9, share=0.99999),))))
    assert "not listed" not in detail["html"]


def test_the_runs_are_shown_with_median_minimum_maximum_and_each_value() -> None:
    windows = [[measured(histogram={bucket_of(ns): 200})] for ns in (10_000, 40_000, 20_000)]
    limits = {"max_latency_p99": "25us", "max_stale_retries": 3, "max_polls": 1000}
    (detail,) = details(built(*median_of(windows), **limits))
    heading, *shown = cells(detail["html"], "numbers runs")
    assert heading[:4] == ["metric", "median", "minimum", "maximum"]
    assert heading[5:] == ["run 1", "run 2", "run 3"]
    by_metric = {row[0]: row[1:4] + row[5:] for row in shown}
    p99 = [METRICS["latency_p99"].format(run.latency_p99) for (run,) in windows]
    assert by_metric["latency_p99"] == [p99[2], p99[0], p99[1], *p99]
    assert by_metric["stale_retries"] == ["0"] * 6
    # Also for metrics without a limit.
    everything = {row[0]: row for row in cells(detail["html"].partition("All metrics")[2], "numbers")}
    p90 = [METRICS["latency_p90"].format(run.latency_p90) for (run,) in windows]
    assert everything["latency_p90"] == ["latency_p90", p90[2], *p90]
    assert "in each of 3 runs" in text(detail["html"])

    single = details(built(measured(), max_polls=300))[0]["html"]
    assert "run 1" not in single
    assert "strip" not in single


def test_the_strip_of_the_runs_shows_a_limit_that_is_near_and_stays_within_its_width() -> None:
    windows = [[measured(histogram={bucket_of(ns): 200})] for ns in (10_000, 40_000, 20_000)]
    (detail,) = details(built(*median_of(windows), max_latency_p99="60us", max_latency_p50="9s"))
    strips = dict(re.findall(r"<code>(\w+)</code>.*?(<svg.*?</svg>)", detail["html"], re.DOTALL))
    dots = [float(x) for x in re.findall(r'cx="([^"]*)"', strips["latency_p99"])]
    limit = float(re.findall(r'"limit" d="M([^ ]*) ', strips["latency_p99"])[0])
    median = float(re.findall(r'"median" d="M([^ ]*) ', strips["latency_p99"])[0])
    assert 0 < dots[0] < dots[2] == median < dots[1] < limit < sections.STRIP
    assert "limit" not in strips["latency_p50"]
    assert max(map(float, re.findall(r'cx="([^"]*)"', strips["latency_p50"]))) < sections.STRIP


def test_a_run_without_a_number_leaves_a_gap() -> None:
    windows = [[measured(histogram={})], [measured(), measured("other")]]
    (detail,) = details(built(*median_of(windows)))
    assert "p99" in detail["html"]
    sometimes = built(*median_of([[measured(histogram={})], [measured()]]), max_latency_p99="1s")
    shown = {row[0]: row for row in cells(details(sometimes)[0]["html"], "numbers runs")}
    assert shown["latency_p99"][5:] == ["–", METRICS["latency_p99"].format(measured().latency_p99)]  # noqa: RUF001


def test_then_and_now_are_side_by_side_with_regressions_and_their_confirmation() -> None:
    test = built(measured(), max_stale_retries=7)
    test["comparison"] = compared("regressed", "server: times were not compared", spurious=0.0, wakeups=100)
    test["comparison"]["services"][0]["metrics"] |= {"latency_p99": 1.5e6, "polls": 210, "stale_retries": 0}
    test["comparison"]["regressions"] = [worse("latency_p99", 3.0e6, 1.5e6, "+25%", 2.9e6, 2.8e6)]
    (detail,) = details(test)
    shown = {row[0]: row[1:] for row in cells(detail["html"], "numbers compared")}
    now = METRICS["latency_p99"].format(measured().latency_p99)
    assert shown["latency_p99"][:2] == ["1.5 ms", now]
    assert shown["latency_p99"][3] == "✗ worse: +25% allowed, remeasured: 2.9 ms, 2.8 ms"
    assert shown["wakeups"] == ["100", "200", "+100 %", ""]
    assert shown["spurious"] == ["0.0 %", "25.0 %", "+25.0 points", ""]
    assert shown["stale_retries"] == ["0", "0", "±0 %", ""]
    assert "Against baseline main" in detail["html"]
    assert '<p class="quiet">times were not compared</p>' in detail["html"]
    everything = {row[0]: row for row in cells(detail["html"].partition("All metrics")[2], "numbers")}
    assert everything["polls"] == ["polls", "210", "210", "±0 %"]

    page = document.render({}, [test])
    assert "against baseline main" in page
    assert f'class="worse" title="worse than 1.5 ms">{now}<' in page


@pytest.mark.parametrize("commit", ["beef" * 10, None])
def test_changes_come_first_with_intervals_and_the_rest_is_one_line(commit: str | None) -> None:
    def number(metric: str, base: float, head: float, low: float, high: float, text: str) -> Any:
        place = {"service": "server", "metric": metric, "base": base, "head": head, "text": text}
        made = {"rounds": 8, "base_rounds": None if commit else 6, "relative": True, "exact": False}
        return {**place, **made, "change": (low + high) / 2, "low": low, "high": high}

    numbers = [
        number("latency_p50", 1e6, 1e6, -0.1, 0.1, "~ (-10.0 % to +10.0 %)"),
        number("cpu_seconds", 0.1, 0.2, 0.9, 1.1, "+100.0 % (+90.0 % to +110.0 %)"),
        number("polls", 100, 400, 2.9, 3.1, "+300.0 % (+290.0 % to +310.0 %)"),
    ]
    test = built(measured(), nodeid="t.py::worse")
    test["comparison"] = {**compared("regressed", cpu_seconds=0.1), "commit": commit, "numbers": numbers}
    test["comparison"] |= {"measured": 8, "regressions": [worse("cpu_seconds", 0.2, 0.1, "+5%")]}
    same = {**built(measured(), nodeid="t.py::same")}
    same["comparison"] = {**compared("passed", "server: a note"), "commit": commit, "numbers": numbers[:1]}
    same["comparison"]["measured"] = 8
    page = document.render({}, [same, test])
    section = page.partition('<section id="changes"')[2].partition("</section>")[0]
    heading, *shown = cells(section, "numbers changes")
    sides = ["base", "head"] if commit else ["then", "now"]
    assert heading == ["verdict", "test", "metric", *sides, "change", "95 % interval"]
    assert [row[2:] for row in shown] == [
        ["cpu_seconds", "0.10 s", "0.20 s", "+100.0 %", "+90.0 % to +110.0 %"],
        ["polls", "100", "400", "+300.0 %", "+290.0 % to +310.0 %"],
    ]
    assert [row[0] for row in shown] == ["✗ worse", "▲ more"]
    rounds = "8 rounds each" if commit else "6 rounds then, 8 now"
    assert f"<p>No change in 2 numbers of 2 tests, {rounds}.</p>" in section
    assert "server: a note" in section
    assert ("against base main (beefbeefbeef)" if commit else "against baseline main") in page
    (detail, _) = details(test, same)
    assert [row[0] for row in cells(detail["html"], "numbers compared")] == ["metric", "cpu_seconds", "polls"]
    assert cells(detail["html"], "numbers compared")[1][1:5] == [
        "0.10 s",
        "0.20 s",
        "+100.0 %",
        "+90.0 % to +110.0 %",
    ]
    assert "No change in 1 numbers." in detail["html"]


@pytest.mark.parametrize(
    ("then", "now", "change"),
    [
        (200, 100, "\u221250 %"),
        (100, 149, "+49 %"),
        (1000, 1001, "±0 %"),
        (1000, 999, "±0 %"),
        (0, 12, "+12"),
        (3, 30, "10 times"),
        (0, 0, "±0 %"),
        (None, 5, ""),
        (5, None, ""),
    ],
)
def test_a_change_is_shown_in_percent_if_that_makes_sense(then: Any, now: Any, change: str) -> None:
    assert sections.change(METRICS["polls"], then, now) == change


def test_tests_are_filtered_by_how_they_compare() -> None:
    tests = [
        {**built(measured(), nodeid=f"{name}::t"), "comparison": compared(name)}
        for name in ("passed", "new", "regressed", "unmeasured")
    ]
    page = document.render({}, [*tests, built(measured(), nodeid="z::not_compared")])
    assert choices(page)["baseline"] == ["regressed", "unmeasured", "new", "passed", ""]
    assert 'data-outcome="passed" data-baseline="regressed"' in page
    shown = {
        row.partition('"')[0]: re.findall('class="against">([^<]*)<', row)
        for row in page.partition("<tbody")[2].split('data-baseline="')[1:]
    }
    assert shown == {
        **{outcome: [] for outcome in ("passed", "unmeasured", "")},
        "regressed": ["regressed"],
        "new": ["no baseline"],
    }
    plain = document.render({}, [built(measured())])
    assert "data-baseline" not in plain.partition("<body>")[2]
    assert list(choices(plain)) == ["outcome"]


def test_a_regression_in_report_mode_would_fail() -> None:
    test = built(measured(), mode="report")
    test["comparison"] = {**compared("regressed"), "regressions": [worse("polls", 210, 100, "+10%")]}
    assert rows(test) == [("would fail", "test")]


def toolchains(*labels: str, **more: Any) -> list[Any]:
    return [
        {**built(measured(), nodeid=f"t.py::test[{label}]"), "toolchain": label, **more} for label in labels
    ]


def test_toolchains_are_told_apart_filtered_and_sorted_oldest_first() -> None:
    tests = toolchains("go1.21.13", "go1.9", "go1.21.13-patched")
    page = document.render({}, tests)
    assert choices(page)["toolchain"] == ["go1.9", "go1.21.13", "go1.21.13-patched"]
    found = re.findall(r'<td class="c-toolchain"><span data-value="(\d)">([^<]*)<', page)
    assert sorted(found) == [("0", "go1.9"), ("1", "go1.21.13"), ("2", "go1.21.13-patched")]
    # The name is the same, and each of them is found by its nodeid.
    assert rows(*tests) == [("passed", "test")] * 3
    attributes = re.findall(r'<tbody[^>]* data-toolchain="([^"]*)" data-nodeid="([^"]*)"', page)
    assert attributes[-1] == ("go1.9", "t.py::test[go1.9]")
    # A test that was not run with each of them is filtered separately.
    assert choices(document.render({}, [*tests, built(measured())]))["toolchain"][-1] == ""
    assert "toolchain" not in choices(document.render({}, toolchains("go1.9")))


def test_each_test_shows_and_links_its_results_with_other_toolchains() -> None:
    tests = [
        *toolchains("go1.21.13", "go1.9", requests_per_second=4727.3),
        built(measured(), nodeid="z::other"),
    ]
    tests[0]["breaches"], tests[0]["outcome"] = [], "failed"
    first, second, other = details(*tests)
    heading, *shown = cells(first["html"], "numbers siblings")
    assert heading == ["Go", "verdict", "spurious", "polls/ev", "p50", "p99", "CPU", "req/s"]
    assert [row[:2] for row in shown] == [["go1.9", "✓ passed"], ["go1.21.13", "✗ failed"]]
    assert {row[-1] for row in shown} == {"4,727"}
    assert re.findall('href="([^"]*)"', first["html"]) == ["#t.py%3A%3Atest%5Bgo1.9%5D"]
    assert re.findall('href="([^"]*)"', second["html"]) == ["#t.py%3A%3Atest%5Bgo1.21.13%5D"]
    assert "siblings" not in other["html"]
    assert "4,727 requests a second" in text(first["html"])


def test_what_was_not_measured_is_not_drawn() -> None:
    (gone,) = details(built(measured(unmeasured="gone")))
    assert gone["charts"] == [{"latency": None, "timeline": None, "flames": {}}]
    assert "Not measured: gone" in text(gone["html"])
    (idle,) = details(built(measured(histogram={})))
    assert idle["charts"] == [{"latency": None, "timeline": None, "flames": {}}]


def test_the_timeline_keeps_every_interval() -> None:
    points = tuple(point(end, polls=2, timeout_polls=end == 200) for end in (100.0, 200.0, 300.0, 320.5))
    made = built(measured(timeline=points))
    del made["services"][0]["timeline"][0]["timeout_polls"]  # as in a file from before polls were split
    (detail,) = details(made)
    line = detail["charts"][0]["timeline"]
    assert (line["step_ms"], line["ends_ms"]) == (100, [100, 200, 300, 320.5])
    assert line["polls"] == [2, 2, 2, 2]
    assert line["timeout_polls"] == [0, 1, 0, 0]


def test_columns_of_hooks_are_shown_even_if_a_service_has_none() -> None:
    one, other = built(measured(), nodeid="a::one"), built(measured(), nodeid="b::other")
    one["services"][0]["columns"] = {"req/s": 1234.5, "zone": "eu"}
    page = document.render({}, [one, other])
    assert re.findall(r"c-added.*?<button[^>]*>([^<]*)<", page) == ["req/s", "zone"]
    cells = re.findall(r'<td class="number c-added">(.*?)</td>', page)
    assert [text(cell) for cell in cells] == ["1,234.50", "eu", "–", "–"]  # noqa: RUF001


def test_records_of_an_older_file_are_rendered() -> None:
    nowhere = {**dict.fromkeys(("share", "syscall", "fd_type")), "stack": []}
    old = built(measured(), max_spurious=0.05)
    old["services"][0]["offenders"] = [{"offence": "spurious", "count": 1, "direction": "read", **nowhere}]
    for extra in ("file", "line", "error", "xfail", "diagnosis", "comparison", "toolchain"):
        del old[extra]
    del old["requests_per_second"]
    for extra in ("unmeasured", "histogram", "timeline", "columns", "runs", "gomaxprocs"):
        old["services"][0].pop(extra, None)
    (detail,) = details(old)
    assert "1 of 50 (2.0 %) spurious wakeups (read on a descriptor), no stack" in text(detail["html"])


def test_a_page_without_tests_has_a_note() -> None:
    assert "No test was measured." in document.render({}, [])


def test_without_its_libraries_it_is_a_usage_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    document.require()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'pytest-netpoll\[html\]'") as error:
        document.require()
    assert error.value.why == "jinja2 and plotly cannot be imported"


def test_a_file_that_cannot_be_written_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NetpollError, match="HTML report could not be written"):
        document.write(tmp_path / "file" / "report.html", {}, [])


def test_a_broken_metric_without_a_column_is_shown_and_marked_in_the_row() -> None:
    kept, broken = built(measured()), built(measured(), max_polls=5, max_wakeups=1)
    assert "other limits" not in document.render({}, [kept])
    page = document.render({}, [kept, broken])
    assert 'title="broken limits on other metrics">other limits<' in page
    assert re.findall(r'class="broken" title="([^"]*)">([^<]*)<', page) == [
        ("server: wakeups 200 &gt; max 1", "200"),
        ("server: polls 210 &gt; max 5", "polls 210"),
    ]


def test_a_forbidden_rule_is_shown_once_and_others_as_the_diagnosis() -> None:
    made = built(measured(), max_polls=5)
    rule = {"name": "a-rule", "line": None, "fix": "stop"}
    made["services"][0]["rules"] = [
        {**rule, "code": "NP101", "text": "two read it.", "forbidden": True},
        {**rule, "code": "NP301", "text": "it ticks.", "forbidden": False},
    ]
    made["breaches"].append(
        {
            "service": "server",
            "metric": "NP101",
            "kind": "max",
            "measured": 5,
            "limit": 0,
            "text": "server: NP101 a-rule: two read it.",
        }
    )
    (detail,) = details(made)
    assert detail["html"].count("two read it.") == 1
    assert detail["html"].count("it ticks.") == 1


def test_a_stack_that_ends_in_assembly_is_explained_once() -> None:
    sha = Frame("crypto/sha256.block", "crypto/sha256/sha256block_amd64.s", 734)
    burnt = [offender(count, offence="cpu", share=0.5, stack=(sha,), local=f"{count}") for count in (9, 8)]
    (detail,) = details(built(measured(offenders=(*burnt, offender())), max_cpu_seconds=0.001))
    assert detail["html"].count(evidence_text.CUT_SHORT) == 1
    (detail,) = details(built(measured(offenders=(offender(),)), max_spurious=0))
    assert evidence_text.CUT_SHORT not in detail["html"]


def test_the_command_is_the_one_to_type() -> None:
    assert command_line(["/venv/bin/pytest", "-q", "a b"]) == "pytest -q 'a b'"
    assert command_line(["/venv/lib/pytest/__main__.py", "-q"]) == "python -m pytest -q"
