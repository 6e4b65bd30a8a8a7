from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import ends
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import Limits, resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS, METRICS, PARKED_METRICS
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import Breach, Death, Verdict, judge
from pytest_netpoll.session import extensions
from tests.made_up import parked_group, with_parked

HALF_SPURIOUS = {"wakeups": 3998, "productive_wakeups": 1999, "spurious_wakeups": 1999, "events": 3998}
HEALTHY = {"wakeups": 200, "productive_wakeups": 200, "events": 200, "polls": 210}


def measured(
    counts: Mapping[str, int], *, service: str = "server", latency: int | None = None
) -> Measurement:
    histogram = {} if latency is None else {bucket_of(latency): 1}
    snapshot = Snapshot({**dict.fromkeys(COUNTERS, 0), **counts}, histogram, latency or 0)
    return Measurement(service, 42, "/srv/server", "go1.26.6", 1.0, snapshot)


def limits(*marks: Mapping[str, object]) -> Limits:
    return resolve([((), mark) for mark in marks], "test_echo")


def test_limits_that_hold_pass() -> None:
    demanded = limits({"max_spurious": 0, "max_latency_p99": "5ms", "min_wakeups": 200, "max_polls": 210})
    assert judge([measured(HEALTHY, latency=5_000_000)], demanded) == Verdict("passed")


@pytest.mark.parametrize(
    ("mark", "measurement", "line"),
    [
        (
            {"max_spurious": 0.05},
            measured(HALF_SPURIOUS),
            "server: spurious 50.0 % (1,999 of 3,998 wakeups) > max 5.0 %",
        ),
        (
            {"max_latency_p99": "5ms"},
            measured(HEALTHY, latency=12_300_000),
            "server: latency_p99 12.3 ms > max 5.0 ms",
        ),
        (
            {"max_polls_per_second": 104.5},
            replace(measured(HEALTHY), window_seconds=2.0),
            "server: polls_per_second 105.00 (210 in 2.00 s) > max 104.50",
        ),
        ({"min_wakeups": 100}, measured({"wakeups": 3}), "server: wakeups 3 < min 100"),
        ({"max_polls_per_event": 1}, measured(HEALTHY), "server: polls_per_event 1.05 > max 1.00"),
        ({"min_events": 15000}, measured(HEALTHY), "server: events 200 < min 15,000"),
    ],
)
def test_a_broken_limit_fails_with_one_line(
    mark: Mapping[str, object], measurement: Measurement, line: str
) -> None:
    verdict = judge([measurement], limits(mark))
    assert (verdict.outcome, verdict.reason) == ("failed", line)
    assert [str(breach) for breach in verdict.breaches] == [line]


@pytest.mark.parametrize(
    ("measured", "limit", "line"),
    [
        (0.0504, 0.05, "a: spurious 5.04 % > max 5.00 %"),
        (0.0004, 0, "a: spurious 0.04 % > max 0.00 %"),
        (0.05 + 1e-15, 0.05, "a: spurious 0.050000000000001 > max 0.05"),
    ],
)
def test_a_breach_shows_enough_digits_to_see_it(measured: float, limit: float, line: str) -> None:
    assert str(Breach("a", "spurious", "max", measured, limit)) == line


def test_a_rate_limit_uses_the_windows_length() -> None:
    long = replace(measured({"polls": 1000}), window_seconds=100.0)
    assert judge([long], limits({"max_polls_per_second": 10})) == Verdict("passed")
    assert judge([replace(long, window_seconds=99.0)], limits({"max_polls_per_second": 10})).breaches
    short = judge([replace(long, window_seconds=0.005)], limits({"max_polls_per_second": 10})).reason
    assert short is not None
    assert " in 5.0 ms) > max 10.00" in short


def test_the_rate_of_a_repeated_test_is_the_median_of_its_runs_rates() -> None:
    runs = [replace(measured({"polls": n}), window_seconds=s) for n, s in ((10, 1.0), (40, 2.0), (90, 3.0))]
    [m] = median_of([[run] for run in runs])
    assert m.polls_per_second == 20
    verdict = judge([m], limits({"max_polls_per_second": 19}))
    assert verdict.reason == ("server: polls_per_second 20.00 (median of 3 runs, 10.00 to 30.00) > max 19.00")


def test_a_limit_on_ready_calls_judges_the_programs_own() -> None:
    busy = measured({"ready_calls": 121, "runtime_ready_calls": 118})
    assert judge([busy], limits({"max_ready_calls": 3})) == Verdict("passed")
    assert judge([busy], limits({"max_ready_calls_per_second": 3})) == Verdict("passed")
    verdict = judge([busy], limits({"max_ready_calls": 2}))
    assert verdict.reason == "server: ready_calls 3 (besides 118 of the runtime's own) > max 2"
    verdict = judge([busy], limits({"max_ready_calls_per_second": 2}))
    assert verdict.reason == (
        "server: ready_calls_per_second 3.00 (3 in 1.00 s, besides 118 of the runtime's own) > max 2.00"
    )
    # In a window without recorded callers all of them count.
    assert judge([measured({"ready_calls": 121})], limits({"max_ready_calls": 3})).outcome == "failed"


def test_the_rate_of_an_unmeasured_count_is_unmeasured() -> None:
    verdict = judge([measured(HEALTHY)], limits({"max_ready_calls_per_second": 5}))
    assert verdict.outcome == "unmeasured"
    assert "ready_calls_per_second was not measured: ready calls were not counted" in (verdict.reason or "")


def test_every_broken_limit_of_every_service_has_its_line() -> None:
    verdict = judge(
        [measured(HEALTHY, service="a"), measured(HEALTHY, service="b")],
        limits({"max_polls": 1, "max_events": 1}),
    )
    assert [(breach.service, breach.metric) for breach in verdict.breaches] == [
        ("a", "polls"),
        ("a", "events"),
        ("b", "polls"),
        ("b", "events"),
    ]
    assert verdict.reason is not None
    assert len(verdict.reason.splitlines()) == 4


@pytest.mark.parametrize(
    ("mark", "measurements", "reason"),
    [
        (
            {"max_polls": 1},
            [],
            "no Go service ran during the test\n"
            "  fix: use the go_service fixture; go_service(port=…), pid=… or process=… attaches to one "
            "that is already running",
        ),
        (
            {"service": "x", "max_polls": 1},
            [],
            "no service named 'x' was measured (no Go service ran during the test)",
        ),
        (
            {"service": "x"},
            [measured(HEALTHY, service="a"), measured(HEALTHY, service="b")],
            "no service named 'x' was measured (measured: a, b)",
        ),
        (
            {"max_spurious": 0.05},
            [measured({"wakeups": 3, "spurious_wakeups": 3})],
            "server: only 3 wakeups; spurious needs at least 10\n"
            "  fix: send more traffic, or set min_wakeups=",
        ),
        (
            {"max_latency_p50": "1ms", "min_wakeups": 100},
            [measured({"wakeups": 50}, latency=10**9)],
            "server: only 50 wakeups; latency_p50 needs at least 100\n"
            "  fix: send more traffic, or set min_wakeups=",
        ),
        (
            {"max_latency_max": "1ms"},
            [measured({"wakeups": 30, "productive_wakeups": 2}, latency=1)],
            "server: only 2 resolved wakeups; latency_max needs at least 10\n"
            "  fix: send more traffic, or set min_wakeups=",
        ),
        (
            {"max_spurious": 0.05, "min_wakeups": 0},
            [measured({})],
            "server: spurious was not measured: no wakeup was resolved in the window",
        ),
        (
            {"max_ready_calls": 5},
            [measured(HEALTHY)],
            "server: ready_calls was not measured: ready calls were not counted\n  fix: --netpoll-goready=on",
        ),
        (
            {"max_run_delay_seconds": 5},
            [measured(HEALTHY)],
            "server: run_delay_seconds was not measured: there is no /proc/PID/schedstat: this kernel was "
            "built without CONFIG_SCHED_INFO",
        ),
        (
            {},
            [replace(measured(HEALTHY), unmeasured=Reason("the service is gone"))],
            "server: the service is gone",
        ),
        (
            {},
            [measured({"lost": 1200})],
            "server: 1,200 lost, so the numbers are not exact",
        ),
    ],
)
def test_an_unmeasured_limit_does_not_pass(
    mark: Mapping[str, object], measurements: list[Measurement], reason: str
) -> None:
    assert judge(measurements, limits(mark)) == Verdict("unmeasured", (Reason(reason),))


def test_a_bare_marker_without_services_has_nothing_to_measure() -> None:
    assert judge([], limits({})) == Verdict("passed")


def test_a_breach_in_inexact_numbers_does_not_count() -> None:
    verdict = judge([measured(HALF_SPURIOUS | {"lost": 1})], limits({"max_spurious": 0.05}))
    assert (verdict.outcome, verdict.breaches) == ("unmeasured", ())


def test_a_certain_breach_outweighs_a_service_that_was_not_measured() -> None:
    gone = replace(measured(HEALTHY, service="b"), unmeasured=Reason("the service is gone"))
    verdict = judge([gone, measured(HEALTHY, service="a")], limits({"max_polls": 1}))
    assert verdict.outcome == "failed"
    assert verdict.reason == "a: polls 210 > max 1\nb: the service is gone"
    assert [breach.service for breach in verdict.breaches] == ["a"]


def test_counts_are_judged_also_over_few_wakeups() -> None:
    verdict = judge([measured({"wakeups": 3, "polls": 9})], limits({"max_spurious": 0.05, "max_polls": 8}))
    assert verdict.outcome == "failed"
    assert [breach.metric for breach in verdict.breaches] == ["polls"]


def test_few_wakeups_are_judged_where_the_minimum_allows_them() -> None:
    few = measured({"wakeups": 3, "productive_wakeups": 1, "spurious_wakeups": 2})
    assert judge([few], limits({"max_spurious": 0.05, "min_wakeups": 3})).outcome == "failed"


def test_a_limit_for_one_service_does_not_bind_the_others() -> None:
    healthy, sick = measured(HEALTHY, service="a"), measured(HALF_SPURIOUS, service="b")
    gone = replace(sick, unmeasured=Reason("the service is gone"))
    demanded = limits({"service": "a", "max_spurious": 0.05})
    assert judge([healthy, sick], demanded).outcome == "passed"
    assert judge([healthy, gone], demanded).outcome == "passed"


def test_a_services_own_limit_is_judged_instead_of_the_general_one() -> None:
    demanded = limits({"max_spurious": 0.05}, {"service": "b", "max_spurious": 0.6})
    healthy, sick = measured(HEALTHY, service="a"), measured(HALF_SPURIOUS, service="b")
    assert judge([healthy, sick], demanded).outcome == "passed"


def test_report_mode_passes_broken_limits_and_still_lists_them() -> None:
    verdict = judge([measured(HALF_SPURIOUS)], limits({"max_spurious": 0.05}), "report")
    assert (verdict.outcome, verdict.reason) == ("passed", None)
    assert [breach.metric for breach in verdict.breaches] == ["spurious"]
    assert verdict.gate == "failed"


@pytest.mark.parametrize("measurements", [[], [measured({"wakeups": 3})]])
def test_report_mode_shows_gate_modes_outcome_for_limits_that_could_not_be_checked(
    measurements: list[Measurement],
) -> None:
    demanded = limits({"max_spurious": 0.05})
    verdict = judge(measurements, demanded, "report")
    assert verdict.outcome == "unmeasured"
    assert verdict == judge(measurements, demanded, "gate")


def test_in_report_mode_a_certain_breach_outweighs_a_service_that_was_not_measured() -> None:
    gone = replace(measured(HEALTHY, service="b"), unmeasured="the service is gone")
    verdict = judge([gone, measured(HEALTHY, service="a")], limits({"max_polls": 1}), "report")
    assert (verdict.outcome, verdict.gate) == ("passed", "failed")


@pytest.mark.parametrize("mode", ["gate", "report", "off"])
def test_a_service_that_died_fails_the_test_in_every_mode(mode: Literal["gate", "report", "off"]) -> None:
    gone = replace(measured(HEALTHY), unmeasured="service 'server' ended during the test")
    how = Reason("service 'server' ended during the test", why="exit status 2: panic: boom")
    death = Death("server", how)
    assert judge([gone], limits({"max_polls": 1}), mode, deaths=[death]) == Verdict(
        "failed", (Reason(f"server: {death.how}"),), deaths=(death,)
    )


def test_a_reason_that_affects_all_services_is_reported_once() -> None:
    gone = [replace(measured(HEALTHY, service=name), unmeasured=Reason("the agent ended")) for name in "abc"]
    assert judge(gone, limits({"max_polls": 1})) == Verdict(
        "unmeasured", (Reason("a, b, c: the agent ended"),)
    )


@pytest.mark.parametrize(
    ("mode", "outcome"), [("gate", "unmeasured"), ("report", "unmeasured"), ("off", "passed")]
)
def test_inexact_numbers_count_in_every_mode_that_measures(
    mode: Literal["gate", "report", "off"], outcome: str
) -> None:
    assert judge([measured({"lost": 1})], limits({}), mode).outcome == outcome


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"measured": None}, "measured is not a finite number"),
        ({"measured": True}, "measured is not a finite number"),
        ({"limit": float("nan")}, "limit is not a finite number"),
        ({"limit": float("-inf")}, "limit is not a finite number"),
        ({"kind": "most"}, 'kind is neither "max" nor "min"'),
        ({"metric": ["polls"]}, "metric is not a string"),
        ({"service": None}, "service is not a string"),
    ],
)
def test_a_hooks_breach_that_cannot_be_shown_is_refused(change: Mapping[str, Any], complaint: str) -> None:
    breach = Breach("server", "polls a second", "max", 2, 1)
    answers = [[breach], replace(breach, **change)]
    hooks = dict.fromkeys(("pytest_netpoll_measured", "pytest_netpoll_columns"), lambda **_: [])
    hooks["pytest_netpoll_breaches"] = lambda **_: answers
    item: Any = SimpleNamespace(ihook=SimpleNamespace(**hooks))
    refused = extensions.ask(item, [measured(HEALTHY)], limits({}))
    assert refused.breaches == []
    assert re.search(rf"_breaches must .*: {re.escape(complaint)} in Breach", str(refused.error))
    answers.pop()
    assert extensions.ask(item, [measured(HEALTHY)], limits({})) == ([breach], [{}], None)


def test_too_few_wakeups_name_the_service_that_had_them() -> None:
    quiet, busy = measured({"wakeups": 3}), measured({**HEALTHY}, service="front")
    [reason] = judge([quiet, busy], limits({"max_spurious": 0.05})).reasons
    assert reason.what == "server: only 3 wakeups; spurious needs at least 10"
    assert (reason.fix or "").endswith(
        'if the limits are about front, which had 200 wakeups, write service="front"'
    )
    for other in (measured({"wakeups": 4}, service="front"), replace(busy, unmeasured=Reason("lost"))):
        reason = judge([quiet, other], limits({"max_spurious": 0.05})).reasons[-1]
        assert reason.fix == "send more traffic, or set min_wakeups="


@pytest.mark.parametrize("metric", ["parked_growth", "abandoned_descriptors", "stuck_goroutines"])
def test_a_broken_limit_on_parked_goroutines_has_a_fix(metric: str) -> None:
    counts = {**dict.fromkeys(PARKED_METRICS, 0), metric: 5}
    [reason] = judge([measured({**HEALTHY, **counts})], limits({f"max_{metric}": 1})).reasons
    assert reason.what == f"server: {metric} 5 > max 1"
    assert reason.fix
    assert RULES["NP501"].fix == reason.fix or metric != "abandoned_descriptors"


def test_two_verdicts_on_one_test_are_joined_without_repeating_a_death() -> None:
    died = Death("echo", Reason("ended with exit status 2 during the window"))
    window = Verdict("failed", (died.reason,), deaths=(died,))
    again = Death("echo", Reason("ended with exit status 2 during the test"))
    broken = judge([measured(HEALTHY)], limits({"max_polls": 1}), deaths=[again])
    both = broken.without_deaths_of(window).joined_to(window)
    assert both.outcome == "failed"
    assert both.deaths == (died,)
    assert [reason.what for reason in both.reasons] == [
        "echo: ended with exit status 2 during the window",
        "server: polls 210 > max 1",
    ]
    reported = judge([measured(HEALTHY)], limits({"max_polls": 1}), "report")
    few = Verdict("unmeasured", (Reason("only 3 wakeups"),))
    assert (reported.joined_to(few).outcome, reported.joined_to(few).gate) == ("unmeasured", "failed")


def test_the_fix_of_a_growth_is_about_the_end_that_the_service_is_and_dialers_come_first() -> None:
    listener = parked_group(1, "127.0.0.1:80", kind="listener", growth=0)
    accepted = parked_group(9, "127.0.0.1:80", "127.0.0.1:5001", "127.0.0.1:5002")
    back = with_parked("back", listener, accepted, abandoned=9)
    front = with_parked("front", parked_group(9, None, "127.0.0.1:80"))
    made = ends.dialers_first(ends.with_names([back, front]))
    assert [m.service for m in made] == ["front", "back"]
    assert made[0].offenders[0].peer_service == "back"
    of_front, of_back = (breach.fix for breach in judge(made, limits({"max_parked_growth": 0})).breaches)
    assert of_front is not None
    assert of_front.startswith("close each connection that front dials, here to back (127.0.0.1:80); if it")
    assert of_back == "close the connection when its client has gone."
    # A test may leave its own clients open.
    [breach] = judge([with_parked("back", listener, accepted)], limits({"max_parked_growth": 0})).breaches
    assert (breach.fix or "").startswith("close the clients, which are still connected, or ")


@pytest.mark.parametrize(
    ("local", "peer", "listening", "service", "fix"),
    [
        (5001, 80, {80, 22}, None, "close each connection that server dials, here to 127.0.0.1:80; if it"),
        (5001, 80, set(), "back", "close each connection that server dials, here to back (127.0.0.1:80); if"),
        # Its acceptor isn't parked.
        (80, 5001, {80}, None, "close the connection when its client has gone."),
        # One on another machine, or whose listener has been closed.
        (5001, 80, {22}, None, METRICS["parked_growth"].fix),
    ],
)
def test_the_fix_of_one_connection_is_about_one_end_if_somebody_listens_there(
    local: int, peer: int, listening: set[int], service: str | None, fix: str
) -> None:
    one = replace(parked_group(1, f"127.0.0.1:{local}", f"127.0.0.1:{peer}"), peer_service=service)
    made = replace(with_parked("server", one, abandoned=1), listening=frozenset(listening))
    [breach] = judge([made], limits({"max_parked_growth": 0})).breaches
    assert breach.fix is not None
    assert breach.fix.startswith(fix)


@pytest.mark.parametrize(
    "one",
    [
        parked_group(1, "127.0.0.1:5001", "127.0.0.1:80"),  # one, of which nothing tells the end
        parked_group(2, None, "127.0.0.1:80", "127.0.0.1:81"),
        parked_group(9, None, kind="unix"),
    ],
    ids=["one", "several peers", "unix"],
)
def test_where_it_is_not_certain_who_dialed_the_fix_is_about_both_ends(one: Offender) -> None:
    [breach] = judge([with_parked("server", one)], limits({"max_parked_growth": 0})).breaches
    assert breach.fix == METRICS["parked_growth"].fix
