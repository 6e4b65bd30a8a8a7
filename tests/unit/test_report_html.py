"""The HTML report as text; tests/plugin/test_html_report.py looks at it in a browser."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.marker import resolve
from pytest_netpoll.metrics import COUNTERS, METRICS, Measurement, Snapshot, bucket_of
from pytest_netpoll.report import html, record
from pytest_netpoll.verdict import judge

EVIL = "</script><script>alert(1)</script>\"'<b>&\x1b[31m"
COUNTS = {"wakeups": 200, "productive_wakeups": 150, "spurious_wakeups": 50, "events": 200, "polls": 210}


def measured(name: str = "server", histogram: Any = None, **more: Any) -> Measurement:
    latencies = {bucket_of(10_000): 150, bucket_of(3_000_000): 50} if histogram is None else histogram
    snapshot = Snapshot({**dict.fromkeys(COUNTERS, 0), **COUNTS}, latencies, 3_000_000, 340_000_000, None)
    return Measurement(name, 42, "/srv/server", "go1.26.6", 1.0, snapshot, **more)


def built(*measurements: Measurement, mode: Any = "gate", nodeid: str = "t.py::test", **more: Any) -> Any:
    limits = {key: more.pop(key) for key in list(more) if key.startswith(("max_", "min_"))}
    demanded = resolve([((), limits)], nodeid)
    made = record.build(
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
    match = re.search(r'id="details">([^<]*)<', html.render({}, records))
    assert match is not None
    loaded: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(match[1])))
    return loaded


def rows(*records: Any) -> list[tuple[str, str]]:
    """(status, name) of each row."""
    page = html.render({}, records)
    return re.findall(
        r'<tbody data-number="\d+" data-status="([^"]*)">.*?class="name">([^<]*)<', page, re.DOTALL
    )


def text(fragment: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", fragment).split())


def test_the_page_holds_all_it_needs_and_forbids_to_fetch_more() -> None:
    page = html.render({"kernel": "6.8.0"}, [built(measured())])
    assert re.findall(r'\b(?:src|href)="([^"]*)"', page) == ["data:,"]
    assert "default-src &#39;none&#39;" in page
    assert "@import" not in page


def test_nothing_that_a_test_or_a_service_says_becomes_html() -> None:
    evil = built(
        measured(EVIL, unmeasured=EVIL),
        nodeid=f"t.py::test[{EVIL}]",
        error=EVIL,
        diagnosis=[EVIL],
        xfail=EVIL,
    )
    evil["services"][0]["columns"] = {EVIL: EVIL}
    page = html.render({EVIL: {EVIL: [EVIL]}}, [evil])
    (detail,) = details(evil)
    for part in (page, detail["html"]):
        assert "<b>" not in part
        assert "alert(1)</script>" not in part
        assert "\x1b" not in part
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;script&gt;alert(1)" in detail["html"]
    # Its own two and the two it unpacks.
    assert page.count("<script") == page.count("</script>") == 3


def test_the_worst_come_first_and_what_report_mode_let_pass_is_marked() -> None:
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


def test_a_services_own_limit_is_shown_with_that_service_alone() -> None:
    demanded = resolve([((), {"max_polls": 1000}), ((), {"max_polls": 5, "service": "back"})], "t")
    measurements = [measured("front"), measured("back")]
    made = record.build("t", ("t.py", 1), judge(measurements, demanded), demanded, measurements, 1.0, None)
    (detail,) = details(made)
    # The one whose limit is broken comes first.
    back, front = detail["html"].split('<section class="service-detail"')[1:]
    assert "max_polls 5 210 ✗ broken" in text(back)
    assert "max_polls 1,000 210 ✓ kept" in text(front)
    # The charts are told apart by their place in the record.
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
    where = {"direction": "read", "syscall": "read", "fd_type": "tcp", "local": "a", "peer": "b"}
    stack = ({"function": "main.(*watcher).run", "file": "server/fault_dup.go", "line": 33},)
    kinds = get_args(get_type_hints(record.Offender)["offence"])
    offenders = tuple({"offence": kind, "count": 9, "share": 0.9, **where, "stack": stack} for kind in kinds)
    late = {"latency_ns": 12_300_000, "goroutine": 18, "at_ms": 5.0, **where, "stack": stack}
    (detail,) = details(built(measured(offenders=offenders, slowest=(late,)), max_latency_p99="1us"))
    assert detail["html"].count("server/fault_dup.go:33") == len(kinds) + 1
    assert "12.3 ms to run (read on tcp a ← b, goroutine 18" in text(detail["html"])


def test_what_was_not_measured_is_not_drawn() -> None:
    (gone,) = details(built(measured(unmeasured="gone")))
    assert gone["charts"] == [{"latency": None, "timeline": None}]
    assert "Not measured: gone" in text(gone["html"])
    (idle,) = details(built(measured(histogram={})))
    assert idle["charts"] == [{"latency": None, "timeline": None}]


def test_the_timeline_keeps_every_interval() -> None:
    names = ("wakeups", "productive", "spurious", "polls", "threads", "threads_running", "run_delay_ns")
    points = tuple({"t_ms": end, **dict.fromkeys(names, 2)} for end in (100.0, 200.0, 300.0, 320.5))
    (detail,) = details(built(measured(timeline=points)))
    line = detail["charts"][0]["timeline"]
    assert (line["step_ms"], line["ends_ms"]) == (100, [100, 200, 300, 320.5])
    assert line["polls"] == [2, 2, 2, 2]


def test_columns_of_hooks_stand_beside_the_others_also_where_a_service_has_none() -> None:
    one, other = built(measured(), nodeid="a::one"), built(measured(), nodeid="b::other")
    one["services"][0]["columns"] = {"req/s": 1234.5, "zone": "eu"}
    page = html.render({}, [one, other])
    assert re.findall(r"c-added.*?<button[^>]*>([^<]*)<", page) == ["req/s", "zone"]
    cells = re.findall(r'<td class="number c-added">(.*?)</td>', page)
    assert [text(cell) for cell in cells] == ["1,234.50", "eu", "–", "–"]  # noqa: RUF001


def test_records_of_an_older_file_are_rendered() -> None:
    nowhere = dict.fromkeys(("share", "syscall", "fd_type"))
    offender = {"offence": "spurious", "count": 1, "direction": "read", **nowhere, "stack": ()}
    old = built(measured(offenders=(offender,)), max_spurious=0.05)
    for extra in ("file", "line", "error", "xfail", "diagnosis"):
        del old[extra]
    for extra in ("unmeasured", "histogram", "timeline", "columns"):
        old["services"][0].pop(extra, None)
    (detail,) = details(old)
    assert "1 of 50 (2.0 %) spurious wakeups (read on a descriptor), woken in vain" in text(detail["html"])


def test_without_tests_the_page_says_so() -> None:
    assert "No test was measured." in html.render({}, [])


def test_without_its_libraries_it_is_a_usage_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    html.require()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'pytest-netpoll\[html\]'") as error:
        html.require()
    assert error.value.why == "jinja2 and plotly cannot be imported"


def test_a_file_that_cannot_be_written_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NetpollError, match="HTML report could not be written"):
        html.write(tmp_path / "file" / "report.html", {}, [])
