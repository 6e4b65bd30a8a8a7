"""What CONTRIBUTING.md says of the mark `alone`: no test of another worker runs meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each test notes when it began and ended.
NOTED = """
import time
import pytest

@pytest.fixture(autouse=True)
def noted(request):
    began = time.monotonic()
    yield
    time.sleep(0.02)
    with open("times", "a") as file:
        print("alone" in request.node.keywords, began, time.monotonic(), file=file)

@pytest.mark.parametrize("number", range(20))
def test_any(number): pass
"""
ALONE = """
@pytest.mark.alone
@pytest.mark.parametrize("number", range(5))
def test_alone(number): pass
"""


def test_no_test_of_another_worker_runs_beside_one_marked_so(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmarkers = alone")
    pytester.makeconftest(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.conftest import pytest_runtest_protocol"
    )
    pytester.makepyfile(test_first=NOTED, test_second=NOTED + ALONE)
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile", timeout=60)
    result.assert_outcomes(passed=45)
    rows = [line.split() for line in (pytester.path / "times").read_text().splitlines()]
    tests = [(alone == "True", float(began), float(ended)) for alone, began, ended in rows]
    beside = [
        (one[0], other[0])
        for one in tests
        for other in tests
        if one is not other and one[1] < other[2] and other[1] < one[2]
    ]
    assert beside, "the others run at once"
    assert not any(one or other for one, other in beside)
