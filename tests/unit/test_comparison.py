from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_netpoll import __main__ as command_line
from pytest_netpoll.errors import NetpollError, Reason
from pytest_netpoll.model import tolerance, units
from pytest_netpoll.model.comparison import Baseline, Rules, compare, confirmed, settle
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import Limits, resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS, METRICS
from pytest_netpoll.model.sample import Sample
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import Breach, Verdict, judge
from pytest_netpoll.report import baseline_file, delta, json_report, record, recording, tables
from pytest_netpoll.report.html import document

HERE = {"kernel": "6.8.0", "arch": "x86_64", "plugin": "1"}
PLENTY: Mapping[str, Any] = {
    "wakeups": 2000,
    "spurious": 0.01,
    "polls_per_event": 1.0,
    "latency_p99": 10_000.0,
}


ONCE = (
    "no 95 % interval: 1 round in the baseline, 1 now; save the baseline again with --netpoll-rounds=4, and "
    "compare with as many, to have one"
)


def sample(**metrics: Any) -> Sample:
    return Sample({**PLENTY, **metrics}, "go1.26.8", 2)


def compared(now: Sample, then: Sample, tolerated: str, *, environment: Any = HERE, **rules: Any) -> Any:
    known = Baseline("main", environment, {"t": {"server": then}})
    return compare("t", {"server": now}, HERE, known, Rules(tolerance.parse_list(tolerated), **rules))


@pytest.mark.parametrize(
    ("tolerated", "now", "line"),
    [
        ("spurious:+0.02", {"spurious": 0.04}, "server: spurious 4.0 % > 1.0 % +0.02 of baseline main"),
        (
            "latency_p99:+25%",
            {"latency_p99": 12_600.0},
            "server: latency_p99 12.6 µs > 10.0 µs +25% of baseline main",
        ),
        (
            "latency_p99:+2us",
            {"latency_p99": 12_100.0},
            "server: latency_p99 12.1 µs > 10.0 µs +2us of baseline main",
        ),
        (
            "polls_per_event:0%",
            {"polls_per_event": 1.0004},
            "server: polls_per_event 1.0004 > 1.0000 +0% of baseline main",
        ),
    ],
)
def test_a_regression_beyond_the_tolerance_has_one_line(
    tolerated: str, now: Mapping[str, Any], line: str
) -> None:
    comparison = compared(sample(**now), sample(), tolerated)
    assert (comparison.outcome, [str(r) for r in comparison.regressions]) == ("regressed", [line])
    assert settle(Verdict("passed"), comparison, "gate") == Verdict("failed", (Reason(line),))
    reported = settle(Verdict("passed"), comparison, "report")
    assert (reported, reported.gate) == (Verdict("passed"), "failed")


@pytest.mark.parametrize("now", [{"spurious": 0.03}, {"spurious": 0.0}, {}])
def test_changes_within_the_tolerance_and_improvements_pass(now: Mapping[str, Any]) -> None:
    assert compared(sample(**now), sample(), "spurious:+0.02").outcome == "passed"


def test_a_regression_comes_after_the_broken_limits() -> None:
    comparison = compared(sample(spurious=0.5), sample(), "spurious:+0.02")
    broken = Verdict("failed", (Reason("a limit"),), (Breach("server", "polls", "max", 2, 1),))
    verdict = settle(broken, comparison, "gate")
    assert verdict.reason == f"a limit\n{comparison.regressions[0]}"
    assert settle(Verdict("unmeasured", (Reason("other: gone"),)), comparison, "gate").outcome == "failed"


def test_in_another_environment_counts_are_compared_and_times_are_not() -> None:
    worse, tolerated = sample(spurious=0.5, latency_p99=90_000.0), "spurious:+0.02,latency_p99:+25%"
    elsewhere = {**HERE, "kernel": "5.4.0"}
    comparison = compared(worse, sample(), tolerated, environment=elsewhere)
    assert [r.metric for r in comparison.regressions] == ["spurious"]
    assert "kernel 5.4.0 then, 6.8.0 now" in comparison.notes[0]
    always = compared(worse, sample(), tolerated, environment=elsewhere, latencies="always")
    assert [r.metric for r in always.regressions] == ["spurious", "latency_p99"]


@pytest.mark.parametrize("change", [{"go_version": "go1.19.8"}, {"gomaxprocs": 8}])
def test_another_go_or_gomaxprocs_is_another_environment(change: Mapping[str, Any]) -> None:
    then = replace(sample(), **change)
    comparison = compared(sample(latency_p99=90_000.0), then, "latency_p99:+25%")
    assert comparison.outcome == "passed"
    assert "times were not compared" in comparison.notes[0]


def test_a_metric_measured_only_then_is_unmeasured() -> None:
    for now in (sample(spurious=None), sample(wakeups=3), replace(sample(), unmeasured=Reason("gone"))):
        comparison = compared(now, sample(), "spurious:+0.02")
        assert comparison.outcome == "unmeasured"
        for mode in ("gate", "report"):
            assert settle(Verdict("passed"), comparison, mode).outcome == "unmeasured"


def test_a_service_missing_since_the_baseline_does_not_pass() -> None:
    then = {"server": sample(), "gone": sample(events=7), "idle": sample(events=0)}
    known, tolerated = Baseline("main", HERE, {"t": then}), Rules(tolerance.parse_list("spurious:+0.02"))
    gone, idle = (f"{name}: is in baseline main, but is no longer measured" for name in ("gone", "idle"))
    for now in ({"server": sample()}, {}):
        comparison = compare("t", now, HERE, known, tolerated)
        assert (comparison.outcome, len(comparison.unmeasured)) == ("unmeasured", 1)
        assert comparison.unmeasured[0].headline == gone
        assert 'pass name="gone" to go_service' in str(comparison.unmeasured[0].fix)
        assert {gone, idle} <= set(comparison.notes)
    watched = compare("t", {"server": sample()}, HERE, known, Rules())
    assert (watched.outcome, set(watched.notes) >= {gone, idle}) == ("passed", True)
    limits = resolve([((), {"service": "server"})], "t")
    others = compare("t", {"server": sample()}, HERE, known, tolerated, limits.as_json(), limits.binds)
    assert (others.outcome, others.notes) == ("passed", (f"server: {ONCE}",))


def test_a_test_without_a_baseline_passes_with_a_note() -> None:
    assert compared(sample(), sample(spurious=None), "spurious:+0.02").notes == (
        "server: spurious has no baseline: it was not measured then",
        f"server: {ONCE}",
    )
    new = compare("other", {"server": sample()}, HERE, Baseline("main", HERE, {}), Rules())
    assert (new.outcome, new.notes) == ("new", ("not in baseline main",))


def test_a_percentile_of_few_wakeups_is_replaced_by_a_lower_one() -> None:
    few = {"wakeups": 200, "latency_p50": 5_000.0, "latency_p90": 8_000.0}
    then = sample(**few)
    tail = compared(sample(**{**few, "latency_p99": 90_000.0}), then, "latency_p99:+25%")
    assert tail.outcome == "passed"
    assert "compared latency_p90 instead of latency_p99" in tail.notes[0]
    slower = compared(sample(**{**few, "latency_p90": 16_000.0}), then, "latency_p99:+25%")
    assert [r.metric for r in slower.regressions] == ["latency_p90"]
    assert str(slower.regressions[0]).endswith("(too few wakeups for latency_p99)")
    tiny = {"wakeups": 12, "latency_p50": 5_000.0}
    assert compared(
        sample(**{**tiny, "latency_p50": 9_000.0}), sample(**tiny), "latency_max:+25%"
    ).regressions


def test_a_time_is_remeasured_and_a_count_is_not() -> None:
    comparison = compared(
        sample(latency_p99=20_000.0, spurious=0.5), sample(), "latency_p99:+25%,spurious:+0.02"
    )
    calls = iter([sample(latency_p99=30_000.0), sample(latency_p99=11_000.0)])
    after = confirmed(comparison, 2, lambda: {"server": next(calls)})
    assert [r.metric for r in after.regressions] == ["spurious"]
    assert after.measured == 3
    assert "latency_p99 20.0 µs was not confirmed: 11.0 µs when remeasured" in after.notes[-1]
    kept = confirmed(comparison, 2, lambda: {"server": sample(latency_p99=30_000.0)})
    close = compared(sample(cpu_seconds=0.0045), sample(cpu_seconds=0.001), "cpu_seconds:+25%")
    after = close.confirm({"server": sample(cpu_seconds=0.0012)})
    assert "cpu_seconds 4.5 ms was not confirmed: 1.2 ms when remeasured" in after.notes[-1]
    assert "latency_p99 20.0 µs (remeasured: 30.0 µs, 30.0 µs) > 10.0 µs" in str(kept.regressions[0])
    assert confirmed(comparison, 2, dict).outcome == "regressed", (
        "unmeasured doesn't prove that nothing is wrong"
    )


def in_rounds(metric: str, values: Sequence[float]) -> Sample:
    rounds = tuple(sample(**{metric: value}) for value in values)
    return replace(sample(**{metric: statistics.median(values)}), rounds=rounds)


STEADY = (0.100, 0.101, 0.099, 0.102, 0.098)


@pytest.mark.parametrize(
    ("now", "rule", "outcome", "words"),
    [
        (
            (0.120, 0.121, 0.119, 0.122, 0.118),
            "+5%",
            "regressed",
            "+20.0 % (+16.8 % to +23.2 %): worse than baseline main by more than +5%, with 95 % confidence "
            "over 5 rounds then and 5 now",
        ),
        ((0.120, 0.121, 0.119, 0.122, 0.118), "+25%", "passed", None),
        # A value is worse only if it exceeds both.
        ((0.120, 0.121, 0.119, 0.122, 0.118), "+5%+50ms", "passed", None),
        ((0.080, 0.081, 0.079, 0.082, 0.078), "+0%", "passed", None),
        (STEADY, "+5%", "passed", None),
        # Its median is beyond the tolerance: measured once, this would have failed.
        (
            (0.090, 0.111, 0.130, 0.140, 0.100),
            "+5%",
            "passed",
            "5 rounds then and 5 now can't decide whether that is more than +5%; the change is about",
        ),
    ],
)
def test_rounds_then_and_now_are_judged_by_the_interval(
    now: Sequence[float], rule: str, outcome: str, words: str | None
) -> None:
    then = in_rounds("cpu_seconds", STEADY)
    found = compared(in_rounds("cpu_seconds", now), then, f"cpu_seconds:{rule}")
    assert (found.outcome, found.measured) == (outcome, 5)
    said = [*map(str, found.regressions), *found.notes]
    assert len(said) == (words is not None)
    if words is not None:
        assert words in said[0]
    assert not found.doubtful, "a change with an interval is not remeasured"


def test_no_difference_is_a_tilde_and_a_change_carries_its_interval() -> None:
    then = in_rounds("cpu_seconds", STEADY)
    same = compared(in_rounds("cpu_seconds", STEADY[::-1]), then, "spurious:+0.02")
    (number,) = (n for n in same.numbers if n.metric == "cpu_seconds")
    assert number.text.startswith("~ (-")
    assert same.changes == ()
    assert str(next(n for n in same.numbers if n.metric == "spurious")) == "spurious 1.0 %, ~ (exact)"
    half = compared(in_rounds("cpu_seconds", [value / 2 for value in STEADY]), then, "spurious:+0.02")
    assert [change.metric for change in half.changes] == ["cpu_seconds"]
    assert re.search(r"-50\.0 % \(-5\d\.\d % to -4\d\.\d %\)$", str(half.changes[0]))


def test_with_few_rounds_one_number_is_judged_with_a_note() -> None:
    then, slower = in_rounds("cpu_seconds", STEADY[:3]), sample(cpu_seconds=0.2)
    found = compared(slower, then, "cpu_seconds:+5%")
    assert (found.outcome, found.numbers, found.doubtful) == ("regressed", (), True)
    how = "3 rounds in the baseline, 1 now; --netpoll-rounds=5 gives one"
    assert found.notes == (f"server: no 95 % interval: {how}",)
    assert compared(in_rounds("cpu_seconds", STEADY[:5]), then, "cpu_seconds:+5%").numbers
    once = compared(in_rounds("cpu_seconds", STEADY), sample(cpu_seconds=0.2), "cpu_seconds:+5%")
    assert "1 round in the baseline, 5 now; save the baseline again with --netpoll-rounds=4" in once.notes[0]
    four = compared(
        in_rounds("cpu_seconds", STEADY[:4]), in_rounds("cpu_seconds", STEADY[:4]), "cpu_seconds:+5%"
    )
    assert four.numbers, "4 on both sides are enough"
    assert compared(in_rounds("cpu_seconds", STEADY), then, "cpu_seconds:+5%").numbers


def test_in_another_environment_no_time_has_an_interval() -> None:
    sides = in_rounds("cpu_seconds", STEADY), in_rounds("cpu_seconds", STEADY)
    found = compared(*sides, "cpu_seconds:+5%,spurious:+0.02", environment={**HERE, "kernel": "5.4.0"})
    assert {METRICS[n.metric].is_time for n in found.numbers} == {False}
    assert "times were not compared" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("spurious", "'spurious' is not a tolerance"),
        ("spurios:+0.02", "unknown metric 'spurios', did you mean 'spurious'?"),
        ("polls:-5%", "improvements never fail, write polls:+5%"),
        ("spurious:+2%", "spurious is a share already: write +0.02 for 2% of all wakeups"),
        ("latency_p99:+5", "5' has no unit"),
        ("productive_wakeups:+5", "productive_wakeups cannot regress"),
        ("polls:+x%", "'x' is not a number"),
        ("latency_p99:+0.25", 'write "250ms" if it is in seconds, or +25% if it is of the baseline'),
        ("polls:+0.1", "write an integer >= 0, or +10% if it is of the baseline"),
        ("spurious:+2", "write +0.02 for 2 % of all wakeups"),
        ("spurious:+1", "write +0.01 for 1 % of all wakeups"),
        ("latency_p99:+1ms+2ms", "has more than a percentage and an amount"),
        ("latency_p99:+25%+30%", "has more than a percentage and an amount"),
        ("latency_p99:+25%+1ms+3ms", "has more than a percentage and an amount"),
        ("latency_p99:+25%+", "is not a tolerance"),
        ("latency_p99:+25%+3", "'3' has no unit"),
    ],
)
def test_a_wrong_tolerance_is_explained(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        tolerance.parse(text)


def test_tolerances_are_relative_or_in_the_metrics_unit() -> None:
    parsed = tolerance.parse_list("latency_p99:+25%, latency_p50:+1ms,polls:3,polls_per_event:0.5")
    assert [t.limit(100) for t in parsed] == [125, 1_000_100, 103, 100.5]
    with pytest.raises(ValueError, match=re.escape("polls is given twice; if both amounts must be exceeded")):
        tolerance.join([tolerance.parse_list("polls:1"), tolerance.parse_list("polls:2")])


@pytest.mark.parametrize("text", ["+25%+1ms", "+1ms+25%", "25% + 1ms"])
def test_both_of_two_amounts_must_be_exceeded(text: str) -> None:
    both = f"latency_p99:{text}"
    assert tolerance.parse(both).limit(20_000) == 1_020_000, "25 % of 20 µs is noise"
    assert tolerance.parse(both).limit(100_000_000) == 125_000_000, "so is 1 ms of 100 ms"
    assert compared(sample(latency_p99=900_000.0), sample(latency_p99=20_000.0), both).outcome == "passed"
    worse = compared(sample(latency_p99=1_100_000.0), sample(latency_p99=20_000.0), both)
    assert str(worse.regressions[0]) == (
        f"server: latency_p99 1.1 ms > 20.0 µs +{text.replace(' ', '').removeprefix('+')} of baseline main"
    )


def window(wakeups: int, latency: int = 10_000, **more: Any) -> Measurement:
    counters = {**dict.fromkeys(COUNTERS, 0), "wakeups": wakeups, "productive_wakeups": wakeups}
    snapshot = Snapshot(counters, {bucket_of(latency): wakeups} if wakeups else {}, latency)
    return Measurement("server", 1, "/srv", "go1.26.8", 1.0, snapshot, gomaxprocs=2, **more)


def test_each_metric_has_its_own_median_over_the_runs() -> None:
    [merged] = median_of([[window(20, 50_000)], [window(100, 5_000)], [window(30, 20_000)]])
    assert (merged.wakeups, merged.latency_max) == (30, 20_000)
    assert merged.each("wakeups") == [20, 100, 30]
    assert sum(merged.snapshot.histogram.values()) == 150
    [even] = median_of([[window(20)], [window(31)]])
    assert even.wakeups == 25.5
    [none] = median_of([[window(20)], [window(0)]])
    assert none.latency_p50 is None, "it was not measured in one run"


def test_a_run_without_numbers_makes_the_test_unmeasured() -> None:
    limits = resolve([((), {"max_spurious": 0.05})], "t")
    for poor in (window(3), window(30, unmeasured=Reason("gone"))):
        merged = median_of([[window(30)], [poor], [window(30)]])
        assert judge(merged, limits).outcome == "unmeasured"
    merged = median_of([[window(30)], []])
    assert merged[0].unmeasured is not None


def test_a_breach_over_runs_shows_their_spread() -> None:
    merged = median_of([[window(20)], [window(40)], [window(30)]])
    verdict = judge(merged, resolve([((), {"max_wakeups": 1})], "t"))
    assert verdict.reason == "server: wakeups 30 (median of 3 runs, 20 to 40) > max 1"


def test_the_closest_runs_wins_and_the_ini_gives_the_default() -> None:
    assert resolve([((), {"runs": 3}), ((), {"runs": 5})], "t").runs == 3
    assert resolve([((), {})], "t", {"runs": "4"}).runs == 4
    assert resolve([], "t").runs == 1


def made(nodeid: str, *windows: Measurement, **more: Any) -> record.TestRecord:
    measured = median_of([[w] for w in windows])
    return recording.build(nodeid, ("t.py", 1), Verdict("passed"), Limits(), measured, 1.0, **more)


def test_a_baseline_file_has_the_same_bytes_in_any_order_and_holds_only_exact_numbers(
    tmp_path: Path,
) -> None:
    records = [
        made("b", window(20)),
        made("a", window(20, 12_345)),
        made("failed", window(20), error="mine"),
        made("gone", window(20, unmeasured=Reason("gone"))),
    ]
    path = baseline_file.path_of(tmp_path, "main")
    assert path == tmp_path / ".netpoll" / "main.json"
    lines = baseline_file.write(path, HERE, records)
    assert lines == [
        f"{name} is not in it: its own assertion failed, or it is unmeasured" for name in ("failed", "gone")
    ]
    first = path.read_bytes()
    baseline_file.write(path, {**HERE, "bcc": "0.29"}, records[::-1])
    assert path.read_bytes() == first
    loaded = baseline_file.load(tmp_path, "main")
    assert list(loaded.tests) == ["a", "b"]
    assert loaded.environment == HERE
    assert loaded.tests["a"]["server"].metrics["wakeups"] == 20
    assert "ready_calls" not in loaded.tests["a"]["server"].metrics, "it was not measured"


def test_a_baseline_file_keeps_the_rounds_of_varying_metrics_one_per_line(tmp_path: Path) -> None:
    path = baseline_file.path_of(tmp_path, "main")
    baseline_file.write(path, HERE, [made("a[\n 1 ]", *map(window, (20, 31, 25)))])
    text = path.read_text()
    assert '"wakeups": [20, 31, 25]' in text
    assert '"a[\\n 1 ]"' in text
    entry = json.loads(text)["tests"]["a[\n 1 ]"]["server"]
    assert (entry["rounds"], entry["metrics"]["wakeups"]) == (3, 25)
    assert "latency_p50" in entry["metrics"]
    assert "latency_p50" not in entry["values"], "it was the same in all rounds"
    loaded = baseline_file.load(tmp_path, "main").tests["a[\n 1 ]"]["server"]
    assert [one.metrics["wakeups"] for one in loaded.each] == [20, 31, 25]
    assert len({one.metrics["latency_p50"] for one in loaded.each}) == 1
    # A file from before there were rounds.
    del entry["rounds"], entry["values"]
    path.write_text(json.dumps({**json.loads(text), "tests": {"a": {"server": entry}}}))
    (one,) = baseline_file.load(tmp_path, "main").tests["a"]["server"].each
    assert one.metrics["wakeups"] == 25


@pytest.mark.parametrize(
    "change", [{"rounds": 2}, {"rounds": 0}, {"rounds": 10**9}, {"values": {"polls": [1]}}]
)
def test_rounds_that_do_not_fit_together_are_refused(tmp_path: Path, change: Mapping[str, Any]) -> None:
    path = baseline_file.path_of(tmp_path, "main")
    baseline_file.write(path, HERE, [made("a", *map(window, (20, 31, 25)))])
    content = json.loads(path.read_text())
    content["tests"]["a"]["server"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(NetpollError, match=r"tests\.a\.server: its values are not those of"):
        baseline_file.load(tmp_path, "main")


def test_saving_keeps_tests_that_did_not_run(tmp_path: Path) -> None:
    path = baseline_file.path_of(tmp_path, "main")
    baseline_file.write(path, HERE, [made(name, window(20)) for name in ("a", "b", "flaky", "z")])
    first = path.read_bytes()
    lines = baseline_file.write(path, HERE, [made("b", window(20)), made("flaky", window(9), error="mine")])
    assert path.read_bytes() == first
    assert lines == [
        "flaky keeps its old entry: its own assertion failed, or it is unmeasured",
        "kept 2 tests that did not run; delete the file to drop them",
    ]
    assert (
        baseline_file.write(path, HERE, [made(name, window(30)) for name in ("z", "flaky", "b", "a")]) == []
    )
    assert {
        test["server"].metrics["wakeups"] for test in baseline_file.load(tmp_path, "main").tests.values()
    } == {30}


def test_entries_from_another_environment_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    path = baseline_file.path_of(tmp_path, "main")
    baseline_file.write(path, {**HERE, "kernel": "5.4.0"}, [made(name, window(20)) for name in "abc"])
    lines = baseline_file.write(path, HERE, [made("b", window(30)), made("c", window(9), error="mine")])
    assert lines == [
        "c is not in it: its own assertion failed, or it is unmeasured",
        "1 of its tests did not run and are dropped: they were measured elsewhere "
        "(kernel 5.4.0 then, 6.8.0 now)",
    ]
    assert list(baseline_file.load(tmp_path, "main").tests) == ["b"]


def test_saving_over_a_damaged_baseline_reports_that_its_content_is_lost(tmp_path: Path) -> None:
    path = baseline_file.path_of(tmp_path, "main")
    path.parent.mkdir()
    path.write_text("<<<<<<< HEAD")
    [line] = baseline_file.write(path, HERE, [made("a", window(20))])
    assert line.startswith("its former content is lost: it is not JSON")
    assert list(baseline_file.load(tmp_path, "main").tests) == ["a"]


@pytest.fixture
def reports(tmp_path: Path) -> tuple[str, str]:
    """Two saved files of the same test, the second one slower: a baseline and a JSON report."""
    then, now = tmp_path / "then.json", tmp_path / "now.json"
    baseline_file.write(then, HERE, [made("t", window(2000, 10_000)), made("gone", window(20))])
    json_report.write(now, HERE, [made("t", window(2000, 20_000)), made("new", window(20))])
    return str(then), str(now)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 0),
        (["--fail", "latency_p99:+25%"], 1),
        (["--fail", "latency_p99:+150%", "--fail", "spurious:+0"], 0),
        (["--fail", "polls:+1", "--fail", "polls:+2"], 2),
    ],
)
def test_two_files_are_compared_offline(
    reports: tuple[str, str], capsys: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    assert command_line.main(["compare", *reports, *options]) == code
    out, err = capsys.readouterr()
    if code == 2:
        assert "polls is given twice" in err
        return
    assert "10.0 µs → 20.0 µs" in out
    assert "new: not in baseline then.json" in out
    assert "gone: only in then.json" in out
    assert ("t: server: latency_p99 20.0 µs > 10.0 µs +25% of baseline then.json" in out) == (code == 1)
    conclusion = out.splitlines()[-1]
    if not options:
        assert conclusion.startswith("Nothing was judged: ")
        assert not re.search(r"passed|regressed", out)
    elif code == 0:
        assert conclusion == "No regressions beyond the tolerance, in 1 test."
    else:
        assert conclusion == "Of 1 test, 1 regressed."


def test_the_other_way_round_it_improved(reports: tuple[str, str]) -> None:
    assert command_line.main(["compare", *reversed(reports), "--fail", "latency_p99:+25%"]) == 0


def test_files_without_a_test_in_common_do_not_pass(
    tmp_path: Path, reports: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    json_report.write(other, HERE, [made("other", window(20))])
    assert command_line.main(["compare", reports[0], str(other), "--fail", "polls:+1"]) == 1
    assert command_line.main(["compare", reports[0], str(other)]) == 0
    assert capsys.readouterr().out.count("Nothing was compared: no test is in both files.") == 2


def test_changes_are_shown_even_if_nothing_is_judged() -> None:
    then = sample(stale_retries=0, cpu_seconds=1.0, wakeups=2000, polls=2000)
    now = sample(spurious=0.276, stale_retries=150, cpu_seconds=1.1, wakeups=2010, polls=3000)
    comparison = compare("t", {"server": now}, HERE, Baseline("main", HERE, {"t": {"server": then}}), Rules())
    assert [str(change) for change in comparison.changes] == [
        "stale_retries 0 → 150",
        "spurious 1.0 % → 27.6 %",
        "polls 2,000 → 3,000",
    ]
    assert (comparison.outcome, comparison.judged) == ("passed", False)
    test = made("t", window(2000))
    test["comparison"] = recording.comparison_record(comparison)
    table = tables.comparison_table(tables.compared([test]), 120)
    assert table.splitlines()[2].endswith("changed")
    assert "t: server: stale_retries 0 → 150, spurious 1.0 % → 27.6 %, polls 2,000 → 3,000" in table
    page = document.render({}, [test])
    assert 'data-baseline="changed"' in page
    same = replace(comparison, changes=())
    test["comparison"] = recording.comparison_record(same)
    assert tables.comparison_table(tables.compared([test]), 120).splitlines()[2].endswith("the same")


def test_limited_metrics_and_large_growth_come_before_times() -> None:
    then = sample(latency_p50=1_000.0, polls=100, parked_growth=0, futile_calls=100)
    now = sample(latency_p50=90_000.0, polls=400, parked_growth=20, futile_calls=150)
    known = Baseline("main", HERE, {"t": {"server": then}})
    expected = ["parked_growth", "polls", "futile_calls", "latency_p50"]
    for limits, order in (
        ({}, expected),
        ({"max_futile_calls": 900}, sorted(expected, key="futile_calls".__ne__)),
        ({"max_futile_calls_per_second": 900}, sorted(expected, key="futile_calls".__ne__)),
    ):
        comparison = compare("t", {"server": now}, HERE, known, Rules(), limits)
        assert [change.metric for change in comparison.changes] == order
        test = made("t", window(2000))
        test["comparison"] = recording.comparison_record(comparison)
        test["limits"] = limits
        found = delta.delta([test])
        assert found is not None
        assert [row.metric for row in found.rows] == order


def test_percentiles_of_few_wakeups_are_not_changes() -> None:
    few = {"latency_p99": None, "sched_latency_p50": 900.0, "sched_latency_p999": 960.0}
    grown = {"latency_p99": None, "sched_latency_p50": 9_000.0, "sched_latency_p999": 9_200.0}
    for wakeups, shown in (
        (5, []),
        (200, ["sched_latency_p50"]),
        (10_000, ["sched_latency_p50", "sched_latency_p999"]),
    ):
        counts = {"wakeups": wakeups, "events": wakeups}
        known = Baseline("main", HERE, {"t": {"server": sample(**few, **counts)}})
        found = compare("t", {"server": sample(**grown, **counts)}, HERE, known, Rules()).changes
        assert [change.metric for change in found if change.metric.startswith("sched")] == shown


def test_times_from_another_machine_and_shares_of_few_wakeups_are_not_changes() -> None:
    known = Baseline("main", {**HERE, "kernel": "5.4.0"}, {"t": {"server": sample()}})
    now = sample(latency_p99=90_000.0, polls_per_event=1.5)
    (change,) = compare("t", {"server": now}, HERE, known, Rules()).changes
    assert str(change) == "polls_per_event 1.00 → 1.50"
    few = {"wakeups": 5, "spurious": 0.9}
    known = Baseline("main", HERE, {"t": {"server": sample(wakeups=5)}})
    assert compare("t", {"server": sample(**few)}, HERE, known, Rules()).changes == ()


def test_unreadable_files_and_unknown_commands_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"schema": "other"}))
    for arguments in (["compare", "no", "no"], ["compare", *[str(tmp_path / "x.json")] * 2], ["compar"], []):
        assert command_line.main(arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_two_files_with_rounds_are_compared_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then, now = tmp_path / "then.json", tmp_path / "now.json"
    baseline_file.write(then, HERE, [made("t.py::t", *map(window, (20, 21, 22, 23, 24)))])
    json_report.write(now, HERE, [made("t.py::t", *map(window, (100, 105, 110, 115, 120)))])
    assert command_line.main(["compare", str(then), str(now), "--fail=wakeups:+10"]) == 1
    head, _, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["test", "metric", "then", "now", "change"]
    assert re.fullmatch(
        r"t\.py::t +wakeups +22 +110 +\+400\.0 % +\+3\d\d\.\d % to \+4\d\d\.\d % +WORSE", first
    )
    assert command_line.main(["compare", str(then), str(now), "--fail=wakeups:+300"]) == 0
    assert "5 rounds then, 5 now." in capsys.readouterr().out


def test_toolchains_of_a_test_are_grouped() -> None:
    records = [
        made(f"t.py::{test}", window(20), toolchain=go)
        for go in ("go1.19.8", "go1.21")
        for test in (f"test_a[x-{go}]", f"test_b[{go}]")
    ]
    _, _, *lines = [line.split()[0] for line in tables.toolchain_table(records, 80).splitlines()]
    assert lines == [
        "t.py::test_a[x]",
        "go1.19.8",
        "go1.21",
        "t.py::test_b",
        "go1.19.8",
        "go1.21",
    ]


MANY_LIMITS = (
    "futile_calls",
    "io_calls_per_wakeup",
    "deadline_wakeups",
    "wakeups_per_event",
    "stale_retries",
)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("services", [1, 2])
def test_toolchains_that_do_not_fit_side_by_side_are_columns(width: int, services: int) -> None:
    gos = [f"go1.{minor}.10" for minor in range(19, 28)]
    records = [
        recording.build(
            f"t.py::test_{metric}[{go}]",
            ("t.py", 1),
            Verdict("passed"),
            resolve([((), {f"max_{metric}": 7})], "t"),
            [replace(window(20), service=f"s{number}") for number in range(services)],
            1.0,
            toolchain=go,
        )
        for go in gos
        for metric in MANY_LIMITS
    ]
    lines = tables.toolchain_table(records, width).splitlines()
    assert max(map(len, lines)) <= width
    start = lines.index("t.py::test_deadline_wakeups")
    *block, _ = [*lines[start + 1 :], "t.py"]
    block = block[: next(n for n, line in enumerate(block) if line.startswith("t.py"))]
    named = [word for line in block for word in line.split() if word.startswith("go")]
    assert named == gos * services, "each toolchain, once for each service"
    assert {line.split()[0] for line in block} - {*gos, "s0", "s1"} == {"deadline_wakeups"}
    wide = tables.toolchain_table(records, 300).splitlines()
    assert "deadline_wakeups" in wide[0], "a row for each toolchain, where there is room"


def test_columns_without_a_number_on_either_side_are_left_out() -> None:
    lines = compared_table(then={"spurious": 0.0}, now={"spurious": 0.0})
    assert "spurious" in lines[0]
    assert "response" not in lines[0]
    lines = compared_table(then={"response_p99": 5e6}, now={"response_p99": None})
    assert "response" in lines[0], "it can no longer be measured"
    assert f"5.0 ms → {units.NOT_MEASURED}" in lines[2]


def test_a_service_that_the_baseline_does_not_have_is_not_called_the_same() -> None:
    lines = compared_table(then={"spurious": 0.0}, now={"spurious": 0.5}, name="another")
    assert lines[2].endswith("no baseline")


def test_what_got_worse_is_named_below_a_table_without_room_for_it() -> None:
    metrics = ("io_calls", "futile_calls", "dispatches", "ready_calls", "events", "polls")
    lines = compared_table(
        80,
        *(f"{metric}:+1" for metric in metrics),
        then=dict.fromkeys(metrics, 1_000_000),
        now=dict.fromkeys(metrics, 2_000_000),
    )
    assert max(map(len, lines)) <= 80
    assert lines[2].endswith("WORSE")
    text = " ".join(map(str.strip, lines))
    for metric in metrics:
        assert metric in lines[0] or f"{metric} 1,000,000 → 2,000,000 (WORSE)" in text, metric
    wide = compared_table(
        300, *(f"{m}:+1" for m in metrics), then=dict.fromkeys(metrics, 1), now=dict.fromkeys(metrics, 9)
    )
    assert all(metric in wide[0] for metric in metrics)


def compared_table(
    width: int = 120, *rules: str, then: dict[str, Any], now: dict[str, Any], name: str = "server"
) -> list[str]:
    known = Baseline("main", HERE, {"t.py::test_it": {"server": sample(**then)}})
    allowed = Rules(tolerance.join([[tolerance.parse(rule)] for rule in rules]))
    latest = {name: sample(**now)}
    comparison = compare("t.py::test_it", latest, HERE, known, allowed)
    test = tables.Compared("t.py::test_it", recording.comparison_record(comparison), latest)
    return tables.comparison_table([test], width).splitlines()


def test_every_metric_that_can_regress_can_be_tolerated() -> None:
    for metric in METRICS.values():
        if metric.more_is_worse and metric.unit != "share":
            assert tolerance.parse(f"{metric.name}:+10%").limit(100) == pytest.approx(110)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_of_runs_keeps_the_spread_of_limited_metrics(width: int) -> None:
    [repeated] = median_of([[window(20)], [window(30)], [window(40)]])
    demanded = resolve([((), {"max_productive_wakeups": 90, "max_latency_p99": "5ms", "runs": 3})], "t")
    made = recording.build("t.py::test", ("t.py", 1), Verdict("passed"), demanded, [repeated], 1.0)
    [(title, table)] = tables.further_tables([made], width)
    assert title == "netpoll: minimum and maximum over the runs"
    head, _, row = table.splitlines()
    assert head.endswith("other limits")
    assert row.endswith("productive_wakeups 20 to 40")
    assert "other limits" not in tables.further_tables([{**made, "limits": {"max_spurious": 1}}], width)[0][1]
    assert max(map(len, table.splitlines())) <= width
