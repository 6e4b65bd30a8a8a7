"""--netpoll-html, looked at in a real browser that is told to do what a person would, by keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from pytest_netpoll.metrics import METRICS
from pytest_netpoll.report import html

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
        return WebDriverWait(self.driver, PATIENCE).until(lambda _: condition())

    def names(self) -> list[str]:
        """Of the tests in the table that are shown, in order."""
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
        """Opens a test's row by keyboard; its details, with all charts drawn that are in sight."""
        button = test.find_element(By.CSS_SELECTOR, ".test button")
        button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-expanded") == "true"
        return self.until(lambda: test.find_element(By.CSS_SELECTOR, ".detail"))

    def draw(self, chart: WebElement) -> int:
        """Scrolls to a chart; how many bars it shows."""
        self.driver.execute_script("arguments[0].scrollIntoView()", chart)
        self.until(lambda: chart.get_attribute("data-drawn") is not None)
        return len(chart.find_elements(By.CSS_SELECTOR, ".bars .point path"))

    def figures(self, chart: WebElement) -> list[list[str]]:
        """The numbers behind a chart, for those who cannot see it."""
        table = chart.find_element(By.XPATH, "following-sibling::details")
        table.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
        rows = self.until(lambda: table.find_elements(By.CSS_SELECTOR, "tr"))
        return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]

    def assert_in_order(self) -> None:
        """Nothing was complained of, or fetched from anywhere."""
        assert self.driver.get_log("browser") == []
        assert self.js("performance.getEntriesByType('resource').length") == 0


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        pytest.skip("no Chromium with its chromedriver: .ci/setup test installs them where it can")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Its path is given, or selenium would look for a driver to download.
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    try:
        yield Page(driver)
    finally:
        driver.quit()


@pytest.mark.bpf
def test_the_report_of_a_real_run_names_the_culprit(run, pytester, page):
    result = run(
        """
@netpoll(max_spurious=0.05)
def test_wasteful(dup, ping): ping(dup, 200)

@pytest.mark.parametrize("text", ["</script><script>document.title='mine'</script>", "<b>&lt;"])
@netpoll(max_latency_p99="5s")
def test_healthy(echo, ping, text): ping(echo, 100)
""",
        "--netpoll-html=out/report.html",
        "--netpoll-json=report.json",
        "-q",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["netpoll: wrote */out/report.html"])
    page.open(pytester.path / "out/report.html")
    assert page.driver.title.startswith("1 failed, 2 passed")

    # The failing test is on top, and found by its name.
    assert page.names()[0] == "test_wasteful"
    page.search("wasteful")
    assert page.names() == ["test_wasteful"]
    assert page.one("#shown").text == "1 of 3 tests"
    row = page.first()
    assert row.find_element(By.CSS_SELECTOR, ".outcome").text.split() == ["✗", "failed"]

    detail = page.unfold(row)
    assert "dup: spurious" in detail.find_element(By.CSS_SELECTOR, ".cause").text
    assert "services/kit.Echo" in detail.find_element(By.CSS_SELECTOR, ".stack li").text
    assert "GOMAXPROCS" in detail.find_element(By.CSS_SELECTOR, "h3 .quiet").text
    assert "✗ broken" in detail.find_element(By.CSS_SELECTOR, ".limits").text
    chart = detail.find_elements(By.CSS_SELECTOR, ".chart")[0]
    assert page.draw(chart) > 0
    # What it shows is what was measured: a latency for each wakeup that was resolved.
    tests = json.loads((pytester.path / "report.json").read_text())["tests"]
    (metrics,) = [t["services"][0]["metrics"] for t in tests if t["nodeid"].endswith("test_wasteful")]
    heading, *rows = page.figures(chart)
    assert heading == ["latency", "wakeups"]
    resolved = metrics["productive_wakeups"] + metrics["spurious_wakeups"]
    assert sum(int(count) for _, count in rows) == resolved >= 300
    assert len(chart.screenshot_as_png) > 4000

    # Nothing that a test is called becomes a part of the page.
    page.search("")
    assert "test_healthy[</script><script>document.title='mine'</script>]" in page.names()
    assert "test_healthy[<b>&lt;]" in page.names()
    assert page.driver.title.startswith("1 failed")
    page.assert_in_order()


def test_without_its_libraries_no_test_is_run(run, pytester):
    pytester.makepyfile(without="import sys\nsys.modules['plotly'] = None")
    result = run("def test_it(): pass", "-p", "without", "--netpoll-html=report.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --netpoll-html cannot draw its report: plotly cannot be imported",
            "  to mend: pip install 'pytest-netpoll[[]html[]]'",
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


@pytest.fixture
def written(tmp_path: Path) -> Callable[[int], Path]:
    """written(3000) is a report of so many tests, the last of which failed."""

    def written(count: int) -> Path:
        records = [record(number) for number in range(count - 1)]
        records.append(record(count - 1, "failed", error="assert 1 == 2", reason="assert 1 == 2"))
        html.write(tmp_path / "report.html", {"kernel": "6.8.0"}, records)
        return tmp_path / "report.html"

    return written


def test_thousands_of_tests_are_searched_filtered_sorted_and_drawn(written, page):
    many = written(3000)
    assert many.stat().st_size < 8 << 20
    page.open(many)
    assert len(page.names()) == 3000
    assert page.one("#shown").text == "3,000 tests"
    # Each is drawn only when it is looked at.
    assert page.all(".chart") == []
    assert page.js("window.Plotly") is None

    page.search("many[1234]")
    assert page.names() == ["TestMany::test_many[1234]"]
    page.search("no such test")
    assert page.names() == []
    page.one("#reset").send_keys(Keys.ENTER)
    assert len(page.names()) == 3000

    page.one("[name=outcome][value=passed]").send_keys(Keys.SPACE)
    assert page.names() == ["TestMany::test_many[2999]"]
    page.one("[name=outcome][value=passed]").send_keys(Keys.SPACE)

    heading = page.one("th.c-wakeups")
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.names()[:2] == ["TestMany::test_many[2999]", "TestMany::test_many[2998]"]
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert page.names()[:2] == ["TestMany::test_many[0]", "TestMany::test_many[1]"]

    latency, timeline = page.unfold(page.first()).find_elements(By.CSS_SELECTOR, ".chart")
    assert page.draw(latency) > 0
    # Of 20 points each: productive, the spurious ones there were, others, polls, threads, waiting.
    assert page.draw(timeline) > 100
    assert "400 productive and 90 spurious wakeups, 800 polls in 2 s" in timeline.get_attribute("aria-label")
    head, *rows = page.figures(timeline)
    assert len(rows) == 20
    assert dict(zip(head, rows[3], strict=True))["spurious"] == "3"
    page.one("#open").send_keys(Keys.ENTER)
    page.until(lambda: len(page.all(".detail")) == 100)
    page.assert_in_order()


def test_the_page_fits_a_telephone_and_follows_the_dark_theme(written, page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    page.open(written(1))
    detail = page.unfold(page.first())
    charts = detail.find_elements(By.CSS_SELECTOR, ".chart")
    assert all(map(page.draw, charts))
    assert page.js("document.documentElement.scrollWidth") <= 390

    ink = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    bright, light = page.js("getComputedStyle(document.body).backgroundColor"), page.js(ink)
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.until(lambda: page.js(ink) != light)
    assert page.js("getComputedStyle(document.body).backgroundColor") != bright
    page.assert_in_order()


def test_a_link_to_a_test_opens_it(written, page):
    page.driver.get(written(3).as_uri() + "#tests%2Ftest_many.py%3A%3ATestMany%3A%3Atest_many%5B2%5D")
    assert "assert 1 == 2" in page.until(lambda: page.all(".detail"))[0].text
    page.assert_in_order()
