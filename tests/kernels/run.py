"""Runs the plugin, as its wheel installs it, on kernels, BCCs and Pythons that users have; see README.md.

Exit status: 0 if all machines passed (or were skipped because something isn't available), 1 if one did not.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
CACHE = (PROJECT / ".tools").resolve() / "kernels"
SERVICES = PROJECT / "tests" / "bpf" / "services"

# What is built from SERVICES: name in the machine -> (package, flags).
BUILT = {
    **{name: (name, ()) for name in ("echo", "dup", "spliceecho", "prefork", "ready", "brief", "hostile")},
    "dup-stripped": ("dup", ("-ldflags=-s -w",)),
}
SHARED = ("attacks.py", "waiting.py")  # from tests/, which the suite imports
WHEELS = {"amd64": "x86_64", "arm64": "aarch64"}  # as wheels call a machine

# What it needs: a program, and the Debian package that has it.
NEEDED = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "xz": "xz-utils",
    "zstd": "zstd",
    "patchelf": "patchelf",
    "setpriv": "util-linux",
}

STEPS = ("doctor", "btf", "user", "security", "pidns", "nobtf", "untyped")
SHORT_STEPS = ("btf",)  # ten more minutes for CI; the full matrix has the others


@dataclass(frozen=True)
class Machine:
    """root, kernel: names of roots, SUITE-ARCH; the second one provides the kernel."""

    root: str
    kernel: str
    short: bool = False  # whether every CI run boots it

    @property
    def arch(self) -> str:
        return self.root.rpartition("-")[2]


MACHINES = {
    "debian11": Machine("bullseye-amd64", "bullseye-amd64", short=True),
    "debian12": Machine("bookworm-amd64", "bookworm-amd64", short=True),
    "debian12-6.12": Machine("bookworm-amd64", "trixie-amd64"),
    "debian13": Machine("trixie-amd64", "trixie-amd64"),
    "sid": Machine("sid-amd64", "sid-amd64"),
    "debian12-arm64": Machine("bookworm-arm64", "bookworm-arm64", short=True),
    "debian13-arm64": Machine("trixie-arm64", "trixie-arm64"),
}


class Unavailable(Exception):
    """Something that a machine needs isn't available; the message says what."""


@dataclass
class Outcome:
    name: str
    status: str  # "ok", "FAILED" or "skipped"
    reason: str = ""
    ran_on: str = ""
    steps: Sequence[str] = ()
    seconds: float = 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Boots machines under emulation, installs the plugin there and runs tests/kernels/suite."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MACHINES)}; default: all")
    parser.add_argument("--short", action="store_true", help="what CI runs: fewer machines, fewer steps")
    parser.add_argument("--steps", type=shlex.split, help=f"of {' '.join(STEPS)}, or commands of your own")
    parser.add_argument("--limit", type=int, default=1500, help="seconds for a machine; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="machines at a time; default: %(default)s")
    given, pytest_arguments = _split(sys.argv[1:])
    options = parser.parse_args(given)
    if unknown := [name for name in options.names if name not in MACHINES]:
        parser.error(f"no machine {', '.join(unknown)}: there are {', '.join(MACHINES)}")
    names = options.names or [n for n, machine in MACHINES.items() if machine.short or not options.short]
    steps = options.steps or (SHORT_STEPS if options.short else STEPS)
    if lacking := what_is_missing():
        print(f"kernels: {lacking}", file=sys.stderr)
        return 1
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE) as directory:
        shares = Shares(Path(directory))
        return report(run_all(names, shares, steps, pytest_arguments, options.limit, options.jobs))


def what_is_missing() -> str | None:
    """One line that names what is required but missing, and how to get it."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = [package for program, package in NEEDED.items() if not shutil.which(program, path=path)]
    if packages:
        return f"missing: {', '.join(packages)}; fix: sudo apt-get install {' '.join(packages)}"
    if os.geteuid() != 0:
        return "making the machines' disks needs root; fix: sudo make test-kernels"
    return None


def run_all(
    names: Sequence[str],
    shares: Shares,
    steps: Sequence[str],
    pytest_arguments: Sequence[str],
    limit: int,
    jobs: int,
) -> list[Outcome]:
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, name, shares, steps, pytest_arguments, limit) for name in names]
        for future in concurrent.futures.as_completed(futures):
            outcomes.append(future.result())
            print(f"kernels: {line_of(outcomes[-1])}", flush=True)
    return sorted(outcomes, key=lambda outcome: names.index(outcome.name))


def report(outcomes: Sequence[Outcome]) -> int:
    """Prints the table; the exit status."""
    rows = [[o.name, o.ran_on, ", ".join(o.steps), f"{o.seconds:.0f} s", o.status] for o in outcomes]
    print("\n" + tabulate(rows, headers=["machine", "ran on", "steps", "took", ""], tablefmt="github"))
    # On a developer's machine, a failed download is nobody's fault; CI must not silently skip it.
    bad = (
        {"FAILED", "skipped"} if os.environ.get("CI") or os.environ.get("NETPOLL_REQUIRE_BPF") else {"FAILED"}
    )
    return int(any(outcome.status in bad for outcome in outcomes))


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before "--", and those after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at + 1 :])


def line_of(outcome: Outcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.name} {outcome.status} after {outcome.seconds:.0f} s{reason}"


def run(
    name: str, shares: Shares, steps: Sequence[str], pytest_arguments: Sequence[str], limit: int
) -> Outcome:
    """Never raises: a machine that can't be made must not prevent the others."""
    machine = MACHINES[name]
    started = time.monotonic()
    try:
        for root in dict.fromkeys((machine.root, machine.kernel)):
            make_root(root)
        share = shares.of(machine.arch)
    except Unavailable as error:
        return Outcome(name, "skipped", str(error), seconds=time.monotonic() - started)
    except Exception as error:
        return Outcome(name, "FAILED", f"{type(error).__name__}: {error}", seconds=time.monotonic() - started)
    console = CACHE / "consoles" / f"{name}.txt"
    console.parent.mkdir(exist_ok=True)
    script = shlex.join(["/opt/netpoll/inside", *steps, "--", *pytest_arguments])
    print(f"kernels: {name} boots; its console: {console}", flush=True)
    status = subprocess.run(
        # It ends with us, however we end.
        [
            "setpriv",
            "--pdeathsig",
            "TERM",
            HERE / "boot",
            CACHE / "roots" / machine.root,
            script,
            CACHE / "roots" / machine.kernel,
        ],
        env={**os.environ, "SHARE": str(share), "CONSOLE": str(console), "LIMIT": str(limit)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    ).returncode
    text = console.read_text(errors="replace") if console.exists() else ""
    outcome = Outcome(name, "ok" if status == 0 else "FAILED", seconds=time.monotonic() - started)
    if ran_on := re.search(r"^.*netpoll: on (.*)$", text, re.MULTILINE):
        outcome.ran_on = ran_on[1]
    outcome.steps = [
        " ".join(found) for found in re.findall(r"^netpoll: (.+) (ok|FAILED\S*) \d+$", text, re.M)
    ]
    if status:
        outcome.reason = why_failed(status, text, console)
    return outcome


def why_failed(status: int, text: str, console: Path) -> str:
    said = re.findall(r"^boot: (?!exit status)(.*)$", text, re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", text, re.MULTILINE)
    return "; ".join([*said, *failed[:5]] or [f"exit status {status}"]) + f". Its console: {console}"


_locks: dict[str, threading.Lock] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def _only_one(what: str) -> Iterator[None]:
    with _guard:
        lock = _locks.setdefault(what, threading.Lock())
    with lock:
        yield


def make_root(name: str) -> None:
    suite, _, arch = name.rpartition("-")
    with _only_one(name):
        (CACHE / "roots").mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            [HERE / "mkroot", suite, arch, CACHE / "roots" / name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if made.returncode:
        log = CACHE / f"mkroot-{name}.txt"
        log.write_text(made.stdout)
        last = made.stdout.strip().splitlines()[-1:] or [f"exit status {made.returncode}"]
        raise Unavailable(f"the root {name} cannot be made: {last[0]} (all of it: {log})")


class Shares:
    """What machines of an architecture find at /opt/netpoll: the current project, made once per run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Path] = {}

    def of(self, arch: str) -> Path:
        with _only_one("share"):
            if arch not in self._made:
                self._made[arch] = self._make(arch)
            return self._made[arch]

    def _make(self, arch: str) -> Path:
        share = Path(tempfile.mkdtemp(prefix=f"{arch}-", dir=self._directory))
        share.chmod(0o755)
        install(share / "site", arch)
        build_services(share / "services", arch)
        shutil.copytree(HERE / "suite", share / "suite", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(SERVICES / "kit" / "kit.go", share / "suite" / "kit.go.txt")
        (share / "suite" / "tests").mkdir()
        for name in SHARED:
            shutil.copy(PROJECT / "tests" / name, share / "suite" / "tests")
        shutil.copy(HERE / "inside", share)
        if arch == "amd64":
            copy_python(share / "python")
        return share


def install(site: Path, arch: str) -> None:
    """Installs the project's wheel and what it depends on, by pip, for the machine's architecture."""
    wheels = site.with_name("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, PROJECT)
    [wheel] = wheels.glob("*.whl")
    platforms = [f"manylinux{version}_{WHEELS[arch]}" for version in ("2014", "_2_17", "_2_28")]
    _pip(
        "install",
        *("--target", site, "--no-compile", "--only-binary=:all:"),
        *("--python-version=3.11", "--implementation=cp"),  # psutil's wheel is for later versions, too
        *(f"--platform={platform}" for platform in platforms),
        wheel,
    )


def _pip(*arguments: object) -> None:
    _command([sys.executable, "-m", "pip", "--quiet", "--no-input", *map(str, arguments)], {})


def build_services(target: Path, arch: str) -> None:
    """With the oldest and the newest Go of .tools, for the machine's architecture."""
    goroots = sorted(
        (PROJECT / ".tools").glob("go-*/bin/go"),
        key=lambda go: [int(part) for part in re.findall(r"\d+", go.parents[1].name)],
    )
    if not goroots:
        raise Unavailable("there is no Go in .tools: .ci/setup kernels puts it there")
    for go in dict.fromkeys((goroots[0], goroots[-1])):
        environment = {
            "GOARCH": arch,
            "CGO_ENABLED": "0",
            "GOFLAGS": "",
            "GOWORK": "off",
            "GOTOOLCHAIN": "local",
        }
        environment["GOROOT"] = ""
        version = _command([go, "env", "GOVERSION"], environment).strip()
        for name, (package, flags) in BUILT.items():
            _command(
                [go, "build", *flags, "-o", target / version / name, f"./{package}"], environment, SERVICES
            )


def copy_python(target: Path) -> None:
    """Debian 12's Python, for a machine whose own is too old for pytest; with its own C library."""
    make_root("bookworm-amd64")
    root = CACHE / "roots" / "bookworm-amd64"
    (target / "bin").mkdir(parents=True)
    libraries = target / "lib" / "own"
    shutil.copytree(root / "usr/lib/python3.11", target / "lib/python3.11", symlinks=True)
    libraries.mkdir()
    for pattern in ("lib*.so.*", "ld-linux*.so.*"):
        for library in (root / "usr/lib/x86_64-linux-gnu").glob(pattern):
            if library.stat().st_size < 10_000_000:  # not LLVM, which is BCC's
                shutil.copy(library, libraries)
    shutil.copy(root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", libraries)
    python = target / "bin" / "python3.11"
    shutil.copy(root / "usr/bin/python3.11", python)
    inside = "/opt/netpoll/python/lib/own"
    _command(
        [
            "patchelf",
            *("--set-interpreter", f"{inside}/ld-linux-x86-64.so.2"),
            *("--force-rpath", "--set-rpath", inside),
            python,
        ],
        {},
    )


def _command(command: Sequence[object], environment: Mapping[str, str], cwd: Path = PROJECT) -> str:
    words = [str(word) for word in command]
    ran = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{shlex.join(words)} failed: {(ran.stdout + ran.stderr).strip()[-2000:]}")
    return ran.stdout


if __name__ == "__main__":
    sys.exit(main())
