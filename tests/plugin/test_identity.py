"""Which services are judged: the test's own, each separately, as long as it lives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.waiting import undisturbed

SLEEPER = """
def sleeper(go_service, **options): return go_service(command="sleep 60", ready=None, **options)
"""

# A daemon that starts the service dup on request, and sends its output back.
DAEMON = """
@pytest.fixture(scope="session")
def daemon(start):
    import re, socket, subprocess, threading
    built = start("dup")
    program = built.executable
    built.stop()
    listener = socket.create_server(("127.0.0.1", 0))
    children = []
    def serve():
        connection, _ = listener.accept()
        address = connection.makefile().readline().strip()
        child = subprocess.Popen([program, "-addr", address], stdout=connection, start_new_session=True)
        children.append(child)
    threading.Thread(target=serve, daemon=True).start()
    yield "%s:%d" % listener.getsockname()
    for child in children:
        child.kill()
        child.wait()
"""


def services(pytester: pytest.Pytester, report: str = "report.json") -> dict[str, list[dict[str, Any]]]:
    """By test."""
    tests = json.loads((pytester.path / report).read_text())["tests"]
    return {test["nodeid"].partition("::")[2]: test["services"] for test in tests}


def names(pytester: pytest.Pytester) -> dict[str, list[str]]:
    return {test: [service["name"] for service in there] for test, there in services(pytester).items()}


@pytest.mark.bpf
def test_each_test_is_judged_by_the_service_that_its_own_fixture_started(run, pytester):
    result = run(
        """
@pytest.fixture
def server(start): return start("echo", name="svc")

@pytest.mark.parametrize("number", range(20))
@netpoll(max_wakeups=3, service="svc")
def test_it(server, ping, number): ping(server, 5)
""",
        "--netpoll-json=report.json",
    )
    result.assert_outcomes(failed=20)
    result.stdout.no_fnmatch_line("*already watched*")
    result.stdout.no_fnmatch_line("unmeasured:*")
    assert names(pytester) == {f"test_it[{number}]": ["svc"] for number in range(20)}


def test_a_service_lives_as_long_as_the_fixture_or_test_that_asked_for_it(run):
    result = run(
        SLEEPER
        + """
import unittest
kept = {}

@pytest.fixture(scope="session")
def launch(go_service): return lambda name: kept.setdefault(name, sleeper(go_service, name=name))

@pytest.fixture(scope="session")
def of_session(launch): return launch("session")

@pytest.fixture(scope="module")
def of_module(launch): return launch("module")

@pytest.fixture(scope="class")
def of_class(launch): return launch("class")

@pytest.fixture
def of_function(launch, request):
    dynamic = request.getfixturevalue("of_module")
    service = launch("function")
    yield service
    assert service.running and dynamic.running
    kept["teardown"] = launch("teardown")

@pytest.fixture
def several(launch):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor() as pool: return list(pool.map(launch, ["thread-a", "thread-b"]))

class TestClass:
    def test_one(self, of_session, of_class, of_function, several, launch):
        launch("test")
        assert all(service.running for service in kept.values())
        kept["test"].restart()

    def test_two(self):
        running = {name for name, service in kept.items() if service.running}
        assert running == {"session", "module", "class"}
        assert {name for name, service in kept.items() if service.stopped} == kept.keys() - running

def test_three():
    assert {name for name, service in kept.items() if service.running} == {"session", "module"}

def test_of_one_that_has_ended():
    with pytest.raises(Exception, match="the fixture or test that asked for it has ended"):
        kept["function"].restart()

class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _take(self, launch): self.launch = launch
    def setUp(self): self.launch("old")
    def test_four(self): assert kept["old"].running

def test_five(): assert not kept["old"].running
""",
        "--netpoll=off",
    )
    result.assert_outcomes(passed=6)


def test_a_name_is_free_again_with_the_end_of_its_owner_and_of_the_test(run):
    run(
        SLEEPER
        + """
import itertools

@pytest.fixture(scope="module")
def of_module(go_service): return sleeper(go_service, name="svc")

@pytest.fixture(params=range(3))
def other(go_service, request): return sleeper(go_service, name="other")

def test_parameters(other): assert other.name == "other"

def test_in_one_test_a_name_means_one_service(go_service):
    first = sleeper(go_service, name="svc")
    first.stop()
    assert sleeper(go_service, name="svc").name == "svc-2"

def test_in_the_next_one_it_is_free(go_service):
    assert sleeper(go_service, name="svc").name == "svc"

def test_a_stopped_one_may_come_back(of_module): of_module.stop()

def test_it_comes_back(go_service, of_module):
    assert sleeper(go_service, name="svc").name == "svc-2"
    of_module.restart()
    assert of_module.name == "svc"
""",
        "--netpoll=off",
    ).assert_outcomes(passed=7)


def test_a_service_that_cannot_be_stopped_is_an_error_of_its_own_test(run):
    result = run(
        SLEEPER
        + """
@pytest.fixture
def stubborn(go_service, monkeypatch):
    from pytest_netpoll import Service
    service = sleeper(go_service)
    stop = Service.stop
    def fails(self):
        stop(self)
        raise pytest_netpoll.errors.ServiceError("it does not end")
    import pytest_netpoll.errors
    monkeypatch.setattr(Service, "stop", fails)
    yield
    assert service.running

def test_it(stubborn): pass

def test_made(go_service, stubborn, tmp_path): sleeper(go_service)
""",
        "--netpoll=off",
    )
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["*it does not end*"])


@pytest.mark.bpf
def test_a_stopped_service_is_not_replaced_by_another(run):
    result = run(
        """
def test_stops(echo, dup): echo.stop()

@netpoll(max_polls=50)
def test_after(echo): pass

@netpoll(max_polls=50)
def test_beside(echo, dup): pass

@netpoll(max_polls=50, service="dup")
def test_of_the_other(echo, dup): pass

@netpoll(max_polls=50)
def test_started_again(echo): echo.restart()
"""
    )
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        ["*_ test_after _*", "unmeasured: echo: service 'echo' was stopped before the window opened*"]
    )


@pytest.mark.bpf
@undisturbed
def test_two_services_of_one_name_are_measured_separately(run, pytester):
    source = """
PROGRAMS = os.environ["PROGRAMS"].split()

@netpoll()
def test_both(start, ping, netpoll):
    with netpoll.measure() as window:
        first = start(PROGRAMS[0], name="svc")
        ping(first)
        first.stop()
        second = start(PROGRAMS[1], name="svc")
        ping(second)
    assert window[first] is not window[second]
    assert window[second].spurious == 0
    assert (window[first].spurious > 0.3) == (PROGRAMS[0] == "dup")
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROGRAMS", "echo echo")
        run(source, "--netpoll-save=main", "--netpoll-reruns=0").assert_outcomes(passed=1)
        patch.setenv("PROGRAMS", "dup echo")
        compare = ("--netpoll-compare=main", "--netpoll-compare-fail=spurious:+0.02", "--netpoll-reruns=0")
        result = run(source, *compare, "--netpoll-json=report.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["svc: spurious * > 0.0 % +0.02 of baseline main*"])
    first, second = services(pytester)["test_both"]
    assert (first["name"], second["name"]) == ("svc", "svc-2")
    assert first["metrics"]["spurious"] > 0.3
    assert second["metrics"]["spurious"] == 0


@pytest.mark.bpf
def test_a_median_is_of_one_service_only(run):
    result = run(
        """
programs = iter(["dup", "echo"])

@netpoll(max_spurious=0.3, runs=2)
def test_it(start, ping):
    service = start(next(programs), name="svc")
    ping(service)
    service.stop()
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*svc, svc-2: it ran in only 1 of 2 runs of the test*"])


@pytest.mark.bpf
def test_a_name_that_two_services_asked_for_is_not_guessed(run):
    result = run(
        """
@pytest.fixture(scope="session")
def idle(start): return start("idle", name="svc")

@pytest.fixture
def server(start): return start("dup", name="svc")

@netpoll(max_spurious_wakeups=0, service="svc")
def test_one(idle): pass

@netpoll(max_spurious_wakeups=0, service="svc")
def test_other(server, ping): ping(server)

@netpoll(max_spurious_wakeups=0, service="svc")
def test_both(idle, server, ping): ping(server)

@netpoll(max_spurious_wakeups=0, service="svc")
@netpoll(min_spurious_wakeups=10, service="svc-2")
def test_each_by_its_name(idle, server, ping): ping(server)
"""
    )
    result.assert_outcomes(passed=2, failed=2)
    line = "unmeasured: svc: service='svc' may also mean svc-2: it asked for that name *"
    result.stdout.fnmatch_lines(["*_ test_other _*", line, "*_ test_both _*", line])


@pytest.mark.bpf
def test_an_inner_marker_is_about_the_service_of_the_outer_one(run):
    result = run(
        """
@netpoll(service="idle", max_events=1000)
class TestIdle:
    @netpoll(max_spurious_wakeups=0)
    def test_it(self, start, dup, ping):
        start("idle")
        ping(dup)

    @netpoll(max_spurious_wakeups=0, service="dup")
    def test_its_own(self, start, dup, ping):
        start("idle")
        ping(dup)

@netpoll(service="dup")
class TestDup:
    @netpoll(max_spurious_wakeups=0)
    def test_wasteful(self, dup, ping): ping(dup)

"""
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ TestIdle.test_its_own _*",
            "dup: spurious_wakeups * > max 0",
            "*_ TestDup.test_wasteful _*",
            "dup: spurious_wakeups * > max 0",
        ]
    )


@pytest.mark.bpf
def test_a_test_without_a_service_of_its_own_is_not_judged_by_others(run, pytester):
    result = run(
        """
@netpoll(max_spurious=0.05)
def test_first(echo, ping): ping(echo)

@netpoll(max_spurious=0.05)
def test_without(): pass

@netpoll(max_spurious=0.05)
def test_by_name_of_the_fixture(request, ping): ping(request.getfixturevalue("echo"))

@netpoll(max_spurious_wakeups=0, service="echo")
def test_by_name_of_the_service(): pass

@netpoll()
def test_without_limits(): pass
""",
        "--netpoll-json=report.json",
    )
    result.assert_outcomes(passed=4, failed=1)
    with_one = {"test_first", "test_by_name_of_the_fixture", "test_by_name_of_the_service"}
    assert {test for test, there in services(pytester).items() if there} == with_one
    result.stdout.fnmatch_lines(
        [
            "*_ test_without _*",
            "unmeasured: the test uses no service of its own, *",
            "  fix: ask for its service's fixture, such as def test_x(echo); or name one with",
            "    service=, of echo; *",
        ]
    )


@pytest.mark.bpf
def test_a_service_that_a_fixture_made_but_did_not_return_belongs_to_the_test(run):
    result = run(
        """
@pytest.fixture(scope="module", autouse=True)
def hidden(start):
    global server
    server = start("dup")

@netpoll(max_spurious=0.05)
def test_it(ping): ping(server)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["dup: spurious * > max 5.0 %"])


@pytest.mark.bpf
def test_a_client_of_the_service_is_not_taken_for_the_service(run):
    result = run(
        DAEMON
        + """
@netpoll(max_spurious_wakeups=0)
def test_client(start, daemon, go_service, ping):
    import re, conftest
    args = ["-addr", "127.0.0.1:{port}", "-daemon", daemon]
    client = go_service(f"{conftest.SERVICES}/client", args=args, ready=re.compile("^ready on", re.M))
    ping(client)

@netpoll(max_spurious_wakeups=0)
def test_service(start, ping):
    import re
    ping(start("echo", ready=re.compile("^ready on", re.M)))

@netpoll(max_spurious_wakeups=0)
def test_service_that_ends(start, ping):
    import re
    service = start("echo", ready=re.compile("^ready on", re.M))
    ping(service)
    service.stop()

@netpoll(max_spurious_wakeups=0)
def test_datagrams(start):
    import re
    start("udp", ready=re.compile("^ready on", re.M))
"""
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "unmeasured: client: no process of service 'client' listens on port *, which clients use: "
            "process * (dup) does",
            "  fix: *go_service(port=…)*",
        ]
    )


@pytest.mark.bpf
@undisturbed
def test_a_daemon_that_a_service_started_is_measured_with_it(run):
    result = run(
        """
@pytest.fixture(scope="module")
def server(start, go_service):
    built = start("dup")
    built.stop()
    daemon = f"setsid {built.executable} -addr 127.0.0.1:{{port}}"
    return go_service(command=["sh", "-c", f"({daemon} &); exec sleep 600"], name="svc")

@netpoll(max_spurious_wakeups=0)
def test_it(server, ping): ping(server, pause=0.005)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["svc: spurious_wakeups * > max 0"])
