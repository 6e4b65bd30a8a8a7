from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netpoll.model.units import Unit, parse, parse_time, show, show_sum

UNITS: tuple[Unit, ...] = ("count", "ratio", "share", "ns", "s")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("10ns", 10),
        ("250us", 250_000),
        ("250\u00b5s", 250_000),
        ("250\u03bcs", 250_000),
        ("5ms", 5_000_000),
        ("1.1ms", 1_100_000),
        ("5 ms", 5_000_000),
        (" 5ms ", 5_000_000),
        ("1.5s", 1.5e9),
        (".5s", 0.5e9),
        ("1m", 60e9),
        ("0ms", 0),
        (timedelta(milliseconds=5), 5_000_000),
        (timedelta(days=1, microseconds=1), 86_400_000_001_000),
    ],
)
def test_times_are_nanoseconds(text: object, ns: float) -> None:
    assert parse(text, "ns") == parse_time(text) == ns


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("500ms", 0.5), ("2s", 2), (timedelta(seconds=3), 3), (0.25, 0.25), (2, 2), ("0.5", 0.5)],
)
def test_metrics_in_seconds_take_times_and_bare_seconds(value: object, seconds: float) -> None:
    assert parse(value, "s") == seconds


@pytest.mark.parametrize(
    ("value", "share"),
    [(0, 0), (0.99, 0.99), (0.05, 0.05), ("0.05", 0.05), ("5%", 0.05), ("5 %", 0.05), ("100%", 1)],
)
def test_shares_are_fractions_or_percentages(value: object, share: float) -> None:
    assert parse(value, "share") == share


@pytest.mark.parametrize(("value", "ratio"), [(0, 0), (1.5, 1.5), ("1.5", 1.5), (20, 20)])
def test_ratios_are_any_number(value: object, ratio: float) -> None:
    assert parse(value, "ratio") == ratio


@pytest.mark.parametrize(("value", "count"), [(0, 0), (100, 100), ("100", 100), (" 7 ", 7)])
def test_counts_are_integers(value: object, count: int) -> None:
    assert parse(value, "count") == count
    assert type(parse(value, "count")) is int


@pytest.mark.parametrize(
    ("value", "unit", "complaint"),
    [
        (5, "ns", 'no unit: write "5ms"'),
        (0.5, "ns", 'no unit: write "500ms" if it is in seconds'),
        (0.005, "ns", 'no unit: write "5ms" if it is in seconds'),
        ("0.005", "ns", 'no unit: write "5ms" if it is in seconds'),
        (0.00025, "ns", 'no unit: write "250us" if it is in seconds'),
        (5_000_000, "ns", 'no unit: write "5ms" if it is in nanoseconds'),
        (0, "ns", 'no unit: write "0ms"'),
        (10**400, "ns", "not a time"),
        ("5", "ns", 'no unit: write "5ms"'),
        ("5 parsecs", "ns", "not a time"),
        ("ms", "ns", "not a time"),
        ("-5ms", "ns", "not a time"),
        ("1e3ms", "ns", "not a time"),
        ("\u0665ms", "ns", "not a time"),
        (timedelta(seconds=-1), "ns", "negative"),
        ("9" * 400 + "s", "ns", "too large"),
        (-0.5, "s", "negative"),
        ("5%", "s", "not a time"),
        (1.01, "share", "out of range"),
        ("150%", "share", "out of range"),
        (5, "share", 'out of range: write "5%"'),
        ("7.5", "share", 'out of range: write "7.5%"'),
        (1, "share", 'may mean 1 % or all: write "1%" or "100%"'),
        (1.0, "share", 'write "1%" or "100%"'),
        ("1", "share", 'write "1%" or "100%"'),
        (10**400, "share", "too large"),
        (10**400, "count", "too large"),
        ("9" * 400, "count", "too large"),
        (-0.1, "share", "negative"),
        ("5ms", "share", "percentage"),
        ("150%", "ratio", "not a number"),
        (-1, "ratio", "negative"),
        (10**400, "ratio", "too large"),
        (3.0, "count", "not a count"),
        ("3.0", "count", "not a count"),
        ("5%", "count", "not a count"),
        (-1, "count", "negative"),
    ],
)
def test_bad_values_are_rejected_with_what_to_write(value: object, unit: Unit, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(value, unit)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("value", [True, False, None, float("nan"), float("inf"), "nan", "inf", "", [], b"5"])
def test_values_that_are_not_quantities_are_rejected_in_every_unit(value: object, unit: Unit) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(value, unit)


@given(
    st.text() | st.floats() | st.integers() | st.booleans() | st.none() | st.timedeltas(),
    st.sampled_from(UNITS),
)
def test_anything_is_either_a_finite_quantity_or_a_value_error(value: object, unit: Unit) -> None:
    try:
        number = parse(value, unit)
    except ValueError:
        return
    assert 0 <= number < float("inf")
    assert unit != "share" or number <= 1


@given(st.integers(0, 10**9), st.sampled_from(["ns", "us", "ms", "s", "m"]))
def test_whole_times_parse_exactly(amount: int, suffix: str) -> None:
    scale = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}[suffix]
    assert parse_time(f"{amount}{suffix}") == float(amount * scale)


@given(st.integers(0, 10**7))
def test_timedeltas_and_text_agree(microseconds: int) -> None:
    assert parse_time(timedelta(microseconds=microseconds)) == parse_time(f"{microseconds}us")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ns", "–"),  # noqa: RUF001
        (0, "count", "0"),
        (15000, "count", "15,000"),
        (2**60 + 1, "count", "1,152,921,504,606,846,977"),
        (0.048, "share", "4.8 %"),
        (1.034, "ratio", "1.03"),
        (0.34, "s", "0.34 s"),
        (0, "ns", "0 ns"),
        (850, "ns", "850 ns"),
        (999.7, "ns", "1.0 µs"),
        (1_200, "ns", "1.2 µs"),
        (999_960, "ns", "1.0 ms"),
        (12_300_000, "ns", "12.3 ms"),
        (999_990_000, "ns", "1.0 s"),
        (75e9, "ns", "75.0 s"),
    ],
)
def test_values_are_shown_for_people(value: float | None, unit: Unit, text: str) -> None:
    assert show(value, unit) == text


def test_more_digits_show_what_the_usual_number_hides() -> None:
    assert show(0.0504, "share", 2) == "5.04 %"
    assert show(5_000_001, "ns", 6) == "5.000001 ms"


@given(st.integers(0, 10**12))
def test_a_shown_time_parses_back_to_about_itself(ns: int) -> None:
    assert parse_time(show(ns, "ns", 1).replace(",", "")) == pytest.approx(ns, rel=0.05, abs=0.5)


def test_the_shown_parts_of_a_sum_add_up() -> None:
    parts = {"poll delay": 9_740_000.0, "wake-to-run": 77_960_000.0, "handling": 440_000.0, "none": 1.0}
    assert show_sum(88_140_000.0, parts) == "88.1 ms = 9.7 poll delay + 78.0 wake-to-run + 0.4 handling"
    # 3 x 33.35, each rounded, would be 100.2.
    thirds = dict.fromkeys("abc", 33_350.0)
    assert show_sum(100_050.0, thirds) == "100.0 \u00b5s = 33.2 a + 33.4 b + 33.4 c"
    assert show_sum(5_000.0, {}) == "5.0 \u00b5s"
