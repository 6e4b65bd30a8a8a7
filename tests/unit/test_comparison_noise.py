"""How often a comparison is wrong with noisy latencies: the real code, on windows with injected noise.

The noise is like that of a shared CI machine: a run of the tests gets a faster or a slower machine, each
window has other load, a neighbour makes one in ten 2 to 5 times as slow, and within a window latencies
scatter and some wakeups are preempted. It is seeded, so that the outcome is fixed.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from pytest_netpoll.model import tolerance
from pytest_netpoll.model.comparison import Baseline, Rules, compare, confirmed
from pytest_netpoll.model.histogram import bucket_of
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS
from pytest_netpoll.model.sample import Samples, samples_of
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import Verdict
from pytest_netpoll.report import baseline_file, recording

NODEID = "test_echo.py::test_echo"
ENVIRONMENT = {"kernel": "6.8.0", "arch": "x86_64", "plugin": "1"}
WAKEUPS = 200
TYPICAL = 12_000  # ns
RERUNS = 2  # the default of --netpoll-reruns

_noise = random.Random(0)
# Latencies on an idle machine, in ns. Drawn once, because millions of draws would take most of the tests'
# time.
POOL = [
    TYPICAL * _noise.lognormvariate(0, 0.25) * (8 if _noise.random() < 0.02 else 1) for _ in range(20_000)
]


class Machine:
    """One run of the tests, on the machine that CI gave it."""

    def __init__(self, noise: random.Random, slowness: float = 1.0) -> None:
        self._noise = noise
        self._factor = slowness * noise.lognormvariate(0, 0.05)

    def window(self) -> Measurement:
        noise = self._noise
        factor = self._factor * noise.lognormvariate(0, 0.08)
        if noise.random() < 0.1:
            factor *= noise.uniform(2, 5)
        latencies = [latency * factor for latency in noise.choices(POOL, k=WAKEUPS)]
        counters = dict.fromkeys(("wakeups", "productive_wakeups", "events", "polls"), WAKEUPS)
        histogram = Counter(bucket_of(int(latency)) for latency in latencies)
        snapshot = Snapshot({**dict.fromkeys(COUNTERS, 0), **counters}, histogram, int(max(latencies)))
        return Measurement("server", 1, "/srv", "go1.26.8", 0.2, snapshot, gomaxprocs=2)

    def saved(self, directory: Path) -> Baseline:
        """A baseline as --netpoll-save writes it and --netpoll-compare reads it."""
        windows = [[self.window()] for _ in range(1 + RERUNS)]
        made = recording.build(
            NODEID, ("test_echo.py", 1), Verdict("passed"), Limits(), median_of(windows), 1.0
        )
        baseline_file.write(baseline_file.path_of(directory, "main"), ENVIRONMENT, [made])
        return baseline_file.load(directory, "main")

    def fails(self, then: Baseline, tolerated: str) -> bool:
        def measure() -> Samples:
            return samples_of([self.window()], Limits())

        rules = Rules(tolerance.parse_list(tolerated))
        comparison = compare(NODEID, measure(), ENVIRONMENT, then, rules)
        return confirmed(comparison, RERUNS, measure).outcome == "regressed"


def share_failed(tmp_path: Path, slowness: float, tolerated: str, trials: int) -> float:
    """Each trial is a baseline and a later run against it."""
    noise = random.Random(f"{slowness} {tolerated}")
    failed = sum(
        Machine(noise, slowness).fails(Machine(noise).saved(tmp_path), tolerated) for _ in range(trials)
    )
    return failed / trials


@pytest.mark.parametrize("tolerated", ["latency_p50:+25%", "latency_p99:+25%"])
def test_an_unchanged_service_fails_in_under_1_percent_of_noisy_runs(tmp_path: Path, tolerated: str) -> None:
    assert share_failed(tmp_path, 1.0, tolerated, 1000) < 0.01


@pytest.mark.parametrize("tolerated", ["latency_p50:+25%", "latency_p99:+25%"])
def test_a_service_with_doubled_latency_fails_in_over_95_percent_of_noisy_runs(
    tmp_path: Path, tolerated: str
) -> None:
    assert share_failed(tmp_path, 2.0, tolerated, 300) > 0.95
