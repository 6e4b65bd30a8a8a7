"""Services in containers of real engines, watched by name: the counts match what was sent."""

from __future__ import annotations

import contextlib
import re
import socket
import time

import psutil
import pytest

from pytest_netpoll.errors import ServiceError
from tests import engines
from tests.bpf.conftest import ping
from tests.waiting import patiently


@pytest.fixture(scope="module", params=["podman", "docker"])
def engine(request):
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(engines.engine(request.param))
        except engines.NoEngine as error:
            pytest.skip(str(error))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in made.env.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def image(engine, built, newest_go, tmp_path_factory):
    """An image with /echo and /dup of tests/bpf/services, a shell and sleep, and nothing else."""
    static = {"CGO_ENABLED": "0"}
    programs = {f"/{name}": built(name, str(newest_go.go), env=static) for name in ("echo", "dup")}
    programs |= {"/bin/sh": "/bin/sh", "/bin/sleep": "/bin/sleep"}
    tag = f"{engines.PREFIX}-services"
    engine("build", "--quiet", "--tag", tag, engines.write_tree(tmp_path_factory.mktemp("image"), programs))
    yield tag
    engine.remove_all()
    engine("rmi", "--force", tag, check=False)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def start(engine, image):
    """start("echo") starts a container of this service; its name."""
    return lambda service, *options: engine.start(
        image, f"/{service}", "-addr", f"0.0.0.0:{free_port()}", options=options
    )


def test_a_container_is_watched_by_its_name(start, engine, factory, measure, connect, spaced_pings):
    name = start("echo")
    service = factory(container=name)
    assert (service.name, service.pid, service.attached) == (name, engine.pid(name), True)
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 100)
    m = stretch(service)
    assert (m.productive_wakeups, m.spurious_wakeups, m.lost) == (100, 0, 0)
    service.stop()
    assert engine.pid(name) == service.pid, "it was stopped, but is not ours"


def test_a_second_reader_in_a_container_is_named(start, factory, measure, connect, spaced_pings):
    service = factory(container=start("dup"))
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 50)
    m = stretch(service)
    assert m.spurious_wakeups == pytest.approx(50, abs=4)
    frames = [frame for offender in m.offenders for frame in offender.stack]
    assert any(frame.file.endswith("dup/main.go") and frame.line for frame in frames), frames


def test_a_service_below_a_shell_is_measured(engine, image, factory, measure, connect, spaced_pings):
    name = engine.start(image, "/bin/sh", "-c", f"sleep 0.5; /echo -addr 0.0.0.0:{free_port()} & wait")
    service = factory(container=name)
    assert psutil.Process(service.pid).name() == "sh"
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 100)
    assert stretch(service).productive_wakeups == 100


def test_the_engine_keeps_what_it_printed(start, engine, factory):
    name = start("echo")
    service = factory(container=name, ready=re.compile("^ready on .*$", re.M))
    assert service.log.count("ready on") == 1
    engine("restart", "--time", "0", name)
    again = factory(container=name, ready=re.compile("^ready on .*$", re.M))
    assert again.log.count("ready on") == 1, "output of the previous run doesn't mean that this one is ready"


def test_a_container_restarted_from_outside_is_not_measured_by_its_old_process(start, engine, factory, meter):
    name = start("echo")
    service = factory(container=name)
    old = service.pid
    engine("restart", "--time", "0", name)
    (measurement,) = meter.close(meter.open(), [service])
    said = measurement.unmeasured
    assert f"the container was restarted, and its process is {engine.pid(name)} now instead of {old}" in said
    assert "restart()" in said


def test_a_container_restarted_by_the_test_is_still_measured(
    start, engine, factory, measure, connect, spaced_pings
):
    name = start("echo")
    service = factory(container=name)
    old = service.pid
    service.restart()
    assert old != service.pid == engine.pid(name)
    connection = connect(service.address)
    with measure() as stretch:
        spaced_pings(connection, 30)
    assert stretch(service).productive_wakeups == 30


@pytest.mark.parametrize(("how", "said"), [("kill", "it exited with status 137"), ("rm", "was removed")])
def test_a_container_that_ends_in_the_test_makes_it_unmeasured(start, engine, factory, meter, how, said):
    name = start("echo")
    service = factory(container=name)
    window = meter.open()
    engine(*{"kill": ["kill"], "rm": ["rm", "--force"]}[how], name)
    # The process is gone a moment before the engine reports it.
    patiently(lambda: not service.running and said in ending(service))
    (measurement,) = meter.close(window, [service])
    assert said in measurement.unmeasured


def ending(service):
    with pytest.raises(ServiceError) as caught:
        service.check_alive()
    return str(caught.value)


@pytest.mark.usefixtures("engine")
def test_a_container_that_does_not_exist(factory):
    with pytest.raises(ServiceError, match="there is no container 'netpoll-test-none'"):
        factory(container="netpoll-test-none")


def test_a_container_that_has_ended(engine, image, factory):
    name = engine.start(image, "/bin/sh", "-c", "echo no table; exit 3")
    patiently(lambda: engine.pid(name) == 0)
    with pytest.raises(ServiceError, match="is not running: it exited with status 3") as caught:
        factory(container=name)
    assert caught.value.fix == f"{engine.command} start {name}"
    assert caught.value.detail == "no table"


def test_a_container_that_was_not_started(engine, image, factory):
    name = f"{engines.PREFIX}-created"
    engine("create", "--name", name, image, "/echo")
    try:
        with pytest.raises(ServiceError, match="it was created, but not started"):
            factory(container=name)
    finally:
        engine("rm", "--force", name)


def test_a_container_that_is_paused(start, engine, factory):
    name = start("echo")
    engine("pause", name)
    try:
        with pytest.raises(ServiceError, match="is not running: it is paused") as caught:
            factory(container=name)
    finally:
        engine("unpause", name)
    assert caught.value.fix == f"{engine.command} unpause {name}"


def test_a_container_that_is_not_go(engine, image, factory):
    name = engine.start(image, "/bin/sleep", "60")
    begin = time.monotonic()
    with pytest.raises(ServiceError, match="does not run a Go program: it runs /bin/sleep"):
        factory(container=name, timeout=1)
    assert time.monotonic() - begin < 60


def test_only_the_named_engine_is_asked(start, engine, factory):
    name = start("echo")
    assert factory(container=name, engine=engine.command).pid == engine.pid(name)
    other = {"docker": "podman", "podman": "docker"}[engine.command]
    with pytest.raises(ServiceError):
        factory(container=name, engine=other)


def test_services_of_two_containers_are_distinguished(start, factory, measure, connect, spaced_pings):
    first, second = factory(container=start("echo")), factory(container=start("echo"))
    connection = connect(second.address)
    ping(connection)
    with measure() as stretch:
        spaced_pings(connection, 20)
    assert stretch(second).productive_wakeups == 20
    assert stretch.measurements[first.name].wakeups == 0
