"""`watch --prometheus`: a scrape returns the true numbers, as Prometheus names them."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_netpoll.cli.watch import prometheus
from tests.waiting import attempts, undisturbed

# Debian's package prometheus has it; .ci/setup puts it there.
UNPACKED = Path(__file__).parents[2] / ".tools" / "prometheus" / "usr" / "bin" / "promtool"
PROMTOOL = shutil.which("promtool") or (str(UNPACKED) if UNPACKED.exists() else None)
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool: install prometheus")


def promtool(*arguments: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    """Its output; it must succeed."""
    assert PROMTOOL is not None
    run = subprocess.run(
        [PROMTOOL, *arguments],
        cwd=cwd,
        **({"input": text} if text is not None else {"stdin": subprocess.DEVNULL}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.fixture
def scrape(launch, connect, spaced_pings, newest_go):
    """scrape(): (the exposition after 100 pings to a service that wakes two readers each time, the address
    bound, the summary)"""
    return lambda: scraped(launch, connect, spaced_pings, newest_go)


def scraped(launch, connect, spaced_pings, newest_go):
    server = launch("dup", go=str(newest_go.go))
    connection = connect(server.address)
    command = [sys.executable, "-m", "pytest_netpoll", "watch", "--pid", str(server.pid)]
    with subprocess.Popen(
        [*command, "--interval", "200ms", "--prometheus", ":0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        for _ in range(3):
            process.stdout.readline()
        spaced_pings(connection, 100)
        text, seen = "", -1.0
        for _ in attempts():
            text = urllib.request.urlopen(url, timeout=60).read().decode()
            before, seen = seen, value(text, "netpoll_wakeups_total")
            if seen == before and seen >= 196:  # an interval may end within the pings
                break
            time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        summary = process.stdout.read()
        process.wait(60)
    return text, url, summary


def value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@undisturbed
def test_scraped_metrics_match_what_the_service_did(scrape):
    text, url, summary = scrape()
    assert url.startswith("http://127.0.0.1:"), "not reachable from elsewhere unless requested"
    assert value(text, "netpoll_wakeups_total") == pytest.approx(200, abs=4)
    assert value(text, "netpoll_spurious_wakeups_total") == pytest.approx(100, abs=4)
    assert value(text, "netpoll_measured") == 1
    assert value(text, "netpoll_cpu_seconds_total") > 0
    resolved = value(text, "netpoll_spurious_wakeups_total") + value(text, "netpoll_productive_wakeups_total")
    assert value(text, "netpoll_wakeup_latency_seconds_count") == resolved
    buckets = re.findall(r'^netpoll_wakeup_latency_seconds_bucket{le="(\S+?)",.*} (\S+)$', text, re.MULTILINE)
    counts = [float(count) for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == ("+Inf", str(resolved))
    median = re.search(r"^latency_p50 .* (\S+) µs$", summary, re.MULTILINE)
    assert median is not None
    below = max(float(le) for le, count in buckets if float(count) < resolved / 2)
    above = min(float(le) for le, count in buckets if float(count) >= resolved / 2)
    assert below * 0.96 <= float(median[1]) / 1e6 <= above * 1.04
    mean = value(text, "netpoll_wakeup_latency_seconds_sum") / resolved
    assert 1e-6 < mean < 1
    if PROMTOOL is not None:
        assert promtool("check", "metrics", text=text) == ""


def test_a_bucket_counts_latencies_below_its_bound():
    """Bounds are also those of the kernel's buckets: no latency is counted on the wrong side."""
    from pytest_netpoll.model.histogram import bucket_of

    for border in prometheus.BORDERS_NS:
        histogram = {bucket_of(border - 1): 3, bucket_of(border): 4}
        counts = dict(prometheus.cumulative(histogram))
        assert counts[repr(border / 1e9)] == 3
        assert counts["+Inf"] == 7


def test_a_gauge_is_absent_while_the_last_interval_could_not_be_measured():
    from pytest_netpoll.model.measurement import Measurement
    from pytest_netpoll.model.snapshot import Snapshot

    counted = Measurement("server", 1, None, None, 1.0, Snapshot({"events": 2, "polls": 4}))
    doubtful = replace(counted, unmeasured="the service is gone")
    with prometheus.Exporter("127.0.0.1", 0) as exporter:
        names = {}
        for latest in (counted, doubtful):
            exporter.update(counted, latest)
            names[latest.unmeasured] = {family.name for family in exporter.collect()}
    assert names[None] - names["the service is gone"] == {"netpoll_polls_per_event"}


@needs_promtool
def test_the_example_rules_are_valid_and_fire(tmp_path):
    (tmp_path / "alerts.yml").write_text(prometheus.alert_rules())
    assert "SUCCESS: 4 rules found" in promtool("check", "rules", "alerts.yml", cwd=tmp_path)
    (tmp_path / "test.yml").write_text(RULES_TEST)
    assert "SUCCESS" in promtool("test", "rules", "test.yml", cwd=tmp_path)


# The service "bad" triggers everything, "good" has the same load and triggers nothing.
RULES_TEST = """
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'netpoll_wakeups_total{service="bad"}', values: '0+600x30'}
      - {series: 'netpoll_spurious_wakeups_total{service="bad"}', values: '0+300x30'}
      - {series: 'netpoll_productive_wakeups_total{service="bad"}', values: '0+300x30'}
      - {series: 'netpoll_polls_total{service="bad"}', values: '0+120000x30'}
      - {series: 'netpoll_empty_polls_total{service="bad"}', values: '0+108000x30'}
      - {series: 'netpoll_measured{service="bad"}', values: '0x30'}
      - {series: 'netpoll_wakeup_latency_seconds_bucket{service="bad",le="0.000524288"}', values: '0+300x30'}
      - {series: 'netpoll_wakeup_latency_seconds_bucket{service="bad",le="0.016777216"}', values: '0+600x30'}
      - {series: 'netpoll_wakeup_latency_seconds_bucket{service="bad",le="+Inf"}', values: '0+600x30'}
      - {series: 'netpoll_wakeups_total{service="good"}', values: '0+600x30'}
      - {series: 'netpoll_spurious_wakeups_total{service="good"}', values: '0+6x30'}
      - {series: 'netpoll_productive_wakeups_total{service="good"}', values: '0+594x30'}
      - {series: 'netpoll_polls_total{service="good"}', values: '0+120000x30'}
      - {series: 'netpoll_empty_polls_total{service="good"}', values: '0+12000x30'}
      - {series: 'netpoll_measured{service="good"}', values: '1x30'}
      - {series: 'netpoll_wakeup_latency_seconds_bucket{service="good",le="0.000524288"}', values: '0+600x30'}
      - {series: 'netpoll_wakeup_latency_seconds_bucket{service="good",le="+Inf"}', values: '0+600x30'}
    promql_expr_test:
      - expr: count by (alertname, service) (ALERTS{alertstate="firing"})
        eval_time: 25m
        exp_samples:
          - {labels: '{alertname="NetpollSpuriousWakeups", service="bad"}', value: 1}
          - {labels: '{alertname="NetpollEmptyPolls", service="bad"}', value: 1}
          - {labels: '{alertname="NetpollWakeLatency", service="bad"}', value: 1}
          - {labels: '{alertname="NetpollNotMeasured", service="bad"}', value: 1}
"""


def test_clients_that_never_finish_their_request_do_no_harm(launch, newest_go):
    server = launch("echo", go=str(newest_go.go))
    command = [sys.executable, "-m", "pytest_netpoll", "watch", "--pid", str(server.pid)]
    few = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    process = subprocess.Popen(
        [*command, "--interval", "100ms", "--prometheus", ":0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, few)),
    )
    with process, contextlib.ExitStack() as clients:
        url = process.stdout.readline().split()[-1]
        port = int(url.split(":")[-1].partition("/")[0])
        while "not measured" not in (line := process.stdout.readline()) and not line[:1].isdigit():
            pass  # after the agent has started, for which it needs descriptors
        for _ in range(250):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            client.sendall(b"GET /metr")
        for _ in range(3):
            scraped = urllib.request.urlopen(url, timeout=60).read().decode()
            assert value(scraped, "netpoll_measured") == 1
            for _ in range(2):
                assert "not measured" not in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_port_in_use_and_an_absent_client_are_named(tmp_path):
    command = [sys.executable, "-m", "pytest_netpoll", "watch", "--pid", str(os.getpid())]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [*command, "--prometheus", f":{port}"], capture_output=True, text=True, timeout=60
        )
    assert run.returncode == 1
    assert run.stderr.startswith(f"metrics cannot be served at 127.0.0.1:{port}: Address already in use")
    (tmp_path / "prometheus_client.py").write_text("raise ImportError\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [*command, "--prometheus", ":0"], capture_output=True, text=True, timeout=60, env=env
    )
    assert run.returncode == 1
    assert "fix: pip install 'pytest-netpoll[prometheus]'" in run.stderr
