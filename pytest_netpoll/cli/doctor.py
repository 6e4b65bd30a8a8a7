"""python -m pytest_netpoll doctor: can this machine measure, and if not, how to fix that?

Exit status 0: measuring works; 1: it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pytest_netpoll.errors import NetpollError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import agent_client, checks, privilege
from pytest_netpoll.meter.checks import Finding
from pytest_netpoll.meter.messages import AboutAgent
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.meter.schema import wrong
from pytest_netpoll.options import Config, add_agent_options
from pytest_netpoll.report.cells import wrap, wrap_fix
from pytest_netpoll.service.build import find_go
from pytest_netpoll.service.factory import ServiceFactory

SCHEMA = "pytest-netpoll-doctor/1"
SELFTEST = Path(__file__).parents[1] / "selftest"
WAKEUPS = 23

# Seconds. The first build on a machine compiles the standard library.
DEADLINE = 20.0
AGENT_DEADLINE = agent_client.START_DEADLINE + 10
SELFTEST_DEADLINE = 180.0

# The self-test's build must not depend on the project whose environment this is.
_BUILD_ENVIRONMENT = {"GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "0"}


class TooLate(NetpollError):
    """A check took longer than its deadline."""


class TimedOut(Finding):
    """The finding of a check that timed out: it doesn't show whether the machine can measure."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_netpoll doctor",
        description="Check whether this machine can measure, and how to fix it if not.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_agent_options(parser)
    arguments = parser.parse_args(argv)
    findings = examine(Config.from_arguments(arguments))
    works = all(finding.status != "fail" for finding in findings.values())
    if arguments.json:
        print(json.dumps(_as_json(findings, works), indent=1))
    else:
        print(table(findings, shutil.get_terminal_size((100, 24)).columns))
        print(f"\n{conclusion(findings)}")
    return 0 if works else 1


def examine(config: Config) -> dict[str, Finding]:
    """Runs every check, whatever the others found; returns the findings by name."""
    findings = {name: _within(DEADLINE, check) for name, check in checks.CHECKS.items()}
    findings["BCC"] = _within(DEADLINE, lambda: bcc(config))
    meter = Meter(config, Symbolizer(SELFTEST))
    try:
        findings["agent"] = _within(AGENT_DEADLINE, lambda: agent(meter, config))
        findings["Go"] = _within(DEADLINE, go)
        findings["self-test"] = (
            _within(SELFTEST_DEADLINE, lambda: self_test(meter))
            if findings["agent"].status != "fail" and findings["Go"].status == "ok"
            else _not_tested(findings)
        )
    finally:
        meter.stop()
    if findings["agent"].status == "ok":
        findings = {name: _outweighed(finding) for name, finding in findings.items()}
    return findings


def _outweighed(finding: Finding) -> Finding:
    """Turns a check's timeout into a warning: the agent has just loaded and attached."""
    if not isinstance(finding, TimedOut):
        return finding
    return replace(finding, status="warn", seen=f"{finding.seen}; but the agent loaded and attached")


def _within(seconds: float, check: Callable[[], Finding]) -> Finding:
    """The check's finding. A check that takes too long is interrupted and cleans up behind itself."""
    try:
        with _deadline(seconds):
            return check()
    except TooLate as error:
        return TimedOut.of(error)
    except NetpollError as error:
        return Finding.of(error)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TooLate(
            f"timed out after {seconds:.0f} s",
            why="it hangs, or the machine is overloaded",
            fix=f"try again when the machine is idle: {checks.DOCTOR}",
        )

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def bcc(config: Config) -> Finding:
    """Asks the agent which BCC it would load: only the agent knows, and that needs no root."""
    command = privilege.own_command(config.python)
    message = json.dumps({"id": 0, "do": "about"}) + "\n"
    run = subprocess.run(command, input=message, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(run.stdout)
    except ValueError:
        return Finding("fail", f"{command[0]} can't run the agent", checks.DOCTOR, run.stderr.strip() or None)
    if isinstance(answer, dict) and "failed" in answer:
        return Finding.of(NetpollError(**agent_client.complaint(answer["failed"])))
    strange = wrong(answer, AboutAgent)
    if strange is not None:
        return Finding("fail", f"{agent_client.INVALID}: {strange}", checks.DOCTOR)
    about = answer["about"]
    seen = f"{about['bcc']} of Python {about['python']}, {Path(about['bcc_file']).parent}"
    unrelated = _unrelated_bcc()
    if unrelated is not None:
        return Finding(
            "warn",
            f"{seen}. {unrelated} is an unrelated package of the same name and isn't used",
            f"{sys.executable} -m pip uninstall bcc",
        )
    return Finding("ok", seen)


def _unrelated_bcc() -> str | None:
    """The file of PyPI's `bcc`, which somebody may have installed here for this plugin; None without it."""
    look = "import bcc; print('' if hasattr(bcc, 'BPF') else bcc.__file__)"
    run = subprocess.run(
        [sys.executable, "-I", "-c", look],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or None


def _removal(copy: Path) -> str:
    if copy == privilege.INSTALLED:
        return privilege.removal_command(copy, privilege.SUDOERS)
    # The usual file may hold lines for another agent, and this user can't read it.
    return f"{privilege.removal_command(copy, None)}; lines for it: {privilege.search_command(copy)}"


def agent(meter: Meter, config: Config) -> Finding:
    """Loads and attaches the BPF program for real; compiles it if it is not in the cache."""
    command = privilege.command(config.python, config.sudo, config.agent, config.cache)
    copy = privilege.copy_in(command, config.agent)
    started = time.monotonic()
    window = meter.open()
    meter.close(window, [])
    if window.failed is not None:
        return Finding.of(window.failed)
    ready = meter.environment
    how = "loaded from the cache" if ready["program"] == "cache" else "compiled, loaded"
    seen = (
        f"{how} and attached in {time.monotonic() - started:.1f} s ({ready['resident_bytes'] / 1e6:.0f} MB)"
    )
    if command[0] == "sudo":
        seen += ", with sudo"
        if copy:
            seen += f", from {copy} (to remove it: {_removal(copy)})"
    why = ready["not_cached"]
    if why is None:
        return Finding("ok", seen)
    # An installed agent doesn't know who installed it.
    fix = (
        privilege.install_command(copy, python=config.python or privilege.SYSTEM_PYTHON)
        if copy
        else why["fix"]
    )
    return Finding("ok", f"{seen}; not from the cache: {why['what']}", fix)


def go() -> Finding:
    """Checks for Go, which only building services needs; commands and running processes are measured without
    it.
    """
    try:
        tool = find_go()
    except NetpollError as error:
        seen = f"{error.why}: go_service can run commands, but can't build packages"
        return Finding("warn", seen, "install Go: https://go.dev/dl")
    run = subprocess.run(
        [tool.path, "version"],
        env={**os.environ, **tool.env, "GOTOOLCHAIN": "local"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        return Finding(
            "warn", f"{tool.path} does not run", f"{tool.path} version", run.stderr.strip() or None
        )
    return Finding("ok", f"{run.stdout.strip().removeprefix('go version ')}, {tool.path}")


def self_test(meter: Meter) -> Finding:
    """Builds a program that wakes a goroutine a known number of times, and checks the count."""
    with tempfile.TemporaryDirectory(prefix="netpoll-doctor-") as directory:
        factory = ServiceFactory(
            rootdir=SELFTEST, cache_dir=Path(directory), on_spawn=meter.watch, on_exit=meter.unwatch
        )
        try:
            service = factory(
                SELFTEST, args=[WAKEUPS], env=_BUILD_ENVIRONMENT, ready=re.compile("^ready$", re.MULTILINE)
            )
            window = meter.open()
            os.kill(service.pid, signal.SIGUSR1)
            while service.running and "done" not in service.log.split():
                time.sleep(0.005)
            (measurement,) = meter.close(window, [service])
            said = service.tail()
        finally:
            factory.stop_all()
    if measurement.unmeasured is not None:
        reason = measurement.unmeasured
        return Finding("fail", reason.headline, reason.fix or checks.likely_fix(), said)
    counted = {name: measurement.metrics[name] for name in ("wakeups", "productive_wakeups", "lost")}
    if counted != {"wakeups": WAKEUPS, "productive_wakeups": WAKEUPS, "lost": 0}:
        numbers = ", ".join(f"{name} {value}" for name, value in counted.items())
        return Finding("fail", f"woke a goroutine {WAKEUPS} times, counted {numbers}", _REPORT_IT)
    return Finding(
        "ok",
        f"a {measurement.go_version} program woke a goroutine {WAKEUPS} times; counted {counted['wakeups']}",
    )


_REPORT_IT = f"open an issue with the output of: {checks.DOCTOR} --json"


def _not_tested(findings: Mapping[str, Finding]) -> Finding:
    if findings["agent"].status == "fail":
        return Finding("fail", "skipped: the agent doesn't run")
    return Finding("warn", "skipped: there is no Go to build its program with", findings["Go"].fix)


def conclusion(findings: Mapping[str, Finding]) -> str:
    """The last line: whether measuring works."""
    failed = [name for name, finding in findings.items() if finding.status == "fail"]
    if failed:
        return f"Measuring does not work here: {', '.join(failed)}."
    if findings["self-test"].status == "ok":
        return "Measuring works here."
    missing = "did not finish" if isinstance(findings["self-test"], TimedOut) else "was not done"
    return f"Measuring should work here, but the self-test {missing}."


def table(findings: Mapping[str, Finding], width: int) -> str:
    """A row for each check, with the fix below what was seen."""
    room = max(width - max(map(len, findings)) - len("FAIL") - 4, 40)
    rows = []
    for name, finding in findings.items():
        lines = wrap(finding.seen, room, hang="")
        if finding.fix is not None:
            lines += wrap_fix(finding.fix, room, hang="")
        if finding.detail is not None:
            lines += [f"| {line}" for line in finding.detail.splitlines()]
        rows.append([name, "FAIL" if finding.status == "fail" else finding.status, "\n".join(lines)])
    text = tabulate(rows, headers=["check", "", "seen"], tablefmt="plain", disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _as_json(findings: Mapping[str, Finding], works: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "works": works,
        "proven": findings["self-test"].status == "ok",
        "checks": [{"name": name, **asdict(finding)} for name, finding in findings.items()],
    }
