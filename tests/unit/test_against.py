"""Head against base: what the rounds of a test decide, and how often they are wrong with noise.

The noise is that of a shared machine: it gets slower and faster, and neighbours make it 1.3 to 3 times as
slow for one to three windows, which hits one in five. It is seeded: the outcome is fixed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import tolerance
from pytest_netpoll.model.against import Plan, Round, compare_rounds, settled
from pytest_netpoll.model.comparison import Comparison
from pytest_netpoll.model.sample import Sample

Numbers = Mapping[str, int | float | None]
HEALTHY: Numbers = {"wakeups": 200, "productive_wakeups": 200, "spurious_wakeups": 0, "spurious": 0.0}


def plan(rules: str, least: int = 8, most: int = 40) -> Plan:
    return Plan("main", "c0ffee", tolerance.parse_list(rules) if rules else (), least, most)


def sample(**metrics: int | float | None) -> Sample:
    return Sample({**HEALTHY, **metrics}, "go1.26.8", 2)


def rounds(count: int, base: Numbers, head: Numbers) -> list[Round]:
    return [({"server": sample(**base)}, {"server": sample(**head)}) for _ in range(count)]


class Machine:
    """How long now takes what takes 100 ms on an idle machine."""

    def __init__(self, seed: str) -> None:
        self._noise = random.Random(seed)
        self._speed = 0.0
        self._burst = 0

    def window(self, slowness: float = 1.0) -> float:
        noise = self._noise
        self._speed = 0.9 * self._speed + noise.gauss(0, 0.02)
        if noise.random() < 0.1:
            self._burst = noise.randint(1, 3)
        hit = noise.uniform(1.3, 3) if self._burst else 1.0
        self._burst = max(0, self._burst - 1)
        return 0.1 * slowness * hit * noise.lognormvariate(self._speed, 0.04)


def run(machine: Machine, slowness: float, rules: str) -> Comparison:
    """Measures like a test: head, base, base, head, and so on."""
    made: list[Round] = []
    asked = plan(rules)

    def make(count: int) -> bool:
        while len(made) < count:
            if len(made) % 2:
                base, head = machine.window(), machine.window(slowness)
            else:
                head, base = machine.window(slowness), machine.window()
            made.append(({"server": sample(cpu_seconds=base)}, {"server": sample(cpu_seconds=head)}))
        return True

    return settled(lambda: compare_rounds(made, asked), asked.looks, make)


def regressed(slowness: float, runs: int, rules: str = "cpu_seconds:+5%") -> float:
    outcomes = [run(Machine(f"{slowness} {n}"), slowness, rules).outcome for n in range(runs)]
    return outcomes.count("regressed") / runs


def test_head_against_itself_fails_a_rule_in_at_most_1_of_100_noisy_runs() -> None:
    assert regressed(1.0, 400) <= 0.01


def test_20_percent_more_is_found_in_at_least_95_of_100_noisy_runs() -> None:
    assert regressed(1.2, 200) >= 0.95


def test_exact_counts_are_decided_at_the_first_look() -> None:
    made: list[Round] = []

    def make(count: int) -> bool:
        made[:] = rounds(count, {}, {"spurious_wakeups": 100, "productive_wakeups": 100, "spurious": 0.5})
        return True

    asked = plan("spurious:+0.02")
    found = settled(lambda: compare_rounds(made, asked), asked.looks, make)
    assert (found.outcome, found.measured) == ("regressed", 8)
    (worse,) = found.regressions
    assert str(worse) == (
        "server: spurious 0.0 % → 50.0 %, +50.0 % (exact): worse than base (main) by more than +0.02, "
        "exactly over 8 rounds"
    )


def changed(base: Numbers, head: Numbers, rules: str, count: int = 8, **more: object) -> Comparison:
    return compare_rounds(rounds(count, base, head), plan(rules), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        ("cpu_seconds:+5%", "regressed"),
        ("cpu_seconds:+25%", "passed"),
        # A value is worse only if it exceeds both.
        ("cpu_seconds:+5%+10ms", "regressed"),
        ("cpu_seconds:+5%+50ms", "passed"),
        ("cpu_seconds:+25%+10ms", "passed"),
    ],
)
def test_a_rule_fails_when_the_interval_is_beyond_both_of_its_amounts(rule: str, outcome: str) -> None:
    assert changed({"cpu_seconds": 0.1}, {"cpu_seconds": 0.12}, rule).outcome == outcome


def test_an_improvement_passes_and_is_a_change() -> None:
    found = changed({"cpu_seconds": 0.12}, {"cpu_seconds": 0.1}, "cpu_seconds:+0%")
    assert found.outcome == "passed"
    (number,) = (n for n in found.numbers if n.metric == "cpu_seconds")
    assert number.seen
    assert not number.worse
    assert number.text == "-16.7 % (exact)"


def test_counts_that_were_0_are_compared_by_the_difference() -> None:
    found = changed({"futile_calls": 0}, {"futile_calls": 150}, "futile_calls:+10%")
    assert found.outcome == "regressed"
    assert "futile_calls 0 → 150, +150 (exact)" in str(found.regressions[0])


def test_an_undecided_tolerance_passes_and_shows_how_many_rounds_might_decide_it() -> None:
    head = [0.1, 0.108, 0.111, 0.104, 0.112, 0.107, 0.109, 0.102]
    made = [({"server": sample(cpu_seconds=0.1)}, {"server": sample(cpu_seconds=value)}) for value in head]
    found = compare_rounds(made, plan("cpu_seconds:+5%", 8, 8))
    assert found.outcome == "passed"
    (undecided,) = found.undecided
    assert undecided.enough is not None
    assert undecided.enough > 8
    assert f"--netpoll-rounds=8:{undecided.enough}" in found.notes[0]
    assert "8 rounds can't decide whether that is more than +5%" in found.notes[0]


def test_metrics_missing_now_do_not_pass_and_metrics_missing_at_the_base_are_noted() -> None:
    known: Numbers = {"ready_calls": 5}
    found = changed(known, {"ready_calls": None}, "ready_calls:+10%")
    assert found.outcome == "unmeasured"
    found = changed({"ready_calls": None}, known, "ready_calls:+10%")
    assert found.outcome == "passed"
    assert "ready_calls has no number from base (main)" in found.notes[0]
    off = Reason("answers were not timed", fix="--netpoll-response=on")
    untimed = replace(sample(response_p50=None), absent={"response_p50": off})
    for base, head in ((untimed, sample(response_p50=5)), (sample(response_p50=5), untimed)):
        found = compare_rounds([({"server": base}, {"server": head})] * 8, plan("response_p50:+10%"))
        said = [*found.notes, *(reason.headline for reason in found.unmeasured)]
        assert any(text.endswith("answers were not timed") for text in said)


def test_shares_of_few_wakeups_are_not_compared() -> None:
    found = changed({}, {"wakeups": 3, "productive_wakeups": 3}, "spurious:+0.02")
    assert found.outcome == "unmeasured"
    assert "only 3 wakeups" in found.unmeasured[0]


@pytest.mark.parametrize(("rules", "outcome"), [("spurious:+0.02", "unmeasured"), ("", "passed")])
def test_a_side_without_traffic_is_not_compared(rules: str, outcome: str) -> None:
    found = changed({}, {}, rules, doubts={"server": Reason("base (main) saw no traffic")})
    assert found.outcome == outcome
    assert not found.numbers
    said = [*found.notes, *found.unmeasured]
    assert "server was not compared: base (main) saw no traffic" in said[0]


@pytest.mark.parametrize("broken", [Sample(HEALTHY, unmeasured=Reason("the agent died")), None])
def test_unmeasured_rounds_are_left_out_and_with_many_of_them_nothing_is_compared(
    broken: Sample | None,
) -> None:
    made = rounds(12, {}, {"spurious": 0.5})
    why = "the agent died" if broken is not None else "it did not run"
    lacking: dict[str, Sample] = {"server": broken} if broken is not None else {}
    made[3] = ({"server": sample()}, lacking)
    found = compare_rounds(made, plan("spurious:+0.02"))
    assert found.outcome == "regressed"
    assert found.notes == (f"server: head, round 4: {why}",)
    made[4:7] = [({"server": sample()}, lacking)] * 3
    found = compare_rounds(made, plan("spurious:+0.02"))
    assert found.outcome == "unmeasured"
    assert f"head, round 4: {why}" in found.unmeasured[0]


def test_a_broken_tolerance_stops_the_rounds() -> None:
    head = [0.1, 0.108, 0.111, 0.104, 0.112, 0.107, 0.109, 0.102] * 5
    asked = plan("spurious:+0.02,cpu_seconds:+5%")
    made: list[Round] = []

    def make(count: int) -> bool:
        base = {"server": sample(cpu_seconds=0.1)}
        made[:] = [(base, {"server": sample(cpu_seconds=v, spurious=0.5)}) for v in head[:count]]
        return True

    found = settled(lambda: compare_rounds(made, asked), asked.looks, make)
    assert (found.outcome, found.measured, len(found.undecided)) == ("regressed", 8, 1)


def test_rounds_stop_if_no_more_can_be_made() -> None:
    asked = plan("cpu_seconds:+5%")
    calls: list[int] = []

    def make(count: int) -> bool:
        calls.append(count)
        return False

    def compared() -> Comparison:
        return compare_rounds(rounds(1, {"cpu_seconds": 0.1}, {"cpu_seconds": 0.2}), asked)

    assert settled(compared, asked.looks, make).undecided
    assert calls == [8]
