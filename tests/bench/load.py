"""What a turn measures: the service under load, and single operations."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_netpoll.service.service import Service

CONNECTIONS = 64
WRK = ("wrk", "-t2", f"-c{CONNECTIONS}", "--latency")
# Each connection sends on its own schedule, at even intervals; -r: the histogram's resolution in s.
FORTIO = ("load", "-quiet", f"-c={CONNECTIONS}", "-uniform", "-r=0.00001", "-p=99")
MICRO_EACH = "50ms"

_FORTIO = Path(__file__).parents[2] / ".tools" / "bin" / "fortio"
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Load:
    """rate: requests served a second. p99: s. cpu: s of the service's own CPU time a request."""

    rate: float
    p99: float
    cpu: float


def saturate(service: Service, seconds: int) -> Load:
    """As many requests as wrk gets answered: each connection sends the next one after the last answer."""
    spent = cpu_seconds(service)
    output = run(*WRK, f"-d{seconds}s", service.url)
    spent = cpu_seconds(service) - spent
    rate = re.search(r"^Requests/sec: *([\d.]+)", output, re.M)
    p99 = re.search(r"^ *99% +([\d.]+)(us|ms|s|m)$", output, re.M)
    requests = re.search(r"^ *(\d+) requests in ", output, re.M)
    if not (rate and p99 and requests) or "Non-2xx" in output:
        sys.exit(f"bench: wrk said\n{output}")
    return Load(float(rate[1]), float(p99[1]) * _UNITS[p99[2]], spent / max(1, int(requests[1])))


def offer(service: Service, rate: float, seconds: int, scratch: Path) -> Load:
    """This many requests per second, as far as they are answered. scratch: a directory."""
    results = scratch / "fortio.json"
    spent = cpu_seconds(service)
    run(fortio(), *FORTIO, f"-qps={rate:.0f}", f"-t={seconds}s", f"-json={results}", service.url)
    spent = cpu_seconds(service) - spent
    report = json.loads(results.read_text())
    served = report["RetCodes"].get("200", 0)
    [p99] = report["DurationHistogram"]["Percentiles"]
    return Load(served / report["ActualDuration"] * 1e9, p99["Value"], spent / max(1, served))


def micro(service: Service) -> Mapping[str, float]:
    """Operation -> ns, by server/micro.go."""
    with urllib.request.urlopen(f"{service.url}/micro?each={MICRO_EACH}", timeout=60) as answer:
        return {operation["name"]: operation["ns"] for operation in json.load(answer)}


def fortio() -> str:
    """The one that .ci/setup bench has installed, or the user's own."""
    found = str(_FORTIO) if _FORTIO.exists() else shutil.which("fortio")
    return found or sys.exit("bench: fortio is missing: .ci/setup bench")


def cpu_seconds(service: Service) -> float:
    times = psutil.Process(service.pid).cpu_times()
    return times.user + times.system


def run(*argv: str) -> str:
    result = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        sys.exit(f"bench: {argv[0]} failed with exit status {result.returncode}\n{result.stderr}")
    return result.stdout
