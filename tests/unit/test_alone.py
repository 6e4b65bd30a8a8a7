"""What CONTRIBUTING.md says about the mark `alone`: no test of another worker runs meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from tests.conftest import machine

Stretch = tuple[bool, float, float]


def test_nothing_runs_beside_a_test_marked_alone(tmp_path: Path) -> None:
    door, room = tmp_path / "door", tmp_path / "room"
    all_there = Barrier(3)
    door.touch()
    room.touch()

    def work(number: int) -> list[Stretch]:
        """Like a worker: one test after another, some of them alone."""
        done = []
        all_there.wait()
        for test in range(20):
            alone = number == 0 and test % 5 == 0
            with machine(alone, door, room):
                began = time.monotonic()
                time.sleep(0.005)
                done.append((alone, began, time.monotonic()))
        return done

    with ThreadPoolExecutor(3) as workers:
        tests = [stretch for done in workers.map(work, range(3)) for stretch in done]
    beside = [
        one[0] or other[0]
        for one in tests
        for other in tests
        if one is not other and one[1] < other[2] and other[1] < one[2]
    ]
    assert beside, "the others share it"
    assert not any(beside)
