"""What CONTRIBUTING.md says about CI: it repeats a failing test once, and prints the first failure, too."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT


def test_the_first_failure_of_a_repeated_test_is_printed(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import pytest_terminal_summary")
    pytester.makepyfile(
        test_it="""
runs = []
def test_disturbed():
    runs.append(1)
    assert len(runs) > 1, "a busy machine"
def test_broken(): assert False, "a defect"
"""
    )
    result = pytester.runpytest_subprocess(
        *("-p", "no:netpoll", "-p", "no:randomly", "-p", "no:cacheprovider", "-n", "1"),
        *("-p", "rerunfailures", "--reruns", "1", "-o", f"pythonpath={ROOT}"),
    )
    result.assert_outcomes(passed=1, failed=1)
    lines = result.stdout.lines
    for name, why in (("test_disturbed", "a busy machine"), ("test_broken", "a defect")):
        begin = next(
            i for i, line in enumerate(lines) if f"failed, and was repeated: test_it.py::{name}" in line
        )
        assert any(f"AssertionError: {why}" in line for line in lines[begin : begin + 12])
