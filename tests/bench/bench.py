"""What measuring costs: `make bench`.

Requests a second of the example service (small HTTP responses, CPU saturated by wrk) with nothing attached,
with an empty raw tracepoint on sys_exit (the floor of this method), and with ours. The three take turns in
each round, and only ratios within a round count: these machines are noisy.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import psutil
from tabulate import tabulate

from pytest_netpoll import privilege
from pytest_netpoll.options import Config
from pytest_netpoll.service import Service, ServiceFactory
from pytest_netpoll.symbols import Symbolizer
from pytest_netpoll.window import Meter

ROOT = Path(__file__).parents[2]

FLOOR = """
import os, sys
os.environ["BCC_KERNEL_SOURCE"] = sys.argv[1]
from bcc import BPF
bpf = BPF(text=b"RAW_TRACEPOINT_PROBE(sys_exit) { return 0; }")
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def floor() -> Iterator[None]:
    """An empty raw tracepoint on sys_exit."""
    stub = str(privilege.bpf_sources() / "stub")
    with subprocess.Popen(
        [str(privilege.SYSTEM_PYTHON), "-I", "-c", FLOOR, stub],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        if not process.stdout.readline():
            sys.exit("bench: the floor's probe did not load")
        yield
        process.stdin.close()


@contextmanager
def ours(service: Service, figures: dict[str, list[float]]) -> Iterator[None]:
    """Our probe, with a window open."""
    meter = Meter(Config.default(), Symbolizer(ROOT))
    started = time.monotonic()
    meter.start()
    meter.watch(service)
    figures["agent ready, calibrated (s)"].append(time.monotonic() - started)
    for _ in range(20):
        started = time.monotonic()
        meter.close(meter.open(), [])
        figures["opening and closing a window (ms)"].append((time.monotonic() - started) * 1e3)
    window = meter.open()
    yield
    [measurement] = meter.close(window, [service])
    if measurement.unmeasured or not measurement.wakeups:
        sys.exit(f"bench: not measured: {measurement.unmeasured}")
    figures["wakeups unresolved (%)"].append(
        100 * (measurement.abandoned_wakeups + measurement.pending_wakeups) / measurement.wakeups
    )
    figures["agent memory, resident (MiB)"].append(psutil.Process(meter.agent_pid).memory_info().rss / 2**20)
    meter.stop()


def requests_per_second(url: str, seconds: int) -> float:
    output = subprocess.run(
        ["wrk", "-t2", "-c64", f"-d{seconds}s", url], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"Requests/sec:\s*([\d.]+)", output)
    if found is None:
        sys.exit(f"bench: wrk said\n{output}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    figures: dict[str, list[float]] = {
        "agent ready, calibrated (s)": [],
        "opening and closing a window (ms)": [],
        "agent memory, resident (MiB)": [],
        "wakeups unresolved (%)": [],
    }
    with tempfile.TemporaryDirectory() as cache:
        factory = ServiceFactory(rootdir=ROOT / "example_project", cache_dir=Path(cache))
        web = f"127.0.0.1:{factory.free_port()}"
        service = factory("./server", args=["-addr", "127.0.0.1:{port}", "-http", web])
        attached: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "nothing": nullcontext,
            "empty raw tracepoint": floor,
            "pytest-netpoll": lambda: ours(service, figures),
        }
        rates: dict[str, list[float]] = {name: [] for name in attached}
        names = list(attached)
        try:
            requests_per_second(f"http://{web}/", 1)
            for number in range(options.rounds):
                # Each takes each place in turn: the first of a round may find a cooler machine.
                turn = number % len(names)
                for name in names[turn:] + names[:turn]:
                    with attached[name]():
                        rates[name].append(requests_per_second(f"http://{web}/", options.seconds))
        finally:
            factory.stop_all()
    rows = []
    for name, values in rates.items():
        kept = [value / base for value, base in zip(values, rates["nothing"], strict=True)]
        rows.append([name, f"{statistics.median(values):,.0f}", f"{statistics.median(kept):.3f}"])
    print(f"{options.rounds} rounds of {options.seconds} s, {os.cpu_count()} CPUs, {os.uname().release}\n")
    print(tabulate(rows, ["attached", "requests/s", "kept (median of rounds)"], disable_numparse=True))
    print()
    summary = [
        [name, f"{statistics.median(values):.2f}", f"{max(values):.2f}"]
        for name, values in figures.items()
        if values
    ]
    print(tabulate(summary, ["", "median", "max"], disable_numparse=True))


if __name__ == "__main__":
    main()
