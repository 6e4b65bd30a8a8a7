"""The benchmark's arithmetic: what is compared with what, and that its tables omit nothing."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts import each other from their own directory."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("tables")


@pytest.fixture
def sample(tables: Any) -> Any:
    """sample(1000, wakeup=500): 1000 requests a second saturated, half of them at half load."""

    def sample(rate: float, wakeup: float = 100) -> Any:
        loads = [tables.Load(rate=share * rate, p99=1 / rate, cpu=1e-5) for share in (1, 0.5)]
        operations = {"network wakeup": wakeup}
        return tables.Sample(*loads, operations, operations, seen="5 wakeups", figures={})

    return sample


def cells(table: str, title: str) -> list[str]:
    [line] = [line for line in table.splitlines() if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_is_compared_with_the_nothing_row_of_its_round(tables: Any, sample: Any) -> None:
    # The machine is twice as fast in the second round. With medians over all rounds, a third or half would
    # seem lost.
    results = {
        "nothing": {0: sample(1000, wakeup=200), 1: sample(2000, wakeup=100), 2: sample(2000, wakeup=100)},
        "ours": {0: sample(900, wakeup=250), 1: sample(1800, wakeup=150)},
    }
    saturated = tables.of_load(results, {}, lambda sample: sample.saturated)
    assert cells(saturated, "pytest-netpoll, goready off")[2] == "0.900 (0.900 to 0.900)"
    operations = tables.of_operations(results, lambda sample: sample.watched)
    assert cells(operations, "pytest-netpoll, goready off")[1] == "+50 (+50 to +50)"


def test_the_spread_is_the_quartiles(tables: Any) -> None:
    assert tables.spread([1, 2, 3, 4, 5], ".0f") == "3 (2 to 4)"
    assert tables.spread([0.25], ".1f", 1000) == "250.0"


def test_a_row_that_could_not_be_measured_is_there_and_says_why(tables: Any, sample: Any) -> None:
    results: dict[str, Any] = {"nothing": {0: sample(1000)}, "strace": {}, "perf": {0: sample(500)}}
    failures = {"strace": "strace is not installed", "perf": "it was attached, and saw nothing"}
    saturated = tables.of_load(results, failures, lambda sample: sample.saturated)
    assert cells(saturated, "strace")[1] == "not measured: strace is not installed"
    proofs = tables.of_proofs(results, failures)
    assert cells(proofs, "strace")[1:] == ["0", "", "strace is not installed"]
    assert cells(proofs, "perf")[1:] == ["1", "5 wakeups", "it was attached, and saw nothing"]


@pytest.mark.parametrize(("kept", "word"), [(970, "met"), (969, "NOT MET")])
def test_a_target_is_met_or_not(tables: Any, sample: Any, kept: float, word: str) -> None:
    verdicts = tables.verdicts({"nothing": {0: sample(1000)}, "ours": {0: sample(kept)}})
    assert len(verdicts) == 1  # there is no peer to compare with
    assert re.search(rf"target 97%: {word}$", verdicts[0])


def test_the_peers_that_ours_is_not_ahead_of_are_named(tables: Any, sample: Any) -> None:
    results = {
        "nothing": {0: sample(1000)},
        "ours": {0: sample(980)},
        "ours-goready": {0: sample(910)},
        "perf": {0: sample(800)},
        "go-trace": {0: sample(950)},
    }
    verdicts = tables.verdicts(results)
    assert verdicts[1] == "pytest-netpoll, goready off: ahead of every peer"
    assert verdicts[3] == "pytest-netpoll, goready auto: NOT ahead of Go's execution trace (95.0%)"
