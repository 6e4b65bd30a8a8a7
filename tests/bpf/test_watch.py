"""`watch`, and the doctor's self-test, on real processes whose true numbers are known."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from pytest_netpoll import __main__
from pytest_netpoll.cli import doctor
from pytest_netpoll.model.metrics import METRICS
from tests.waiting import patiently, undisturbed

WATCH = [sys.executable, "-m", "pytest_netpoll", "watch"]


@pytest.fixture
def watch():
    """watch("--json", …) is the command, running; killed with the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: object, **options) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*WATCH, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture(scope="session")
def counting(cache_dir, newest_go) -> str:
    """The doctor's program: wakes a goroutine as often as its argument says, on SIGUSR1."""
    from pytest_netpoll.service.build import Builder

    return str(
        Builder(cache_dir).build(
            "./selftest", base=doctor.SELFTEST.parent, go=str(newest_go.go), flags=[], env={}
        )
    )


def lines(process: subprocess.Popen[str]) -> Iterator[dict]:
    assert process.stdout is not None
    return map(json.loads, process.stdout)


@undisturbed
def test_the_doctors_self_test_counts_its_23_wakeups_and_nothing_else(meter, go_toolchain, monkeypatch):
    monkeypatch.setenv("PATH", f"{go_toolchain.go.parent}:{os.environ['PATH']}")
    finding = doctor.self_test(meter)
    assert finding.status == "ok", finding
    assert finding.seen.endswith("program woke a goroutine 23 times; counted 23")
    assert f"go{go_toolchain.version}" in finding.seen


def test_the_doctors_self_test_fails_if_the_numbers_differ(meter, newest_go, monkeypatch, tmp_path):
    shutil.copytree(doctor.SELFTEST, tmp_path / "selftest")
    program = tmp_path / "selftest" / "main.go"
    program.write_text(program.read_text().replace("i < wakeups", "i < wakeups-1"))
    monkeypatch.setattr(doctor, "SELFTEST", tmp_path / "selftest")
    monkeypatch.setenv("PATH", f"{newest_go.go.parent}:{os.environ['PATH']}")
    finding = doctor.self_test(meter)
    assert finding.status == "fail"
    assert "23 times, counted wakeups 22, productive_wakeups 22" in finding.seen


@undisturbed
def test_the_intervals_add_up_to_what_the_process_did(watch, counting):
    """300 wakeups, over many intervals; and the summary is their sum."""
    process = watch("--interval", "200ms", "--json", "--", counting, "300")
    intervals, summary, interrupted = [], None, False
    for line in lines(process):
        if line["kind"] == "summary":
            summary = line
            break
        intervals.append(line)
        if len(intervals) == 1:
            patiently(psutil.Process(line["service"]["pid"]).net_connections)
            os.kill(line["service"]["pid"], signal.SIGUSR1)
        done = sum(i["service"]["metrics"]["wakeups"] or 0 for i in intervals)
        if not interrupted and done >= 300:
            interrupted = True
            process.send_signal(signal.SIGINT)
    assert summary is not None
    assert process.wait(60) == 0
    assert summary["ended"] == "stopped by Ctrl-C"
    assert len(intervals) > 1
    # What it does before it is ready is measured, too: a command is watched from its first instruction.
    ready = intervals[0]["service"]["metrics"]["wakeups"]
    assert ready <= 1, "accepting its own connection"
    for name, metric in METRICS.items():
        total = summary["service"]["metrics"][name]
        if metric.source == "counter" and total is not None:
            assert total == sum(i["service"]["metrics"][name] or 0 for i in intervals), name
    assert summary["service"]["metrics"]["productive_wakeups"] == 300 + ready
    assert summary["service"]["metrics"]["spurious_wakeups"] == 0
    assert summary["per_second"]["wakeups"] == pytest.approx((300 + ready) / summary["window_seconds"])
    assert summary["window_seconds"] == pytest.approx(sum(i["window_seconds"] for i in intervals))


@undisturbed
def test_a_process_is_watched_by_its_pid_and_lives_on(watch, launch, connect, spaced_pings, newest_go):
    server = launch("dup", go=str(newest_go.go))
    connection = connect(server.address)
    process = watch("--pid", server.pid, "--interval", "300ms", "--json")
    measured = lines(process)
    next(measured)
    spaced_pings(connection, 100)
    process.send_signal(signal.SIGTERM)
    *_, summary = measured
    metrics = summary["service"]["metrics"]
    assert metrics["wakeups"] == pytest.approx(200, abs=4)
    assert metrics["spurious"] == pytest.approx(0.5, abs=0.05)
    assert metrics["cpu_seconds"] > 0
    assert (
        sum(offender["count"] for offender in summary["service"]["offenders"]) == metrics["spurious_wakeups"]
    )
    assert summary["service"]["offenders"][0]["stack"][0]["function"] == "services/kit.Echo"
    assert process.wait(60) == 0
    assert server.running


@undisturbed
def test_plain_lines_are_printed_if_there_is_no_terminal(watch, launch, connect, spaced_pings, newest_go):
    server = launch("dup", go=str(newest_go.go))
    connection = connect(server.address)
    process = watch("--pid", server.pid, "--interval", "200ms")
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    spaced_pings(connection, 30)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert errors == ""
    assert "\x1b" not in text
    assert re.search(r"woken for nothing, parked at \S*kit/kit\.go:\d+ services/kit\.Echo\n", text)
    assert re.search(r"^wakeups +\S+/s +(58|59|60|61)$", text, re.MULTILINE)
    assert re.search(r"^spurious +\d\d.\d % +(4[5-9]|5[0-5]).\d %$", text, re.MULTILINE)
    assert text.endswith("\n\nEnded: stopped by Ctrl-C\n")


@pytest.mark.parametrize("no_colour", [{}, {"NO_COLOR": "1"}], ids=["colour", "no colour"])
def test_on_a_terminal_the_table_is_refreshed_in_place(
    watch, launch, connect, spaced_pings, newest_go, no_colour
):
    server = launch("dup", go=str(newest_go.go))
    connection = connect(server.address)
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    size = {"TERM": "xterm", "COLUMNS": "60", "LINES": "40"}
    process = watch(
        "--pid", server.pid, "--interval", "200ms", stdout=theirs, env={**env, **size, **no_colour}
    )
    os.close(theirs)
    screen = read(ours, until=lambda text: text.count("since the start") >= 1)
    spaced_pings(connection, 30)
    screen += read(ours, until=lambda text: text.count("since the start") >= 3)
    process.send_signal(signal.SIGINT)
    screen += read(ours, until=lambda text: "Ended: stopped by Ctrl-C" in text)
    assert process.wait(60) == 0
    os.close(ours)
    live, _, summary = screen.partition("\x1b[?25h")  # the cursor is shown again
    assert live.startswith("\x1b[?25l")
    _, *tables = live.split("since the start")
    assert len(tables) >= 3
    for table in tables[:-1]:  # the next one is drawn over it
        assert table.count("\x1b[1A") == table.count("\n") > 10, repr(table)
    assert re.search(r"kit/kit\.go:\d+ services/kit\.Echo", live)
    assert ("\x1b[31m" in live) == (not no_colour)
    assert "in total" in summary
    for line in re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", live).splitlines():
        assert len(line) <= 60, line


def read(terminal: int, until, seconds: float = 60) -> str:
    """The output until the condition holds for it."""
    text = b""
    deadline = time.monotonic() + seconds
    while not until(text.decode(errors="replace")):
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                text += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
    return text.decode(errors="replace")


def test_watch_ends_with_a_message_when_the_process_dies(watch, launch, newest_go):
    server = launch("echo", go=str(newest_go.go))
    process = watch("--pid", server.pid, "--interval", "200ms")
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    os.kill(server.pid, signal.SIGKILL)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"^Ended: service 'echo': ", text, re.MULTILINE)
    assert errors == ""


def test_a_commands_output_stays_off_the_table_and_its_end_is_shown(watch):
    process = watch("--interval", "100ms", "--", "sh", "-c", "echo of the command; sleep 1; echo bye; exit 3")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    table, output = text.split("Ended: ")
    assert "of the command" not in table.replace("echo of the command", "")
    assert output == "service 'sh': exit status 3\nits last output:\n| of the command\n| bye\n"


def test_a_command_is_stopped_with_everything_it_started(watch, counting):
    process = watch("--json", "--interval", "100ms", "--", "sh", "-c", f"{counting} 1 & wait")
    next(lines(process))
    family = patiently(lambda: with_selftest(process.pid))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def with_selftest(pid):
    """The descendants, as soon as one of them runs it."""
    family = psutil.Process(pid).children(recursive=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        return family if any("selftest" in p.name() for p in family) else None


@undisturbed
def test_watch_stops_after_the_duration(watch, counting):
    process = watch("--json", "--interval", "150ms", "--duration", "2s", "--", counting, "1")
    *intervals, summary = lines(process)
    assert process.wait(60) == 0
    assert summary["ended"] == "stopped after --duration=2.00 s"
    assert summary["window_seconds"] >= 2
    assert 2 <= len(intervals) <= 14


def test_a_program_that_is_not_go_is_not_measured_and_that_is_shown(watch):
    process = watch("--interval", "100ms", "--duration", "300ms", "--", "sleep", "60")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "sleep (pid " in text
    assert "not measured: " in text
    assert "is not a Go program" in text


def test_without_privileges_watch_shows_the_fix(watch):
    process = watch("--netpoll-python", sys.executable, "--", "sleep", "60")
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("BCC's Python module cannot be imported by")
    assert "fix: " in errors
    assert text == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of --pid N, --port N, --process NAME, --cgroup PATH, or a command after --"),
        (["--pid", "1", "--", "true"], "give one of"),
        (["--pid", "x"], "'x' is not an integer > 0"),
        (["--pid", "1", "--interval", "1ms"], "'1ms' is shorter than 0.1 s"),
        (["--pid", "1", "--prometheus", "9100"], "'9100' is not [HOST]:PORT: write :9100"),
        (["--cgroup", "/tmp"], "/tmp is not a cgroup"),
    ],
)
def test_wrong_usage_is_exit_status_2(capsys, arguments, said):
    try:
        status = __main__.main(["watch", *arguments])
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    output, errors = capsys.readouterr()
    assert said in errors
    assert output == ""


def test_a_process_that_is_not_running_is_named(watch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    process = watch("--pid", gone.pid)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"cannot watch process {gone.pid}: there is no such process" in errors


def test_watch_ends_without_a_traceback_when_nobody_reads_its_output(watch, counting):
    process = watch("--interval", "100ms", "--", counting, "1")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""
