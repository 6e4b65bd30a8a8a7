"""The record itself, and the reports for machines that are made from it: JSON, JUnit."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_netpoll.cli.watch import table
from pytest_netpoll.errors import NetpollError
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model.evidence import Offender, SlowWakeup, TimelinePoint
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS, METRICS, in_report
from pytest_netpoll.model.snapshot import Delay, Snapshot
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import baseline_file, junit, record, recording
from pytest_netpoll.report import json_report as report_json
from tests.made_up import offender

HEALTHY = {"wakeups": 200, "productive_wakeups": 200, "events": 200, "polls": 210}
WASTEFUL = {"wakeups": 200, "productive_wakeups": 100, "spurious_wakeups": 100, "events": 200, "polls": 210}
OFFENDER = offender(99, share=0.99)
ENVIRONMENT = {"kernel": "6.8.0", "bcc": "0.29.1"}


def measured(counts: Mapping[str, int], name: str = "server", **more: Any) -> Measurement:
    counters = {**dict.fromkeys(COUNTERS, 0), **counts}
    delay = Delay({bucket_of(10_000): 2}, 10_000)
    delays = dict.fromkeys(("queue_delay", "poll_delay", "handling", "response"), delay)
    snapshot = Snapshot(
        counters, {bucket_of(10_000): 2, bucket_of(50): 0}, 10_000, 340_000_000, None, delays=delays
    )
    return Measurement(name, 42, "/srv/server", "go1.26.6", 1.0, snapshot, **more)


def built(
    *measurements: Measurement,
    nodeid: str = "test_echo.py::test_echo",
    error: str | None = None,
    mode: Any = "gate",
    **limits: object,
) -> record.TestRecord:
    demanded = resolve([((), limits)], nodeid)
    verdict = judge(measurements, demanded, mode)
    return recording.build(nodeid, ("test_echo.py", 7), verdict, demanded, measurements, 1.25, error)


def test_a_record_has_every_field_of_the_contract() -> None:
    made = built(measured(WASTEFUL, offenders=(OFFENDER,)), max_spurious=0.05)
    (service,) = made["services"]
    (breach,) = made["breaches"]
    assert {
        "nodeid",
        "outcome",
        "reason",
        "window_seconds",
        "limits",
        "breaches",
        "services",
    } <= made.keys()
    assert (made["outcome"], made["window_seconds"]) == ("failed", 1.25)
    assert made["reason"] == "server: spurious 50.0 % (100 of 200 wakeups) > max 5.0 %"
    assert (made["file"], made["line"]) == ("test_echo.py", 7)
    assert made["limits"] == {"max_spurious": 0.05, "min_wakeups": 10}
    assert (breach["service"], breach["metric"]) == ("server", "spurious")
    assert (breach["measured"], breach["limit"]) == (0.5, 0.05)
    assert (service["name"], service["pid"], service["executable"]) == ("server", 42, "/srv/server")
    assert (service["go_version"], service["unmeasured"]) == ("go1.26.6", None)
    assert list(service["metrics"]) == list(METRICS)
    assert service["offenders"][0]["stack"][0]["line"] == 33


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (Offender, record.OffenderRecord),
        (SlowWakeup, record.SlowWakeupRecord),
        (TimelinePoint, record.TimelineRecord),
        (Frame, record.FrameRecord),
    ],
)
def test_evidence_has_the_same_fields_in_the_model_and_in_json(kind: Any, keys: Any) -> None:
    assert {field.name for field in dataclasses.fields(kind)} == (
        keys.__required_keys__ | keys.__optional_keys__
    ) - {"rules"}  # of which the model has the offenders


def test_evidence_is_plain_json_in_a_record() -> None:
    (service,) = built(measured(WASTEFUL, offenders=(OFFENDER,)))["services"]
    assert service["offenders"] == [
        {
            "offence": "spurious",
            "count": 99,
            "share": 0.99,
            "direction": "read",
            "syscall": "read",
            "outcome": None,
            "runtime": False,
            "fd_type": "tcp",
            "local": "127.0.0.1:7777",
            "peer": "127.0.0.1:5012",
            "cause": None,
            "bytes": None,
            "not_blocking": 0,
            "stack": [{"function": "main.(*watcher).run", "file": "server/fault_dup.go", "line": 33}],
            "rules": [],
        }
    ]


def test_what_was_not_measured_is_null() -> None:
    metrics = built(measured(HEALTHY))["services"][0]["metrics"]
    assert metrics["ready_calls"] is None
    assert metrics["run_delay_seconds"] is None
    assert metrics["spurious"] == 0


def test_the_histogram_leaves_empty_buckets_out() -> None:
    assert built(measured(HEALTHY))["services"][0]["histogram"] == {str(bucket_of(10_000)): 2}


def test_a_failed_assertion_stays_the_reason_on_one_line() -> None:
    error = "\nassert 1 == 2\n +  where 1 = f()"
    made = built(measured(WASTEFUL), max_spurious=0.05, error=error)
    assert (made["outcome"], made["reason"], made["error"]) == ("failed", "assert 1 == 2", "assert 1 == 2")
    assert [breach["metric"] for breach in made["breaches"]] == ["spurious"]


def test_without_a_verdict_nothing_passed() -> None:
    made = recording.build("t", ("t.py", 1), None, resolve([], "t"), [], 0.0, None)
    assert made["outcome"] == "unmeasured"
    assert made["reason"]
    failed = recording.build("t", ("t.py", 1), None, resolve([], "t"), [], 0.0, "")
    assert (failed["outcome"], failed["reason"]) == ("failed", "the test failed")


def test_the_reason_for_an_unmeasured_service_is_kept() -> None:
    made = built(measured({}, unmeasured="the service is gone"), max_spurious=0.05)
    assert (made["outcome"], made["reason"]) == ("unmeasured", "server: the service is gone")
    assert made["services"][0]["unmeasured"] == "the service is gone"


def test_a_record_survives_json_unchanged() -> None:
    made = built(measured(WASTEFUL, offenders=(OFFENDER,)), nodeid="t.py::test[|é→]", max_spurious="5%")
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_values_that_json_cannot_represent_are_replaced() -> None:
    odd = {"nan": float("nan"), "inf": [float("-inf")], "path": Path("a/b"), 3: ("x", True), "s": "\udcff"}
    assert record.plain(odd) == {
        "nan": None,
        "inf": [None],
        "path": "a/b",
        "3": ["x", True],
        "s": "\\udcff",
    }


def written(path: Path, *records: record.TestRecord) -> Any:
    report_json.write(path, ENVIRONMENT, records)
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_json_report_can_be_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directory" / "report.json"
    tests = [
        built(measured(WASTEFUL, offenders=(OFFENDER,)), nodeid="a", max_spurious=0.05),
        built(nodeid="b"),
        built(measured({}, unmeasured="gone"), nodeid="c", max_spurious=0.05),
    ]
    report = written(path, *tests)
    assert report == {"schema": "pytest-netpoll/1", "environment": ENVIRONMENT, "tests": tests}
    assert baseline_file.load_any(path)[1] == {test["nodeid"]: test for test in tests}


def test_a_name_that_is_not_utf8_does_not_prevent_the_report(tmp_path: Path) -> None:
    loaded: Any = {**built(), "nodeid": "\udcff"}  # never built, but JSON can hold it
    assert written(tmp_path / "r", loaded)["tests"] == [loaded]


def test_the_json_report_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    first, again, other = built(nodeid="b"), built(nodeid="b", error="x"), built(nodeid="a")
    assert written(tmp_path / "r", first, other, again)["tests"] == [other, first, again]


def test_an_interrupted_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    before = written(path, built())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(NetpollError, match="No space left on device") as error:
        report_json.write(path, {}, [])
    assert str(path) in error.value.what
    assert json.loads(path.read_text()) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_cannot_be_created_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NetpollError, match=r"JSON report could not be written to .*report\.json") as error:
        report_json.write(tmp_path / "file" / "report.json", {}, [])
    assert error.value.why
    assert error.value.fix


def test_the_json_report_may_go_into_a_pipe_or_device(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        report_json.write(fifo, {}, [])
        assert json.loads(os.read(reader, 4096))["tests"] == []
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_the_json_report_can_be_read_by_others_and_keeps_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("target")
    (tmp_path / "target").write_text("")
    written(link, built())
    assert link.is_symlink()
    reference = tmp_path / "reference"
    reference.write_text("")
    assert (tmp_path / "target").stat().st_mode == reference.stat().st_mode


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("schema",), "pytest-netpoll/9", "its \"schema\" is 'pytest-netpoll/9'"),
        (("tests",), {}, "tests: expected a list"),
        (("environment",), 3, "environment: expected an object, got 3"),
        (("tests", 0, "outcome"), "ok", "tests[0].outcome: expected 'passed' or 'failed' or 'unmeasured'"),
        (("tests", 0, "reason"), 3, "tests[0].reason: expected a text, got 3"),
        (("tests", 0, "line"), "7", "tests[0].line: expected an integer"),
        (("tests", 0, "limits", "max_polls"), True, "tests[0].limits.max_polls: expected an integer"),
        (("tests", 0, "services", 0, "metrics", "polls"), "x", "tests[0].services[0].metrics.polls: exp"),
        (("tests", 0, "services", 0), None, "tests[0].services[0]: expected an object, got None"),
    ],
)
def test_a_damaged_report_is_refused_with_the_place_of_the_damage(
    tmp_path: Path, path: tuple[Any, ...], value: object, complaint: str
) -> None:
    report = written(tmp_path / "r", built(measured(HEALTHY), max_polls=300))
    place = report
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (tmp_path / "r").write_text(json.dumps(report))
    with pytest.raises(NetpollError) as error:
        baseline_file.load_any(tmp_path / "r")
    assert complaint in str(error.value.why)


def test_a_missing_field_is_named_but_additions_to_the_contract_are_optional(tmp_path: Path) -> None:
    report = written(tmp_path / "r", built(measured(HEALTHY)))
    for extra in ("file", "line", "error", "diagnosis"):
        del report["tests"][0][extra]
    report["tests"][0]["of a later version"] = 1
    (tmp_path / "r").write_text(json.dumps(report))
    baseline_file.load_any(tmp_path / "r")
    del report["tests"][0]["services"][0]["metrics"]
    (tmp_path / "r").write_text(json.dumps(report))
    with pytest.raises(NetpollError, match=r"tests\[0\].services\[0\] has no 'metrics'"):
        baseline_file.load_any(tmp_path / "r")


@pytest.mark.parametrize("text", ["", "[", '{"a": NaN}', "[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(NetpollError, match="it is not JSON"):
        baseline_file.load_any(tmp_path / "r")


@pytest.mark.parametrize("text", ["3", "[]", "{}"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(NetpollError, match="schema"):
        baseline_file.load_any(tmp_path / "r")


def test_a_missing_report_is_an_error_that_shows_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(NetpollError, match=r"No such file.*\n.*pytest --netpoll-json="):
        baseline_file.load_any(tmp_path / "r")


def test_junit_gets_the_main_numbers_in_canonical_units() -> None:
    made = built(measured(WASTEFUL), measured(HEALTHY, "db"), max_spurious=0.05)
    found = junit.properties(made)
    assert found[0] == ("netpoll.outcome", "failed")
    assert ("netpoll.server.spurious", "0.5") in found
    assert ("netpoll.server.latency_p99", "9983.5") in found
    assert ("netpoll.server.latency_max", "10000") in found
    assert ("netpoll.server.cpu_seconds", "0.34") in found
    assert ("netpoll.db.wakeups", "200") in found
    assert ("netpoll.db.spurious", "0") in found


def test_junit_omits_unmeasured_numbers_and_gives_the_reason() -> None:
    gone = measured(WASTEFUL, unmeasured="the service is gone")
    assert junit.properties(built(gone)) == [
        ("netpoll.outcome", "unmeasured"),
        ("netpoll.server.unmeasured", "the service is gone"),
    ]


def test_a_watched_process_has_no_rates_while_it_cannot_be_measured() -> None:
    def per_second(measurement: Measurement) -> dict[str, float]:
        run, stream = Accumulated(), io.StringIO()
        run.add(measurement)
        table.View(stream, as_json=True).interval("server", measurement, run)
        rates: dict[str, float] = json.loads(stream.getvalue())["per_second"]
        return rates

    assert per_second(measured(WASTEFUL))["wakeups"] == WASTEFUL["wakeups"]
    assert per_second(measured(WASTEFUL, unmeasured="the service is gone")) == {}


def test_junit_has_the_metrics_that_the_table_assigns_to_it_in_order() -> None:
    made = built(measured(WASTEFUL))
    names = [name.rpartition(".")[2] for name, _ in junit.properties(made)]
    assert names == ["outcome", *(metric.name for metric in in_report("junit"))]
