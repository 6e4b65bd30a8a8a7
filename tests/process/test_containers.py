"""go_service(container=…) with errors of the engine: fake engines with the answers of real ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from pytest_netpoll.errors import ServiceError, UsageError
from pytest_netpoll.service import containers
from tests.waiting import patiently

ID = "4e7357dfa380078fcf3b5227cf56fc4d0402bbdfec328d6d1c358d275bdb41ec"
NO_DAEMON = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
)
DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
    "dial unix /var/run/docker.sock: connect: permission denied"
)


@pytest.fixture(autouse=True)
def engines(tmp_path, monkeypatch):
    """engines(docker="echo 3") puts engines with these shell scripts on PATH, and nothing else."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))

    def engines(**scripts):
        for name, script in scripts.items():
            program = path / name
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)

    return engines


def knows(pid=0, status="running", exit_status=0, container=ID, logs=""):
    state = {"Status": status, "Pid": pid, "ExitCode": exit_status}
    answer = json.dumps([{"Id": container, "State": state}])
    return f"case $1 in logs) echo '{logs}';; *) echo '{answer}';; esac"


def fails(said, status=1):
    return f'echo "[]"; echo "{said}" >&2; exit {status}'


DOCKER_KNOWS_NOT = fails("Error: No such container: api")
PODMAN_KNOWS_NOT = fails("Error: inspecting object: no such container api", 125)


@pytest.fixture
def contained():
    """A process below one that has the container's id in its command line, like conmon and the shims."""
    script = 'sleep 60 & echo "$!"; wait'
    with subprocess.Popen(
        ["/bin/sh", "-c", script, ID], stdout=subprocess.PIPE, env={"PATH": "/bin"}
    ) as parent:
        pid = int(parent.stdout.readline())
        # At first it still runs the shell.
        patiently(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"))
        yield pid
        os.kill(pid, 9)


def error_of(go_service, **options):
    with pytest.raises(ServiceError) as caught:
        go_service(container="api", ready=None, **options)
    return str(caught.value)


def test_without_an_engine_the_error_names_docker_and_podman(go_service):
    said = error_of(go_service)
    assert said.startswith("cannot look for container 'api': there is no docker and no podman on PATH\n")
    assert "install the one that runs it" in said


def test_a_requested_engine_must_exist(go_service, engines):
    engines(docker=DOCKER_KNOWS_NOT)
    assert "there is no podman on PATH" in error_of(go_service, engine="podman")


def test_a_container_that_nobody_knows(go_service, engines):
    engines(docker=DOCKER_KNOWS_NOT, podman=PODMAN_KNOWS_NOT)
    said = error_of(go_service)
    assert said.startswith("there is no container 'api': docker and podman have none\n")
    assert "`docker ps --all` and `podman ps --all`" in said


@pytest.mark.parametrize(("said", "fix"), [(NO_DAEMON, None), (DENIED, "a user who may use docker")])
def test_an_engine_that_refuses_is_quoted(go_service, engines, said, fix):
    engines(docker=fails(said))
    message = error_of(go_service)
    assert message.startswith(f"`docker container inspect api` failed: {said}")
    assert fix is None or fix in message


def test_a_refusal_is_reported_if_the_other_engine_knows_nothing(go_service, engines):
    engines(docker=fails(DENIED), podman=PODMAN_KNOWS_NOT)
    said = error_of(go_service)
    assert said.startswith(
        f"there is no container 'api': podman has none; `docker container inspect api` failed: {DENIED}"
    )


def test_one_engine_that_refuses_does_not_hide_the_other(engines, contained):
    engines(docker=fails(NO_DAEMON), podman=knows(contained))
    container = containers.find("api")
    assert (container.engine, container.pid()) == ("podman", contained)


def test_containers_of_the_same_name_are_an_error(go_service, engines, contained):
    engines(docker=knows(contained), podman=knows(contained, container=ID[::-1]))
    said = error_of(go_service)
    assert "more than one container 'api': docker and podman have one each" in said
    assert "engine='docker'" in said
    assert containers.find("api", "docker").pid() == contained


def test_podman_installed_as_docker_is_one_engine(engines, contained):
    engines(docker=knows(contained), podman=knows(contained))
    assert containers.find("api").pid() == contained


@pytest.mark.parametrize(
    ("status", "why", "fix"),
    [
        ("exited", "it exited with status 3", "docker start api"),
        ("created", "it was created, but not started", "docker start api"),
        ("restarting", "the engine is restarting it; it exited with status 3 before", "docker start api"),
        ("paused", "it is paused", "docker unpause api"),
        ("removing", "it is removing", "docker start api"),
    ],
)
def test_a_container_that_does_not_run(go_service, engines, contained, status, why, fix):
    engines(docker=knows(contained, status, 3, logs="panic: no such table"))
    said = error_of(go_service)
    assert said.startswith(f"container 'api' is not running: {why}\n  fix: {fix}\n")
    assert said.endswith("\n\npanic: no such table"), "the end of its output"


@pytest.mark.parametrize("pid", [os.getpid(), 0, 4194304], ids=["one here", "none", "too high"])
def test_a_pid_of_another_machine_is_no_process_here(go_service, engines, pid):
    engines(docker=knows(pid))
    said = error_of(go_service)
    assert f"cannot watch container 'api': process {pid}, which docker names, does not belong" in said
    assert "--pid=host" in said


def test_a_program_that_is_not_go_is_named(go_service, engines, contained):
    engines(docker=knows(contained))
    said = error_of(go_service)
    assert re.match(
        r"container 'api' does not run a Go program: it runs /\S*(sleep|busybox|coreutils)\n", said
    )
    assert go_service.services == []


def test_a_container_that_is_not_go_and_never_ready_names_its_program(go_service, engines, contained):
    engines(docker=knows(contained))
    with pytest.raises(ServiceError, match="does not run a Go program"):
        go_service(container="api", timeout=0.2)


@pytest.mark.parametrize("answer", ["", "null", "[]", "[1]", '[{"Id": "1", "State": {}}]', "\xff"])
def test_an_answer_that_cannot_be_parsed(go_service, engines, answer):
    engines(docker=f"echo '{answer}'")
    assert "printed something unexpected" in error_of(go_service)


def test_an_engine_that_hangs_times_out(go_service, engines, monkeypatch):
    monkeypatch.setattr(containers, "ANSWER_SECONDS", 0.3)
    engines(docker="exec /bin/sleep 60")
    assert "`docker container inspect api` timed out after 0.3 s" in error_of(go_service)


def test_an_engine_that_cannot_be_executed(go_service, engines):
    engines(docker="")
    Path(os.environ["PATH"], "docker").write_bytes(b"\x7fELF")
    assert "cannot run docker: Exec format error" in error_of(go_service)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"container": "-rm"}, "must be the name or id"),
        ({"container": ""}, "must be the name or id"),
        ({"container": 7}, "must be the name or id"),
        ({"container": "api", "engine": ""}, "engine= must be"),
        ({"container": "api", "pid": 7}, "got pid and container"),
        ({"container": "api", "args": ["-v"]}, "args can't be combined with container"),
        ({"pid": 7, "engine": "docker"}, "engine can't be combined with pid"),
    ],
)
def test_arguments_that_make_no_sense(go_service, options, said):
    with pytest.raises(UsageError, match=said):
        go_service(**options)
