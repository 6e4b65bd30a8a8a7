"""The quick start and the recipes, as written: a healthy service passes, one with a fault is caught."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.waiting import undisturbed

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes.md"

pytestmark = pytest.mark.bpf

# The service for the HTTP recipe. With -hogs there is one thread, and this many goroutines that never rest.
HTTP_SERVICE = """
package main

import (
	"flag"
	"log"
	"net/http"
	"runtime"
)

func main() {
	addr := flag.String("addr", "", "address")
	hogs := flag.Int("hogs", 0, "goroutines that never rest")
	flag.Parse()
	if *hogs > 0 {
		runtime.GOMAXPROCS(1)
	}
	for i := 0; i < *hogs; i++ {
		go func() {
			for {
			}
		}()
	}
	http.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	log.Fatal(http.ListenAndServe(*addr, nil))
}
"""

# The service for the recipe for config files.
CONFIGURED_SERVICE = """
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	path := flag.String("config", "", "file")
	flag.Parse()
	text, err := os.ReadFile(*path)
	if err != nil {
		log.Fatal(err)
	}
	var config struct{ Listen string }
	if err := json.Unmarshal(text, &config); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
	}
}
"""


@pytest.fixture
def http_service(pytester):
    (pytester.path / "go.mod").write_text("module example.com/shop\n\ngo 1.19\n")
    (pytester.path / "server").mkdir()
    (pytester.path / "server" / "main.go").write_text(HTTP_SERVICE)


@pytest.fixture
def configured_service(http_service, pytester):  # noqa: ARG001 - has written the module
    (pytester.path / "server" / "main.go").write_text(CONFIGURED_SERVICE)


@pytest.fixture
def tcp_service(pytester):
    shutil.copy(ROOT / "example_project" / "go.mod", pytester.path)
    shutil.copytree(ROOT / "example_project" / "server", pytester.path / "server")


@pytest.fixture
def follow(run, pytester):  # noqa: ARG001 - run has found Go's cache
    """follow(recipe, *flags) runs what the page has under that heading, with further flags for ./server.

    Returns the result, and the measured tests as in the JSON report, by name.
    """

    def follow(recipe, *flags):
        section = RECIPES.read_text().partition(f"\n## {recipe}\n")[2].partition("\n## ")[0]
        files = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", section, re.S))
        assert set(files) > {"conftest.py"}
        address = '"127.0.0.1:{port}"'
        assert not flags or address in files["conftest.py"]
        command = ", ".join([address, *map(repr, flags)])
        for name, source in files.items():
            (pytester.path / name).write_text(source.replace(address, command))
        result = pytester.runpytest_subprocess("--netpoll-json=report.json", timeout=600)
        report = json.loads((pytester.path / "report.json").read_text())
        return result, {test["nodeid"].rpartition("::")[2]: test for test in report["tests"]}

    return follow


def metrics_of(test):
    [service] = test["services"]
    return service["metrics"]


@pytest.mark.usefixtures("http_service")
@undisturbed
def test_the_recipe_for_http_passes_and_keeps_its_connection(follow):
    result, tests = follow("An HTTP service")
    result.assert_outcomes(passed=1)
    metrics = metrics_of(tests["test_requests_on_a_kept_connection"])
    # A separate connection for each request would make two events for each.
    assert metrics["events"] < 150


@pytest.mark.usefixtures("http_service")
@undisturbed
def test_the_recipe_for_http_catches_a_service_that_reads_late(follow):
    result, tests = follow("An HTTP service", "-hogs=2")
    result.assert_outcomes(failed=1)
    [breach] = tests["test_requests_on_a_kept_connection"]["breaches"]
    assert breach["metric"] == "latency_p90"


@pytest.mark.usefixtures("tcp_service")
@undisturbed
def test_the_recipe_for_tcp_passes_with_a_wakeup_for_each_message(follow):
    result, tests = follow("A TCP service")
    result.assert_outcomes(passed=2)
    metrics = metrics_of(tests["test_a_message_wakes_one_reader"])
    # At most these, the accept and the end; on a busy machine some find their reader awake.
    assert 50 < metrics["wakeups"] <= 102


@pytest.mark.usefixtures("tcp_service")
@undisturbed
def test_the_recipe_for_tcp_catches_a_second_reader(follow):
    result, tests = follow("A TCP service", "-fault=dup")
    result.assert_outcomes(passed=1, failed=1)
    broken = {breach["metric"] for breach in tests["test_a_message_wakes_one_reader"]["breaches"]}
    assert "spurious" in broken


@pytest.mark.usefixtures("tcp_service")
@undisturbed
def test_the_recipe_for_tcp_catches_readers_that_wake_up_without_messages(follow):
    result, _ = follow("A TCP service", "-fault=busy-poll")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED *test_silent_connections_cost_nothing*"])


@pytest.mark.usefixtures("configured_service")
@undisturbed
def test_the_recipe_for_config_files_finds_the_port_that_the_kernel_chose(follow):
    result, tests = follow("Port 0, or a config file")
    result.assert_outcomes(passed=1)
    assert metrics_of(tests["test_echo"])["wakeups"] > 25


@pytest.mark.usefixtures("tcp_service")
@undisturbed
def test_the_recipe_for_several_services_judges_each(follow):
    result, tests = follow("Several services")
    result.assert_outcomes(passed=2)
    assert {service["name"] for service in tests["test_both"]["services"]} == {"frontend", "backend"}
    assert tests["test_both"]["limits"]["frontend:max_latency_p90"] == 10_000_000
    [alone] = tests["test_the_backend_is_quiet"]["services"]
    assert alone["name"] == "backend"


@pytest.mark.usefixtures("tcp_service")
@undisturbed
def test_the_recipe_for_a_service_for_each_test_measures_the_start_too(follow):
    result, tests = follow("A service for each test")
    result.assert_outcomes(passed=2)
    assert metrics_of(tests["test_the_start_is_measured_too"])["wakeups"] >= 1


@undisturbed
def test_the_quick_start_passes_until_there_is_a_second_reader(run, pytester):  # noqa: ARG001 - has found Go's cache
    page = (ROOT / "docs" / "quickstart.md").read_text()
    python = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", page, re.S))
    [service, broken] = re.findall(r"```go\n(.*?)```", page, re.S)
    [module] = re.findall(r"```\n(module .*?)```", page, re.S)
    (pytester.path / "server").mkdir(exist_ok=True)
    for name, text in {**python, "go.mod": module, "server/main.go": service}.items():
        (pytester.path / name).write_text(text)
    pytester.runpytest_subprocess(timeout=600).assert_outcomes(passed=1)

    second_reader = re.sub(r"func handle\(.*?\n}\n", lambda _: broken, service, flags=re.S)
    (pytester.path / "server" / "main.go").write_text(second_reader)
    result = pytester.runpytest_subprocess(timeout=600)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["server: spurious * > max 1.0 %", "*server/main.go:43 *main.echo"])
