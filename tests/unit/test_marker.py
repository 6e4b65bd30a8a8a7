from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model.limits import Limits, help_text, resolve
from pytest_netpoll.model.metrics import METRICS

WHERE = "test_echo.py::test_echo"


def limits(*marks: Mapping[str, object], defaults: Mapping[str, str] | None = None) -> Limits:
    """The limits of markers given by their kwargs, closest first."""
    return resolve([((), mark) for mark in marks], WHERE, defaults)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_limited_from_both_sides(name: str) -> None:
    value = {"ns": "5ms", "s": "5ms", "share": "5%"}.get(METRICS[name].unit, 20)
    parsed = {"ns": 5_000_000, "s": 0.005, "share": 0.05}.get(METRICS[name].unit, 20)
    for kind in ("max", "min"):
        (limit,) = limits({f"{kind}_{name}": value}).limits
        assert (limit.kind, limit.metric, limit.value, limit.text) == (kind, name, parsed, str(value))


@pytest.mark.parametrize("name", [m.name for m in METRICS.values() if m.unit == "count" and m.adds_up])
def test_the_rate_of_every_count_can_be_limited(name: str) -> None:
    (limit,) = limits({f"max_{name}_per_second": "2.5"}).limits
    assert (limit.kind, limit.metric, limit.value, limit.base) == ("max", f"{name}_per_second", 2.5, name)
    assert limits({f"max_{name}_per_second": 2.5}).as_json() == {f"max_{name}_per_second": 2.5}


def test_metrics_that_are_not_sums_have_no_rate() -> None:
    for name in ("runq_max", "pending_wakeups", "spurious", "latency_p99", "cpu_seconds"):
        with pytest.raises(UsageError, match=f"unknown limit 'max_{name}_per_second'"):
            limits({f"max_{name}_per_second": 2})


def test_a_bare_marker_has_no_limits() -> None:
    assert limits({}) == Limits()
    assert limits({}).as_json() == {}


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        ({"max_spuriuos": 0.05}, "unknown limit 'max_spuriuos', did you mean 'max_spurious'?"),
        ({"spurious": 0.05}, "unknown limit 'spurious', did you mean 'max_spurious'?"),
        ({"spuriuos": 0.05}, "did you mean 'max_spurious'?"),
        ({"latncy_p99": "5ms"}, "did you mean 'max_latency_p99'?"),
        ({"max_latency": "5ms"}, "unknown limit 'max_latency', did you mean 'max_latency_"),
        ({"polls_per_second": 3}, "did you mean 'max_polls_per_second'?"),
        ({"max_futile_cals_per_second": 3}, "did you mean 'max_futile_calls_per_second'?"),
        ({"servce": "a"}, "did you mean 'service'?"),
        ({"runs": 0}, "runs=0 is not an integer > 0"),
        ({"runs": "often"}, "runs='often' is not an integer > 0"),
        ({"runs": True}, "runs=True is not an integer > 0"),
        ({"max_latency_p99": 5}, 'bad limit max_latency_p99=5: 5 has no unit: write "5ms"'),
        ({"max_spurious": 5}, "bad limit max_spurious=5: 5 is out of range"),
        ({"max_spurious": None}, "bad limit max_spurious=None"),
        ({"max_wakeups": True}, "bad limit max_wakeups=True"),
        ({"max_polls": 3.0}, "bad limit max_polls=3.0"),
        ({"max_polls": "50/s"}, "\n  fix: max_polls_per_second=50"),
        ({"max_polls_per_event": float("nan")}, "not finite"),
        ({"service": ""}, "service='' is not a name"),
        ({"service": None}, "service=None is not a name"),
        ({"service": ["a", "b"]}, "service=['a', 'b'] is not a name"),
        ({"min_polls": 5, "max_polls": 4}, "no value can satisfy both max_polls=4 and min_polls=5"),
        (
            {"max_wakeups": 5, "max_spurious": 0.1},
            "both max_wakeups=5 and min_wakeups=10 (implied by the limits on spurious or latency)",
        ),
    ],
)
def test_a_wrong_marker_is_a_usage_error_that_names_the_test(
    mark: Mapping[str, object], complaint: str
) -> None:
    with pytest.raises(UsageError) as error:
        limits(mark)
    assert complaint in str(error.value)
    assert str(error.value).startswith(f"{WHERE}: ")


def test_positional_arguments_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match=rf"{WHERE}: .*no positional arguments, got 0.05"):
        resolve([((0.05,), {})], WHERE)


def test_the_closest_marker_wins_limit_by_limit() -> None:
    merged = limits(
        {"max_spurious": 0.1},
        {"max_spurious": 0.2, "max_polls": 20},
        defaults={"max_spurious": "30%", "max_polls": "30", "max_events": "30"},
    )
    assert {limit.name: limit.value for limit in merged.limits} == {
        "max_spurious": 0.1,
        "max_polls": 20,
        "max_events": 30,
    }


def test_limits_of_different_markers_may_contradict_each_other_only_after_the_merge() -> None:
    assert limits({"min_polls": 1, "max_polls": 4}, {"min_polls": 9}).as_json()["min_polls"] == 1
    with pytest.raises(UsageError, match="max_polls=4 and min_polls=9"):
        limits({"max_polls": 4}, {"min_polls": 9})


def test_limits_contradict_only_if_they_bind_the_same_service() -> None:
    limits({"service": "a", "max_polls": 4}, {"service": "b", "min_polls": 9})
    with pytest.raises(UsageError, match="max_polls=4 and min_polls=9"):
        limits({"service": "a", "max_polls": 4}, {"min_polls": 9})


@pytest.mark.parametrize("general_first", [True, False])
def test_a_services_own_limit_overrides_the_general_one_however_far(general_first: bool) -> None:
    marks: list[Mapping[str, object]] = [{"max_polls": 10}, {"service": "a", "max_polls": 99}]
    merged = limits(*(marks if general_first else reversed(marks)))
    assert [limit.value for limit in merged.for_service("a")] == [99]
    assert [limit.value for limit in merged.for_service("b")] == [10]


def test_markers_for_different_services_are_combined() -> None:
    merged = limits(
        {"service": "a", "max_polls": 1}, {"service": "b", "max_polls": 2}, {"service": "a", "max_polls": 3}
    )
    assert [limit.value for limit in merged.for_service("a")] == [1]
    assert [limit.value for limit in merged.for_service("b")] == [2]
    assert merged.for_service("c") == ()
    assert merged.services == ("a", "b")


@pytest.mark.parametrize(
    ("marks", "levels", "expected"),
    [
        ([{"max_polls": 1}, {"service": "a"}], "tc", {"a": 1, "b": None}),
        ([{"max_polls": 1}, {"max_events": 2}, {"service": "a", "max_polls": 3}], "tcm", {"a": 1, "b": None}),
        ([{"max_polls": 1}, {"service": "a"}, {"service": "b"}], "tcc", {"a": 1, "b": 1, "c": None}),
        ([{"max_polls": 1}, {"service": "a"}], "tt", {"a": 1, "b": 1}),
        ([{"max_polls": 1}, {}, {"service": "a"}], "tcc", {"a": 1, "b": 1}),
        ([{"service": "b", "max_polls": 1}, {"service": "a", "max_polls": 2}], "tc", {"a": 2, "b": 1}),
        ([{"max_polls": 1}, {"service": "b"}, {"service": "a"}], "ttc", {"a": 1, "b": None, "c": None}),
    ],
    ids=["inherits", "through a level", "both", "beside", "around for all", "its own", "only from around"],
)
def test_a_marker_is_about_the_services_of_the_markers_around_it(
    marks: list[Mapping[str, object]], levels: str, expected: Mapping[str, int | None]
) -> None:
    merged = resolve([((), mark) for mark in marks], "test", levels=levels)
    polls = {
        name: next((limit.value for limit in merged.for_service(name) if limit.metric == "polls"), None)
        for name in expected
    }
    assert polls == expected


def test_a_marker_for_some_services_leaves_the_others_out() -> None:
    assert limits({}).binds("b")
    assert limits({"max_polls": 1}).binds("b")
    assert limits({"service": "a"}).binds("a")
    assert not limits({"service": "a"}).binds("b")
    assert limits({"service": "a"}, {"max_polls": 1}).binds("b")


@pytest.mark.parametrize(
    "mark", [{"max_spurious": 0.1}, {"min_latency_p50": "1us"}, {"max_latency_max": "1s"}]
)
def test_statistics_over_wakeups_imply_a_minimum_of_them(mark: Mapping[str, object]) -> None:
    implied = limits(mark).for_service("a")[-1]
    assert (implied.name, implied.value, implied.implied) == ("min_wakeups", 10, True)


@pytest.mark.parametrize(
    "mark", [{"max_spurious_wakeups": 0}, {"max_polls_per_event": 2}, {"max_cpu_seconds": 1}]
)
def test_other_limits_imply_none(mark: Mapping[str, object]) -> None:
    assert len(limits(mark).for_service("a")) == 1


@pytest.mark.parametrize("minimum", [0, 100])
def test_an_explicit_minimum_replaces_the_implied_one(minimum: int) -> None:
    explicit = limits({"max_spurious": 0.1, "min_wakeups": minimum}).for_service("a")[-1]
    assert (explicit.name, explicit.value, explicit.implied) == ("min_wakeups", minimum, False)


def test_json_has_the_effective_limits() -> None:
    merged = limits(
        {"max_spurious": "5%", "max_latency_p99": timedelta(milliseconds=5), "max_cpu_seconds": "1.5s"}
    )
    assert merged.as_json() == {
        "max_spurious": 0.05,
        "max_latency_p99": 5_000_000,
        "max_cpu_seconds": 1.5,
        "min_wakeups": 10,
    }
    assert type(merged.as_json()["max_latency_p99"]) is int


def test_json_prefixes_limits_of_one_service() -> None:
    merged = limits({"max_polls": 9}, {"service": "a", "max_spurious": 0.1}, {"service": "b", "max_polls": 7})
    assert merged.as_json() == {"max_polls": 9, "a:max_spurious": 0.1, "a:min_wakeups": 10, "b:max_polls": 7}


@pytest.mark.parametrize(
    ("defaults", "complaint"),
    [
        ({"max_spurius": "0.05"}, "unknown limit 'max_spurius', did you mean 'max_spurious'?"),
        ({"max_spurious": "lots"}, "bad limit max_spurious='lots'"),
        ({"service": "a"}, "'service' is not a limit"),
    ],
)
def test_a_wrong_default_is_a_usage_error_that_names_the_ini_option(
    defaults: Mapping[str, str], complaint: str
) -> None:
    with pytest.raises(UsageError) as error:
        limits({}, defaults=defaults)
    assert str(error.value).startswith(f"ini option netpoll_limits: {complaint}")


def test_help_is_one_line_that_starts_with_the_markers_name_and_names_the_commands() -> None:
    text = help_text()
    assert text.startswith("netpoll(")
    assert "\n" not in text
    assert "python -m pytest_netpoll metrics " in text
    assert "python -m pytest_netpoll rules." in text
