"""The marker in a real pytest: mistakes in it are reported at collection, with exit code 4."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        (
            "max_spuriuos=0.05",
            "*::test_it: unknown limit 'max_spuriuos', did you mean 'max_spurious'?*",
        ),
        ("max_latency_p99='5 parsecs'", "*test_it.py::test_it: bad limit max_latency_p99='5 parsecs'*"),
        ("max_latency_p99=5", "*test_it.py::test_it: bad limit max_latency_p99=5*"),
        ("max_spurious=1.5", "*test_it.py::test_it: bad limit max_spurious=1.5*"),
        (
            "max_spurious=1",
            '*::test_it: bad limit max_spurious=1: 1 may mean 1 % or all: write "1%" or "100%"*',
        ),
        ("max_latency_p99=0.005", '*bad limit max_latency_p99=0.005: 0.005 has no unit: write "5ms"*'),
        ("max_polls=-1", "*test_it.py::test_it: bad limit max_polls=-1*"),
        ("spurious=0.1", "*unknown limit 'spurious', did you mean 'max_spurious'?*"),
        ("0.05", "*test_it.py::test_it: @pytest.mark.netpoll takes no positional arguments*"),
    ],
)
def test_a_wrong_limit_is_a_usage_error_that_names_the_test(run, marker, expected):
    result = run(f"@netpoll({marker})\ndef test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([expected])


def test_a_wrong_default_in_the_ini_file_is_a_usage_error(run, pytester):
    pytester.makeini("[pytest]\nnetpoll_limits =\n    max_spuriuos = 0.05\n")
    result = run("def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*netpoll_limits*unknown limit 'max_spuriuos'*"])


def test_a_wrong_option_in_the_ini_file_is_a_usage_error(run, pytester):
    pytester.makeini("[pytest]\nnetpoll_unmeasured = pass\n")
    result = run("def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*netpoll_unmeasured*fail, skip*"])


def test_the_marker_is_documented_and_passes_strict_markers(run):
    run("", "--markers").stdout.fnmatch_lines(["@pytest.mark.netpoll(max_<metric>=*"])
    result = run("@netpoll()\ndef test_it(): pass", "--strict-markers", "--netpoll=off")
    result.assert_outcomes(passed=1)


@pytest.mark.bpf
def test_the_closest_marker_wins_limit_by_limit(run, pytester):
    pytester.makeini("[pytest]\nnetpoll_limits =\n    max_spurious = 0\n    max_polls = 1\n")
    result = run(
        """
pytestmark = netpoll(max_spurious=0, max_polls=100000)

@netpoll(max_spurious=0.1)
class TestClass:
    @netpoll(max_spurious=0.9)
    def test_closest(self, dup, ping): ping(dup)
    def test_class(self, dup, ping): ping(dup)

def test_module(dup, ping): ping(dup)
"""
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*> max 10.0 %*", "*> max 0.0 %*"])


@pytest.mark.bpf
def test_unittest_classes_and_parametrised_tests_are_measured(run):
    result = run(
        """
import unittest

@pytest.mark.usefixtures("echo")
@netpoll(min_wakeups=5)
class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _take(self, echo, ping): self.echo, self.ping = echo, ping
    def test_it(self): self.ping(self.echo)

@pytest.mark.parametrize("count", [20, 1, pytest.param(2, marks=netpoll(min_wakeups=1))])
@netpoll(min_wakeups=15)
def test_counts(echo, ping, count): ping(echo, count)
"""
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*echo: wakeups ? < min 15*"])
