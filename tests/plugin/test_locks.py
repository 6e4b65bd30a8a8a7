"""A broken limit on waits for mutexes, or on answers that waited, in a pytest of the user's."""

from __future__ import annotations

import json

import pytest

from tests.waiting import attempts

pytestmark = pytest.mark.bpf

LOCKS = """
import socket
from concurrent.futures import ThreadPoolExecutor

@pytest.fixture(scope="session")
def locks(start): return start("locks")

def ask(service, command):
    with socket.create_connection(service.address, timeout=20) as connection:
        connection.sendall(command.encode() + b"\\n")
        return connection.makefile().readline()

def crowd(service, command):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [service] * 8, [command] * 8))

@netpoll(max_mutex_wait_seconds="50ms")
def test_mutex(locks): crowd(locks, "mutex 10")

@netpoll(max_mutex_wait_seconds=0)
def test_healthy(locks): crowd(locks, "alone 10")

@netpoll(max_response_max="20ms")
def test_waits(locks): ask(locks, "sleep 400")

@netpoll(max_response_max="20ms")
def test_burns(locks): ask(locks, "burn 300")
"""


HINT = "while the service hardly used the CPU: it waited, for a lock, another service or a timer fix: limit"


@pytest.fixture(scope="module")
def locks(run_once):
    for _ in attempts():
        made = run_once(LOCKS, "--netpoll-json=report.json")
        # If its threads waited long for a CPU, that may be the cause.
        if HINT in section(made, "test_waits"):
            break
    return made


def section(project, test):
    """What the failure of one test says, without line breaks."""
    return " ".join(project.result.stdout.str().partition(f"_ {test} _")[2].partition("\n___")[0].split())


def test_a_broken_limit_names_who_waits_and_who_held_the_mutex(locks):
    shown = section(locks, "test_mutex")
    assert (
        "> max 0.05 s fix: hold the lock for less: look for I/O, a query or an RPC between Lock and Unlock"
        in shown
    )
    waits, _, holds = shown.partition("the mutex was held until its Unlock")
    assert "that goroutines waited for mutexes, in sync.Mutex.Lock, at" in waits
    assert "main.enter" in waits
    assert "main.leave" not in waits
    assert "main.leave" in holds
    assert "goroutineReady" not in shown
    report = json.loads((locks.path / "report.json").read_text())
    services = {t["nodeid"].partition("::")[2]: t["services"][0] for t in report["tests"]}
    assert services["test_healthy"]["metrics"]["mutex_wait_seconds"] == 0
    looked, unasked = services["test_mutex"], services["test_waits"]
    assert (looked["estimates"], unasked["estimates"]) == ([], ["mutex_wait_seconds"])
    assert {"mutex", "ready"} <= {offender["offence"] for offender in looked["offenders"]}
    assert not {"mutex", "ready"} & {offender["offence"] for offender in unasked["offenders"]}


def test_slow_answers_that_waited_have_a_next_step_and_those_that_used_the_cpu_have_none(locks):
    waits, burns = section(locks, "test_waits"), section(locks, "test_burns")
    assert HINT in waits
    assert "response_max" in burns
    assert "handling" in burns
    assert "next:" not in burns
