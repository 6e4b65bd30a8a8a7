"""What measuring costs: `make bench`.

A small HTTP service, saturated and at half load, and single operations of a process, each with something
attached: nothing, an empty tracepoint (the floor), ours, and other tools that trace how Go waits for the
network. All take turns in each round, and only numbers of the same round are compared, because machines are
noisy.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import load
import starts
import tables
from rows import ROWS, Row, RowError, compare_with
from tables import BASE, Sample

from pytest_netpoll.errors import NetpollError
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service

HERE = Path(__file__).parent
TAINTED = Path("/proc/sys/kernel/tainted")
OOPSED = 1 << 7
STARTS = 5  # at most this many rounds of them: eight that compile take 10 s


@dataclass(frozen=True)
class Stage:
    """server: gets the load. watched: runs single operations, with the same attached as to the server.
    unwatched: runs them in another program, with nothing attached. scratch: a directory.
    """

    server: Service
    watched: Service
    unwatched: Service
    scratch: Path


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        factory = ServiceFactory(rootdir=HERE, cache_dir=scratch)
        listen = ("-addr", "127.0.0.1:{port}")
        one_cpu = {"GOMAXPROCS": "1"}
        try:
            server = factory("./server", args=listen)
            # A separate file, so that what is attached to the other program's file doesn't affect it.
            stranger = shutil.copy(server.executable, scratch / "stranger")
            yield Stage(
                server,
                factory("./server", name="watched", args=listen, env=one_cpu),
                factory(command=[stranger, *listen], env=one_cpu),
                scratch,
            )
        finally:
            factory.stop_all()


def turn(row: Row, stage: Stage, seconds: int, half_rate: float) -> Sample:
    services = (stage.server, stage.watched)
    started = time.monotonic()
    with row.attach(services) as attached:
        figures = {"ready (s)": time.monotonic() - started} if row.kind != "base" else {}
        saturated = load.saturate(stage.server, seconds)
        half = load.offer(stage.server, half_rate, seconds, stage.scratch)
        watched, unwatched = load.micro(stage.watched), load.micro(stage.unwatched)
        if (memory := attached.memory()) is not None:
            figures["memory, resident (MiB)"] = memory
    return Sample(saturated, half, watched, unwatched, attached.seen, figures | attached.figures)


def measure(
    stage: Stage, names: list[str], rounds: int, seconds: int, half_rate: float
) -> tuple[dict[str, dict[int, Sample]], dict[str, str]]:
    """The samples by row and round, and why a row has none, or no further ones."""
    results: dict[str, dict[int, Sample]] = {name: {} for name in names}
    failures: dict[str, str] = {}
    taint = TAINTED.read_text()
    for number in range(rounds):
        # Each takes each position in turn, after each of the others, so that what one leaves behind on the
        # machine doesn't always affect the same one.
        place = number // 2 % len(names)
        order = names[place:] + names[:place]
        for name in order if number % 2 == 0 else reversed(order):
            if name in failures:
                continue
            say(f"round {number + 1} of {rounds}: {name}")
            try:
                results[name][number] = turn(ROWS[name], stage, seconds, half_rate)
            except RowError as error:
                failures[name] = str(error)
                say(f"{name}: {error}")
            complained, taint = TAINTED.read_text() != taint, TAINTED.read_text()
            if complained:
                say(f"the kernel complained while {name} was attached; see dmesg")
                if int(taint) & OOPSED:
                    sys.exit("bench: after an oops its measurements would be unreliable: reboot")
    return results, failures


def saturated_rate(stage: Stage, seconds: int) -> float:
    load.saturate(stage.server, 1)
    return statistics.median(load.saturate(stage.server, seconds).rate for _ in range(3))


def machine(stage: Stage) -> str:
    """The machine and the tools of the measurement, a line each."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    overflow = Path("/sys/devices/system/cpu/vulnerabilities/spec_rstack_overflow")
    tools = {
        "wrk": ("wrk", "-v"),
        "fortio": (load.fortio(), "version"),
        "bpftrace": ("bpftrace", "--version"),
        "perf": ("perf", "--version"),
        "strace": ("strace", "-V"),
    }
    return "\n".join(
        [
            f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
            f"{os.cpu_count()} CPUs, {cpu[1] if cpu else platform.machine()}, Linux {platform.release()}",
            f"spec_rstack_overflow: {overflow.read_text().strip() if overflow.exists() else 'unknown'}",
            f"{stage.server.go_version}; {', '.join(version(name, tools[name]) for name in tools)}",
        ]
    )


def version(name: str, command: tuple[str, ...]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return f"no {name}"
    found = re.search(r"\d+\.\d+[\w.+~-]*", said.stdout + said.stderr)
    return f"{name} {found[0] if found else '?'}"


def report(results: tables.Results, failures: Mapping[str, str], half_rate: float) -> str:
    parts = [
        f"Saturated (`{' '.join(load.WRK)}`):",
        tables.of_load(results, failures, lambda sample: sample.saturated),
        f"Half load (`fortio {' '.join(load.FORTIO)} -qps={half_rate:.0f}`):",
        tables.of_load(results, failures, lambda sample: sample.half),
        "\n".join(f"- {line}" for line in tables.verdicts(results)),
        "Single operations of a process that is watched (`server/micro.go`, GOMAXPROCS=1), and what each row "
        "adds:",
        tables.of_operations(results, lambda sample: sample.watched),
        "The same of a process of another program, which nobody watches:",
        tables.of_operations(results, lambda sample: sample.unwatched),
        "What they take besides:",
        tables.of_figures(results),
        "That they were at work:",
        tables.of_proofs(results, failures),
    ]
    return "\n\n".join(filter(None, parts))


@contextlib.contextmanager
def checkout_of(ref: str) -> Iterator[Path]:
    """The commit's files, in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        archive = subprocess.run(["git", "archive", ref], cwd=HERE.parents[1], capture_output=True)
        if archive.returncode:
            sys.exit(f"bench: --before {ref}: {archive.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
        yield Path(directory)


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # 18: each row takes each position twice, each time after another one.
    parser.add_argument("--rounds", type=int, default=18, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=int, default=1, help="of each load in each turn; default: %(default)s"
    )
    choices = [name for name in ROWS if name != BASE]
    parser.add_argument("--only", action="append", choices=choices, help="besides nothing, and --before")
    parser.add_argument("--before", metavar="REF", help="measure this commit's pytest-netpoll, too")
    parser.add_argument("--starts", action="store_true", help="only what a start of the agent costs")
    options = parser.parse_args()
    if options.starts:
        print(starts.measure(min(options.rounds, STARTS)))
        return 0
    names = [name for name in ROWS if name == BASE or not options.only or name in options.only]
    with contextlib.ExitStack() as stack:
        if options.before:
            compare_with(stack.enter_context(checkout_of(options.before)))
            names += [name for name in ROWS if ROWS[name].kind == "before"]
        on = stack.enter_context(stage())
        half_rate = saturated_rate(on, options.seconds) / 2
        say(f"half load is {half_rate:,.0f} requests a second")
        results, failures = measure(on, names, options.rounds, options.seconds, half_rate)
        print(machine(on))
    print(f"{options.rounds} rounds, {options.seconds} s each load; medians (and quartiles) of the rounds\n")
    print(report(results, failures, half_rate))
    if not options.only:
        print(f"\n{starts.measure(min(options.rounds, STARTS))}")
    # A peer may be missing, but a missing row of ours is an error.
    return int(any(ROWS[name].kind != "peer" for name in failures))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NetpollError, RowError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell would say it
