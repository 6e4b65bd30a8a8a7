"""With the plugins and options that projects use: every test's numbers appear once, and nothing keeps
running."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import survivors

pytestmark = pytest.mark.bpf

# Helper for a test: records the processes that must not outlive its pytest.
NOTE = """
def note(name):
    import psutil
    family = [os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))]
    open(name, "w").write(" ".join(map(str, family)))
"""


@pytest.fixture
def report(pytester: pytest.Pytester) -> Any:
    """report() is the JSON report: {test's name: its record}; each test is in it once."""

    def report() -> dict[str, Any]:
        whole = json.loads((pytester.path / "report.json").read_text())
        assert whole["environment"]["bcc"], "where it was measured"
        tests = {test["nodeid"].rpartition("::")[2]: test for test in whole["tests"]}
        assert len(tests) == len(whole["tests"])
        return tests

    return report


def left_of(note: Path) -> list[int]:
    """The recorded processes that still run."""
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) >= 4, "pytest, the service, its guardian and the agent"
    return survivors(pids, 30)


def test_workers_count_separately_and_a_crashed_one_affects_no_other(run, report, pytester, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    result = run(
        f"""
{NOTE}
@pytest.mark.parametrize("count", [60, 90])
@netpoll(max_wakeups=75)
def test_at_once(echo, ping, count):
    open(f"{{count}}.running", "w").close()
    while not all(os.path.exists(f"{{n}}.running") for n in (60, 90)): time.sleep(0.001)
    ping(echo, count)

@netpoll(max_spurious=0.05)
def test_crash(echo, ping):
    ping(echo)
    note("crashed")
    os.kill(os.getpid(), signal.SIGKILL)
""",
        *("-n", "2", "--netpoll-json=report.json"),
        plugins=["xdist"],
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*crashed while running*test_crash*", "*test_at_once?90?*FAILED", "*test_at_once?60?*passed"]
    )
    result.stdout.fnmatch_lines(["kernel *, bcc *, go1*"])
    assert left_of(pytester.path / "crashed") == []
    tests = report()
    counts = {n: tests[f"test_at_once[{n}]"]["services"][0] for n in (60, 90)}
    assert counts[60]["pid"] != counts[90]["pid"]
    for pings, service in counts.items():
        assert service["metrics"]["wakeups"] == pytest.approx(pings + 1, rel=0.05)
    assert (pytester.path / "summary.md").read_text().count("`test_it.py::test_at_once[60]`") == 1


def test_a_misspelt_limit_is_a_usage_error_in_workers_too(run):
    result = run("@netpoll(max_spuriuos=0)\ndef test_it(): pass", "-n", "1", plugins=["xdist"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it.py::test_it: unknown limit 'max_spuriuos', did you mean*"])


def test_the_last_run_of_a_rerun_test_counts(run, report, pytester):
    result = run(
        """
runs = []

@netpoll(max_spurious_wakeups=0)
def test_flaky(echo, dup, ping):
    runs.append(1)
    ping(dup if len(runs) == 1 else echo)

@netpoll(max_spurious=0.05, service="dup")
def test_broken(dup, ping): ping(dup)

laps = []

@pytest.fixture
def around(echo, netpoll):
    laps.append(1)
    with netpoll.measure(max_wakeups=0 if len(laps) == 1 else 1000): yield

def test_around(around, echo, ping): ping(echo, 3)
""",
        *("--reruns", "1", "--netpoll-json=report.json", "--junitxml=junit.xml"),
        plugins=["rerunfailures"],
    )
    result.stdout.fnmatch_lines(["*1 failed, * passed, 3 rerun*"])
    tests = report()
    assert (tests["test_flaky"]["outcome"], tests["test_broken"]["outcome"]) == ("passed", "failed")
    assert (tests["test_around"]["outcome"], tests["test_around"]["gate"]) == ("passed", "passed")
    assert [window["number"] for window in tests["test_around"]["windows"]] == [1]
    for case in ElementTree.parse(pytester.path / "junit.xml").iter("testcase"):
        names = [p.get("name") for p in case.iter("property")]
        assert names.count("netpoll.outcome") == (case.get("name") != "test_around")  # which isn't marked


def test_a_timed_out_test_fails_and_the_next_one_is_measured(run, report):
    result = run(
        """
@netpoll(max_spurious=0.05)
@pytest.mark.timeout(0.5, func_only=True)
def test_slow(echo, ping):
    ping(echo)
    time.sleep(60)

@netpoll(max_spurious=0.05)
@pytest.mark.timeout(3)
def test_while_the_agent_is_asked(echo, ping):
    ping(echo)
    import psutil
    for child in psutil.Process().children():
        if "pytest_netpoll/agent" in " ".join(child.cmdline()): child.suspend()

@netpoll(max_spurious=0.05)
def test_next(echo, ping): ping(echo)
""",
        "--netpoll-json=report.json",
        plugins=["timeout"],
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["FAILED *test_slow - Failed: Timeout*", "FAILED *test_while_the_agent_is_asked - Failed: Timeout*"]
    )
    tests = report()
    assert tests["test_slow"]["error"].startswith("Failed: Timeout")
    assert tests["test_next"]["outcome"] == "passed"


def test_a_timeout_that_ends_pytest_at_once_leaves_nothing_behind(run, pytester):
    result = run(
        f"""
{NOTE}
@pytest.fixture
def noted(echo): note("ended")  # which may take longer than the timeout

@netpoll(max_spurious=0.05)
@pytest.mark.timeout(0.5, method="thread", func_only=True)
def test_slow(echo, noted): time.sleep(60)
""",
        plugins=["timeout"],
    )
    assert result.ret == 1
    assert left_of(pytester.path / "ended") == []


def test_every_kind_of_test_is_measured(run, report, pytester):
    with open(pytester.path / "conftest.py", "a") as conftest:
        conftest.write(
            """
def pytest_collection_modifyitems(items):
    for item in items:
        if item.name in ("test_marked_late", "test_it.measured"):
            item.add_marker(pytest.mark.netpoll(max_spurious=0))
"""
        )
    has_subtests = hasattr(pytest, "Subtests")
    result = run(
        """
import asyncio, unittest
from tests.waiting import fall_asleep

def measured():
    '''
    >>> getfixture("ping")(getfixture("dup"))
    '''

def test_marked_late(dup, ping): ping(dup)

@pytest.mark.asyncio
@netpoll(max_spurious=0)
async def test_coroutine(dup):
    reader, writer = await asyncio.open_connection(*dup.address)
    for _ in range(50):
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        fall_asleep(dup.pid)
    writer.close()

@pytest.mark.usefixtures("dup")
class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def take(self, dup, ping): self.dup, self.ping = dup, ping
    @netpoll(max_spurious=0)
    def test_method(self): self.ping(self.dup)
    @netpoll(max_spurious=0.9)
    def test_parts(self):
        for number in range(2):
            with self.subTest(number=number): self.ping(self.dup)
"""
        + """
@netpoll(max_spurious=0.9)
def test_subtests(subtests, dup, ping):
    with subtests.test("good"): ping(dup)
    with subtests.test("bad"): assert not "mine"
"""
        * has_subtests,
        *("--doctest-modules", "--netpoll-json=report.json", "-p", "no:cacheprovider"),
        plugins=["asyncio"],
    )
    assert result.ret == 1
    tests = report()
    wasteful = ("test_it.measured", "test_marked_late", "test_coroutine", "test_method")
    for name in wasteful:
        (breach,) = tests[name]["breaches"]
        assert (tests[name]["outcome"], breach["metric"]) == ("failed", "spurious")
    assert tests["test_parts"]["outcome"] == "passed"
    assert tests["test_parts"]["services"][0]["metrics"]["productive_wakeups"] > 100
    if has_subtests:
        subtests = tests["test_subtests"]
        assert (subtests["outcome"], subtests["breaches"]) == ("failed", [])
        assert "AssertionError" in subtests["reason"]


ENDINGS = """
@pytest.mark.xfail(strict=True)
@netpoll(max_spurious=0)
def test_xfail(dup, ping): ping(dup)

@pytest.mark.xfail(strict=False)
@netpoll(max_spurious=0.9)
def test_xpass(dup, ping): ping(dup)

@pytest.mark.xfail(strict=True)
@netpoll(max_spurious=0.9)
def test_xpass_strict(dup, ping): ping(dup)

@netpoll(max_spurious=0)
def test_skip(dup, ping): ping(dup); pytest.skip("no")

@netpoll(max_spurious=0)
def test_wasteful(dup, ping): ping(dup)

@netpoll(max_spurious=0)
def test_exit(dup, ping): ping(dup); pytest.exit("enough", returncode=7)

@netpoll(max_spurious=0)
def test_never(dup, ping): ping(dup)
"""


def test_each_outcome_of_a_test_is_kept(run, report):
    result = run(ENDINGS, "--netpoll-json=report.json")
    assert result.ret == 7
    result.stdout.fnmatch_lines(["*2 failed, 1 skipped, 1 xfailed, 1 xpassed*"])
    tests = report()
    assert sorted(tests) == ["test_wasteful", "test_xfail", "test_xpass", "test_xpass_strict"]
    assert [tests[name]["outcome"] for name in sorted(tests)] == ["failed", "failed", "passed", "passed"]

    off = run(ENDINGS, "--netpoll=off")
    assert off.ret == 7
    off.stdout.fnmatch_lines(["*2 failed, 1 passed, 1 skipped, 1 xpassed*"])


def test_exitfirst_and_last_failed_work(run, report, pytester):
    source = """
@netpoll(max_spurious=0)
def test_good(echo, ping): ping(echo)

@netpoll(max_spurious=0)
def test_unmeasured(echo): pass

@netpoll(max_spurious=0)
def test_after(echo, ping): ping(echo)
"""
    run(source, "-x", "--netpoll-json=report.json").assert_outcomes(passed=1, failed=1)
    assert sorted(report()) == ["test_good", "test_unmeasured"]
    result = run(source, "--lf", "-p", "no:terminal", "--netpoll-json=report.json")
    assert (result.ret, result.stdout.str()) == (1, "")
    assert sorted(report()) == ["test_unmeasured"]
    written = (pytester.path / "report.json").read_text()
    result = run(source, "--setup-only", "--netpoll-json=report.json")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*wakeups*")
    assert (pytester.path / "report.json").read_text() == written, "it holds what was measured"
