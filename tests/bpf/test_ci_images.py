"""example_project/ci in real containers: its images, the flags of docs/containers.md, a compose file.

No registry is used: the base is Debian from debootstrap, with the Go of these tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import engines

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "example_project"
CACHE = ROOT / ".tools" / "containers"
# The archive that this machine installs from, as tests/kernels/mkroot finds it.
SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")

BASE = """\
FROM scratch
ADD root.tar /
COPY go /usr/local/go
COPY wheels /wheels
ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV GOTOOLCHAIN=local PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
"""

# The flags that docs/containers.md gives for a container with the service in it, and for services of other
# containers.
OWN = """
import socket, time
import pytest

@pytest.fixture(scope="session")
def server(go_service):
    return go_service(command=["/programs/echo", "-addr", "127.0.0.1:{port}"])
"""
OTHER = """
import socket, time
import pytest

@pytest.fixture(scope="session")
def server(go_service):
    return go_service(process="/echo-beside")
"""
TESTS = """
def pings(server, count):
    with socket.create_connection(server.address, timeout=20) as c:
        for _ in range(count):
            c.sendall(b"ping")
            assert c.recv(4) == b"ping"
            time.sleep(0.002)

@pytest.mark.netpoll(max_spurious=0, min_wakeups=50)
def test_pings(server):
    pings(server, 100)

@pytest.mark.netpoll(max_ready_calls=1000)
def test_ready_calls(server):
    pings(server, 10)
"""
LOADING = ("--cap-add=BPF", "--cap-add=PERFMON")
LOOKING = ("--cap-add=SYS_PTRACE", "--cap-add=DAC_READ_SEARCH")
UNFILTERED = "--security-opt=seccomp=unconfined"


@pytest.fixture(scope="module")
def podman():
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(engines.engine("podman"))
        except engines.NoEngine as error:
            pytest.skip(str(error))


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        **options,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def debian():
    """A tar of Debian's smallest root, made once."""
    tar = CACHE / "bookworm.tar"
    if not tar.exists():
        if os.geteuid() != 0 or not shutil.which("debootstrap"):
            pytest.skip("a base image needs debootstrap and root: .ci/setup test")
        CACHE.mkdir(parents=True, exist_ok=True)
        root, partial = CACHE / f"root.{os.getpid()}", CACHE / f"tar.{os.getpid()}"
        try:
            run("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", root, archive())
            run("tar", "--numeric-owner", "-C", root, "-cf", partial, ".")
            partial.rename(tar)
        finally:
            shutil.rmtree(root, ignore_errors=True)
            partial.unlink(missing_ok=True)
    return tar


def archive():
    for path in map(Path, SOURCES):
        lines = path.read_text().splitlines() if path.exists() else []
        for words in map(str.split, lines):
            if words[:1] in (["URIs:"], ["deb"]):
                return words[1]
    pytest.skip("no Debian archive is configured, for debootstrap to make the base image from")


@pytest.fixture(scope="module")
def base(podman, newest_go, tmp_path_factory):
    """An image that stands for golang:1.26-bookworm, in which pip finds this checkout's wheel."""
    context = tmp_path_factory.mktemp("base")
    shutil.copyfile(debian(), context / "root.tar")
    shutil.copytree(newest_go.go.parents[1], context / "go", symlinks=True)
    wheels = context / "wheels"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT)
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=3.11")
    run(*pip, "--dest", wheels, *wheels.glob("*.whl"))
    (context / "Dockerfile").write_text(BASE)
    # Kept, like the images made from it, so that the next run finds their layers.
    podman("build", "--quiet", "--tag", "netpoll-test-base", context)
    return "netpoll-test-base"


@pytest.fixture(scope="module")
def image(podman, base):
    """example_project/ci/Dockerfile, built."""
    build = ("build", "--network=host", "--build-arg", f"BASE={base}", "--tag", "netpoll-test-pingd-tests")
    podman(*build, "--file", EXAMPLE / "ci" / "Dockerfile", EXAMPLE)
    return "netpoll-test-pingd-tests"


@pytest.fixture(scope="module")
def server_image(podman, base):
    """example_project/ci/server.Dockerfile, built."""
    build = ("build", "--network=host", "--build-arg", f"BASE={base}", "--tag", "netpoll-test-pingd")
    podman(*build, "--file", EXAMPLE / "ci" / "server.Dockerfile", EXAMPLE)
    return "netpoll-test-pingd"


@pytest.fixture(scope="module")
def programs(built, newest_go, tmp_path_factory):
    """A directory with a static service, to be mounted, so that no container has to compile Go."""
    directory = tmp_path_factory.mktemp("programs")
    shutil.copy(built("echo", str(newest_go.go), env={"CGO_ENABLED": "0"}), directory / "echo")
    directory.chmod(0o755)
    return directory


@pytest.fixture
def pytest_in(podman, image, programs, tmp_path):
    """pytest_in(OWN, "--cap-add=BPF"): pytest in a container with these flags; its exit status and output."""

    def pytest_in(fixtures, *flags):
        (tmp_path / "test_it.py").write_text(fixtures + TESTS)
        tmp_path.chmod(0o755)  # root in a user namespace may not read what only root may read
        wide = "--env=COLUMNS=500"  # no sentence is wrapped
        options = [wide, f"--volume={tmp_path}:/tests", f"--volume={programs}:/programs:ro", *flags]
        return podman.try_run(
            image, "pytest", "-q", "-rA", "-p", "no:cacheprovider", "/tests", options=options
        )

    return pytest_in


@pytest.fixture(scope="module")
def beside(podman, programs, tmp_path_factory):
    """An image whose service has a name that nothing else on this machine has."""
    tag = f"{engines.PREFIX}-beside"
    tree = engines.write_tree(tmp_path_factory.mktemp("beside"), {"/echo-beside": programs / "echo"})
    podman("build", "--quiet", "--tag", tag, tree)
    yield tag
    podman.remove_all()
    podman("rmi", "--force", tag, check=False)


def outcomes(said):
    lines = re.findall(r"^(PASSED|FAILED|UNMEASURED|ERROR) \S*::(\w+)", said, re.M)
    return {name: outcome for outcome, name in lines}


def test_the_example_passes_in_its_image(podman, image):
    """Built from scratch, as a user would: pytest compiles the service in the container."""
    test = "test_server.py::test_a_message_wakes_its_reader_and_nobody_else"
    status, said = podman.try_run(image, "pytest", "-q", test, options=["--cap-add=SYS_ADMIN"])
    assert status == 0, said
    assert "1 passed" in said


def test_everything_is_measured_with_sys_admin(pytest_in):
    status, said = pytest_in(OWN, "--cap-add=SYS_ADMIN")
    assert status == 0, said


@pytest.mark.parametrize("seccomp", [(), (UNFILTERED,)], ids=["default", "unconfined"])
def test_bpf_and_perfmon_are_enough_for_wakeups(pytest_in, seccomp):
    _, said = pytest_in(OWN, *LOADING, *seccomp)
    if not seccomp and "seccomp profile" in said:  # as in podman 4.3 of Debian 12
        assert outcomes(said) == {"test_pings": "UNMEASURED", "test_ready_calls": "UNMEASURED"}
        return
    assert outcomes(said) == {"test_pings": "PASSED", "test_ready_calls": "UNMEASURED"}, said
    assert "the kernel refuses a uprobe" in said


def test_without_capabilities_the_reason_names_them(pytest_in):
    status, said = pytest_in(OWN)
    assert status == 1
    assert "the agent lacks CAP_BPF and CAP_PERFMON\n" in said
    assert "  fix: run it as root; in a container: --cap-add BPF" in said


def test_a_seccomp_profile_that_refuses_bpf_is_named(pytest_in, tmp_path):
    profile = tmp_path / "profile.json"
    refused = {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}))
    status, said = pytest_in(OWN, *LOADING, f"--security-opt=seccomp={profile}")
    assert status == 1
    assert "the container's seccomp profile refuses bpf()" in said
    assert "fix: --security-opt seccomp=unconfined, or --cap-add SYS_ADMIN" in said


def test_root_in_a_user_namespace_is_refused_with_the_reason(pytest_in):
    """As a rootless container's root is."""
    status, said = pytest_in(OWN, *LOADING, UNFILTERED, "--uidmap=0:200000:65536")
    assert status == 1
    assert "root only in a user namespace, as in a rootless container, and that is not enough" in said


@pytest.mark.parametrize("pids", ["host", "container"])
def test_another_container_s_service_is_measured_with_four_capabilities(podman, pytest_in, beside, pids):
    other = podman.start(beside, "/echo-beside", "-addr", "0.0.0.0:7007")
    namespace = "--pid=host" if pids == "host" else f"--pid=container:{other}"
    _, said = pytest_in(OTHER, namespace, *LOADING, *LOOKING, UNFILTERED)
    assert outcomes(said)["test_pings"] == "PASSED", said


def test_a_pod_needs_only_what_the_job_gives_it(podman, pytest_in, beside):
    """As in kubernetes-job.yaml: one pid namespace, no privileges except the four capabilities."""
    if not shutil.which("catatonit") and not Path("/usr/libexec/podman/catatonit").exists():
        pytest.skip("podman makes no pods without catatonit: .ci/setup test")
    pod, least = f"{engines.PREFIX}-pod", ("--cap-drop=ALL", "--security-opt=no-new-privileges")
    podman("pod", "create", "--name", pod, "--share", "pid,net")
    try:
        address = ("-addr", "127.0.0.1:7007")
        podman.start(beside, "/echo-beside", *address, options=[f"--pod={pod}", *least])
        _, said = pytest_in(OTHER, f"--pod={pod}", *least, *LOADING, *LOOKING, UNFILTERED)
    finally:
        podman("pod", "rm", "--force", pod)
    assert outcomes(said)["test_pings"] == "PASSED", said


def test_the_compose_file_runs_pytest_beside_the_service(podman, image, server_image, tmp_path):
    if not shutil.which("docker-compose"):
        pytest.skip("docker-compose is not installed: .ci/setup test")
    with contextlib.ExitStack() as stack:
        try:
            docker = stack.enter_context(engines.engine("docker"))
        except engines.NoEngine as error:
            pytest.skip(str(error))
        for built, tag in ((image, "pingd-tests"), (server_image, "pingd")):
            archive = tmp_path / f"{tag}.tar"
            podman("save", "--quiet", "--output", archive, built)
            docker("load", "--quiet", "--input", archive)
            archive.unlink()
            docker("tag", f"localhost/{built}", tag)
        text = (EXAMPLE / "ci" / "compose.yaml").read_text()
        if not knows_bpf(docker):
            assert "[BPF, PERFMON, " in text
            text = text.replace("[BPF, PERFMON, ", "[SYS_ADMIN, ")
        (tmp_path / "compose.yaml").write_text(text)
        compose = ["docker-compose", "--file", tmp_path / "compose.yaml", "--project-name", "netpolltest"]
        environment = os.environ | docker.env
        try:
            said = run(
                *compose, "up", "--no-build", "--exit-code-from", "tests", env=environment, cwd=tmp_path
            )
        finally:
            run(*compose, "down", env=environment, cwd=tmp_path)
    assert "test_a_message_wakes_its_reader_and_nobody_else PASSED" in said
    wakeups = re.search(r"reader_and_nobody_else +(\d+) +0\.0 %.*passed", said)
    assert int(wakeups[1]) == pytest.approx(202, abs=20), said


def knows_bpf(docker):
    """Debian 12's Docker refuses the capability's name."""
    _, said = docker.try_run("pingd", "-h", options=["--cap-add=BPF"])
    return "unknown capability" not in said
