"""--netpoll-html in a real browser, used by keyboard as a person would.

All tests share one browser, and each page is loaded only once: unpacking plotly.js, which each page does for
its first chart, takes seconds.
"""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.report.html import document, sections

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)
PATIENCE = 60  # seconds; unpacking 5 MB of plotly.js takes two on a busy machine


class Page:
    """A report in the browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        self.driver.get(path.as_uri())

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (found,) = self.all(selector)
        return found

    def js(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.02).until(lambda _: condition())

    def names(self) -> list[str]:
        """The names of the tests shown in the table, in order."""
        selector = "#tests > tbody:not([hidden]) .name"
        names: list[str] = self.js(f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)")
        return names

    def first(self) -> WebElement:
        """The first test that is shown."""
        return self.driver.find_element(By.CSS_SELECTOR, "#tests > tbody:not([hidden])")

    def search(self, text: str) -> None:
        """From wherever the focus is."""
        self.one("body").send_keys("/")
        field = self.driver.switch_to.active_element
        assert field.get_attribute("id") == "search"
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)

    def unfold(self, test: WebElement) -> WebElement:
        """Opens a test's row by keyboard, if necessary; returns its details, with all visible charts
        drawn."""
        button = test.find_element(By.CSS_SELECTOR, ".test button")
        if button.get_attribute("aria-expanded") == "false":
            button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-expanded") == "true"
        return self.until(lambda: test.find_element(By.CSS_SELECTOR, ".detail"))

    def draw(self, chart: WebElement) -> int:
        """Scrolls to a chart; returns how many bars it shows."""
        self.driver.execute_script("arguments[0].scrollIntoView()", chart)
        self.until(lambda: chart.get_attribute("data-drawn") is not None)
        return len(chart.find_elements(By.CSS_SELECTOR, ".bars .point path"))

    def figures(self, chart: WebElement) -> list[list[str]]:
        """The numbers behind a chart, for those who cannot see it."""
        table = chart.find_element(By.XPATH, "following-sibling::details")
        table.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
        self.until(lambda: table.find_elements(By.CSS_SELECTOR, "tr"))
        return self.cells(table)

    def cells(self, place: WebElement) -> list[list[str]]:
        """The text in the rows of the first table in a place."""
        rows = "[...arguments[0].querySelector('table').rows]"
        script = f"return {rows}.map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
        cells: list[list[str]] = self.driver.execute_script(script, place)
        return cells

    def assert_in_order(self) -> None:
        """There were no complaints, and nothing was fetched."""
        assert self.driver.get_log("browser") == []
        assert self.js("performance.getEntriesByType('resource').length") == 0


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        pytest.skip("no Chromium with its chromedriver: .ci/setup test installs them where it can")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With its path, because otherwise selenium would look for a driver to download.
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    """A page in a browser without state from earlier tests."""
    yield Page(driver)
    driver.get("about:blank")
    driver.get_log("browser")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.bpf
def test_the_report_of_a_real_run_names_the_offending_line(run, pytester, page):
    result = run(
        """
@netpoll(max_spurious=0.05)
def test_wasteful(dup, ping): ping(dup, 200)

@pytest.mark.parametrize("text", ["</script><script>document.title='mine'</script>", "<b>&lt;"])
@netpoll(max_latency_p99="5s", runs=3)
def test_healthy(dup, ping, text): ping(dup, 20)
""",
        "--netpoll-html=out/report.html",
        "--netpoll-json=report.json",
        "-q",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["netpoll: wrote */out/report.html"])
    page.open(pytester.path / "out/report.html")
    assert page.driver.title.startswith("1 failed, 2 passed")

    # The failing test is at the top, and found by its name.
    assert page.names()[0] == "test_wasteful"
    page.search("wasteful")
    assert page.names() == ["test_wasteful"]
    assert page.one("#shown").text == "1 of 3 tests"
    row = page.first()
    assert row.find_element(By.CSS_SELECTOR, ".outcome").text.split() == ["✗", "failed"]
    assert row.find_element(By.CSS_SELECTOR, ".why").text.startswith("dup: spurious ")
    [broken] = row.find_elements(By.CSS_SELECTOR, ".number .broken")
    assert broken.get_attribute("title").endswith("> max 5.0 %")
    assert "--netpoll-html=out/report.html" in page.one(".about .command").text

    detail = page.unfold(row)
    assert "dup: spurious" in detail.find_element(By.CSS_SELECTOR, ".cause").text
    assert "services/kit.Echo" in detail.find_element(By.CSS_SELECTOR, ".stack li").text
    assert "GOMAXPROCS" in detail.find_element(By.CSS_SELECTOR, "h3 .quiet").text
    assert "✗ broken" in detail.find_element(By.CSS_SELECTOR, ".limits").text
    charts = {
        figure.find_element(By.CSS_SELECTOR, "figcaption").text.partition(":")[0]: figure
        for figure in detail.find_elements(By.CSS_SELECTOR, "figure")
    }
    chart = charts["Latency"].find_element(By.CSS_SELECTOR, ".chart")
    assert page.draw(chart) > 0
    # It shows what was measured: a latency for each resolved wakeup.
    tests = json.loads((pytester.path / "report.json").read_text())["tests"]
    (metrics,) = [t["services"][0]["metrics"] for t in tests if t["nodeid"].endswith("test_wasteful")]
    heading, *rows = page.figures(chart)
    assert heading == ["latency", "wakeups"]
    resolved = metrics["productive_wakeups"] + metrics["spurious_wakeups"]
    assert sum(int(count) for _, count in rows) == resolved >= 300
    assert len(chart.screenshot_as_png) > 4000

    # A test's name never becomes part of the page's markup.
    page.search("")
    evil = "test_healthy[</script><script>document.title='mine'</script>]"
    assert evil in page.names()
    assert "test_healthy[<b>&lt;]" in page.names()
    assert page.driver.title.startswith("1 failed")

    # The values of all runs are there.
    page.search("title=")
    detail = page.unfold(page.first())
    heading, *rows = page.cells(detail.find_element(By.CSS_SELECTOR, ":has(> .runs)"))
    assert heading[-3:] == ["run 1", "run 2", "run 3"]
    (service,) = [t["services"][0] for t in tests if t["nodeid"].endswith(evil)]
    (shown,) = [row[1:] for row in rows if row[0] == "wakeups"]
    runs = service["runs"]["wakeups"]
    assert [number for number in shown if number] == list(
        map(str, [sorted(runs)[1], min(runs), max(runs), *runs])
    )
    page.assert_in_order()


def test_without_the_report_libraries_no_test_runs(run, pytester):
    pytester.makepyfile(without="import sys\nsys.modules['plotly'] = None")
    result = run("def test_it(): pass", "-p", "without", "--netpoll-html=report.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --netpoll-html cannot draw its report: plotly cannot be imported",
            "  fix: pip install 'pytest-netpoll[[]html[]]'",
        ]
    )
    assert not (pytester.path / "report.html").exists()


POINTS = [
    {
        "t_ms": 100.0 * (i + 1),
        "wakeups": 30,
        "productive": 20,
        "spurious": i % 10,
        "polls": 40,
        "empty_polls": 12,
        "timeout_polls": i,
        "threads": 9,
        "threads_running": 1.5,
        "run_delay_ns": 2_000_000,
    }
    for i in range(20)
]


def record(number: int, outcome: str = "passed", **changes: Any) -> Any:
    metrics = {**dict.fromkeys(METRICS, 1), "wakeups": number, "lost": 0, "spurious": number / 1e4}
    service = {
        "name": "server",
        "pid": 42,
        "executable": "/srv/server",
        "go_version": "go1.26.6",
        "unmeasured": None,
        "metrics": {**metrics, "latency_p99": 20_000.0},
        "offenders": [],
        "slowest": [],
        "histogram": {str(bucket): bucket % 7 + 1 for bucket in range(150, 250)},
        "timeline": POINTS,
        "columns": {"req/s": 1234.5, "zone": "<i>eu"},
    }
    return {
        "nodeid": f"tests/test_many.py::TestMany::test_many[{number}]",
        "outcome": outcome,
        "reason": None,
        "window_seconds": 2.0,
        "limits": {"max_latency_p99": 5_000_000},
        "breaches": [],
        "services": [service],
        **changes,
    }


RUNS = {name: [1, 2, 3] for name in METRICS}
COMPARISON = {
    "baseline": "main",
    "outcome": "regressed",
    "regressions": [
        {
            "service": "server",
            "metric": "latency_p99",
            "measured": 20_000.0,
            "baseline": 10_000.0,
            "tolerance": "+25%",
            "again": [21_000.0, 22_000.0],
            "text": "server: latency_p99 20.0 µs > 10.0 µs +25% of baseline main",
        }
    ],
    "notes": ["server: times were not compared: kernel 2.4.0 then, 6.8.0 now"],
    "measured": 3,
    "services": [{"name": "server", "metrics": dict.fromkeys(METRICS, 2)}],
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of one test with two toolchains, one of which made it worse, and of another test."""
    bad = record(0, "failed", toolchain="go1.21.13", comparison=COMPARISON, requests_per_second=100.0)
    bad["services"][0] |= {"runs": RUNS}
    good = record(0, toolchain="go1.9", comparison={**COMPARISON, "outcome": "passed", "regressions": []})
    # No charts, because drawing takes time.
    good["services"][0] |= {"histogram": {}, "timeline": []}
    other = record(1, "failed", error="assert 1 == 2", reason="assert 1 == 2")
    other["services"] = []
    for made in (bad, good):
        made["nodeid"] = f"tests/test_few.py::test_few[{made['toolchain']}]"
    path = tmp_path_factory.mktemp("few") / "report.html"
    document.write(path, {"kernel": "6.8.0"}, [bad, good, other])
    return path


def test_thousands_of_tests_are_searched_filtered_and_sorted(tmp_path, page):
    many = tmp_path / "report.html"
    document.write(many, {}, [record(n, "failed" if n == 1234 else "passed") for n in range(2000)])
    assert many.stat().st_size < 6 << 20
    page.open(many)
    assert len(page.names()) == 2000
    assert page.one("#shown").text == "2,000 tests"
    # Failed tests are open; each chart is drawn only when it becomes visible.
    page.until(lambda: len(page.all(".detail")) == 1)
    assert len(page.all(".chart")) == 2

    page.search("no such test")
    assert page.names() == []
    # A page that lays out only a few of them responds at once.
    page.search("many[123")
    # The worst is at the top.
    first, *others = page.names()
    assert first == "TestMany::test_many[1234]"
    assert len(others) == 10
    heading = page.one("th.c-wakeups")
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.names()[:2] == ["TestMany::test_many[1239]", "TestMany::test_many[1238]"]
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert page.names()[:2] == ["TestMany::test_many[123]", "TestMany::test_many[1230]"]
    page.one("[name=outcome][value=passed]").send_keys(Keys.SPACE)
    assert page.names() == ["TestMany::test_many[1234]"]

    page.search("no such test")
    page.one("#reset").send_keys(Keys.ENTER)
    assert len(page.names()) == 2000
    page.one("#open").send_keys(Keys.ENTER)
    page.until(lambda: len(page.all(".detail")) == 101)  # the failed one is not among the first 100
    assert len(page.all("[data-drawn]")) < len(page.all(".chart"))
    page.assert_in_order()


def test_the_page_fits_a_telephone_and_follows_the_dark_theme(few, page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    page.open(few)
    page.search("go1.21")
    detail = page.unfold(page.first())
    latency, timeline = detail.find_elements(By.CSS_SELECTOR, ".chart")
    assert page.draw(latency) > 0
    # Of 20 points each: productive, the spurious ones there were, others, polls, threads, waiting.
    assert page.draw(timeline) > 100
    assert "400 productive and 90 spurious wakeups, 800 polls in 2 s" in timeline.get_attribute("aria-label")
    head, *rows = page.figures(timeline)
    assert len(rows) == 20
    assert dict(zip(head, rows[3], strict=True))["spurious"] == "3"
    assert page.js("document.documentElement.scrollWidth") <= 390

    ink = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    bright, light = page.js("getComputedStyle(document.body).backgroundColor"), page.js(ink)
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.until(lambda: page.js(ink) != light)
    assert page.js("getComputedStyle(document.body).backgroundColor") != bright
    page.assert_in_order()


@pytest.mark.parametrize("write", [str, partial(urllib.parse.quote, safe="")], ids=["typed", "quoted"])
def test_a_link_opens_the_test_that_it_names(few, page, write):
    page.open(few)
    page.search("no such test")
    page.driver.execute_script(
        "location.hash = arguments[0]", write("tests/test_few.py::test_few[go1.21.13]")
    )
    page.until(lambda: page.all(".detail"))
    opened = page.js(
        "document.querySelector('.detail').closest('tbody').querySelector('.c-toolchain').innerText"
    )
    assert opened == "go1.21.13"
    page.assert_in_order()


def test_toolchains_and_regressions_are_distinguished_and_filtered(few, page):
    page.open(few)
    toolchains = (
        "[...document.querySelectorAll('tbody:not([hidden]) td.c-toolchain')].map((e) => e.innerText)"
    )
    assert sorted(page.names()) == ["TestMany::test_many[1]", "test_few", "test_few"]
    button = page.one("th.c-toolchain button")
    button.send_keys(Keys.ENTER)
    assert page.js(toolchains) == ["go1.9", "go1.21.13", "–"]  # noqa: RUF001
    button.send_keys(Keys.ENTER)
    assert page.js(toolchains) == ["go1.21.13", "go1.9", "–"]  # noqa: RUF001
    assert [mark.text for mark in page.all(".against")] == ["regressed"]
    assert [cell.text for cell in page.all(".number .worse")] == ["20.0 µs"]

    page.one("[name=toolchain][value='go1.21.13']").send_keys(Keys.SPACE)
    assert page.js(toolchains) == ["go1.9", "–"]  # noqa: RUF001
    page.one("[name=baseline][value='']").send_keys(Keys.SPACE)
    assert page.js(toolchains) == ["go1.9"]
    page.search("go1.21")
    assert page.names() == []
    page.one("#reset").send_keys(Keys.ENTER)
    page.one("[name=baseline][value=passed]").send_keys(Keys.SPACE)
    assert page.js(toolchains) == ["go1.21.13", "–"]  # noqa: RUF001
    page.assert_in_order()


def test_each_panel_of_a_timeline_with_everything_is_legible(tmp_path, page):
    made = record(0, "failed")
    everything = dict.fromkeys(sections._SERIES, 5)
    points = [{**everything, "t_ms": 100.0 * (i + 1)} for i in range(20)]
    made["services"][0] |= {"histogram": {}, "timeline": points}
    document.write(tmp_path / "report.html", {}, [made])
    page.open(tmp_path / "report.html")
    chart = page.unfold(page.first()).find_element(By.CSS_SELECTOR, ".chart")
    page.draw(chart)
    axes = "Object.entries(arguments[0]._fullLayout).filter(([name]) => name.startsWith('yaxis'))"
    heights = page.driver.execute_script(f"return {axes}.map(([, axis]) => axis._length)", chart)
    assert len(heights) == 9
    assert min(heights) >= 50
    page.assert_in_order()


def stack(*functions: str) -> Any:
    return [{"function": name, "file": "server/main.go", "line": 7} for name in functions]


def test_stacks_are_drawn_as_flame_graphs_when_they_are_opened(tmp_path, page):
    burnt = [("main.hash", "main.serve"), ("main.parse", "main.serve"), ("main.<b>", "main.main")]
    made = record(0, "failed")
    made["services"][0] |= {"histogram": {}, "timeline": []}
    made["services"][0]["offenders"] = [
        {
            "offence": "cpu",
            "count": count,
            "share": count / 100,
            "direction": "",
            "syscall": None,
            "fd_type": None,
            "stack": stack(*functions),
        }
        for functions, count in zip(burnt, (60, 30, 10), strict=True)
    ]
    document.write(tmp_path / "report.html", {}, [made])
    page.open(tmp_path / "report.html")
    page.unfold(page.first())
    graph = page.one(".flame")  # there is none without recorded stacks
    assert graph.text == "Flame graph: CPU time"
    assert page.all(".chart") == []
    graph.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    chart = page.until(lambda: graph.find_element(By.CSS_SELECTOR, ".chart"))
    page.draw(chart)
    page.until(lambda: len(chart.find_elements(By.CSS_SELECTOR, "g.slice")) == 6)
    assert page.figures(chart) == [
        ["function", "line", "share"],
        ["main.serve", "server/main.go:7", "90.0 %"],
        ["main.hash", "server/main.go:7", "60.0 %"],
        ["main.parse", "server/main.go:7", "30.0 %"],
        ["main.main", "server/main.go:7", "10.0 %"],
        ["main.<b>", "server/main.go:7", "10.0 %"],
    ]
    page.assert_in_order()


def test_a_link_to_a_test_opens_it_even_if_it_is_filtered_out(few, page):
    page.driver.get(few.as_uri() + "#tests%2Ftest_few.py%3A%3Atest_few%5Bgo1.9%5D")
    (good,) = page.until(lambda: page.all(".detail"))
    heading, *rows = page.cells(good.find_element(By.CSS_SELECTOR, ":has(> .siblings)"))
    assert heading[:2] == ["Go", "verdict"]
    assert [row[:2] for row in rows] == [["go1.9", "✓ passed"], ["go1.21.13", "✗ failed"]]

    page.one("[name=outcome][value=failed]").send_keys(Keys.SPACE)
    good.find_element(By.CSS_SELECTOR, ".siblings a").send_keys(Keys.ENTER)
    _, bad = page.until(lambda: len(page.all(".detail")) == 2 and sorted(page.all(".detail"), key=worse))
    heading, *rows = page.cells(bad.find_element(By.CSS_SELECTOR, ":has(> .compared)"))
    assert heading[:4] == ["metric", "then", "now", "change"]
    (row,) = [row for row in rows if row[0] == "latency_p99"]
    assert row[-1] == "✗ worse: +25% allowed, remeasured: 21.0 µs, 22.0 µs"
    assert "times were not compared: kernel 2.4.0 then" in bad.text
    page.assert_in_order()


def worse(detail: WebElement) -> bool:
    return "✗ worse" in detail.text
