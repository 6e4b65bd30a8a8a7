"""Resolves stack addresses to Go functions, files and lines, as their developers know them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_netpoll.gobinary.elf import key_of
from pytest_netpoll.gobinary.pclntab import Line, PcLineTable, Segment, load_segments

# The first element of every import path of the standard library. A user's module has a dot there, unless it
# ignores the advice of `go mod init`.
_STANDARD = """
    archive bufio bytes cmp compress container context crypto database debug embed encoding errors expvar
    flag fmt go hash html image index internal io iter log maps math mime net os path plugin reflect regexp
    runtime slices sort strconv strings structs sync syscall testing text time unicode unique vendor weak
"""
STANDARD = frozenset(_STANDARD.split())
# "_": since Go 1.27, inlined closures of the runtime have that name (_.goready.func1).
PLUMBING = frozenset(("runtime", "syscall", "internal", "_"))

# The first `go tool addr2line` of a toolchain may have to build the tool.
DEADLINE = 120.0


@dataclass(frozen=True)
class Frame:
    """One frame of a stack. line: 0 if unknown."""

    function: str
    file: str
    line: int

    @property
    def package_root(self) -> str:
        return package_root(self.function)

    @property
    def is_own(self) -> bool:
        return is_own(self.function)


def is_own(function: str) -> bool:
    """Whether it is the program's own: of a package that is neither the runtime's nor the standard library's.
    Unknown code ("?"), such as C, isn't proven to be; nor is assembly without a package, such as crosscall2.
    """
    return "." in function and package_root(function) not in STANDARD | PLUMBING


def package_root(function: str) -> str:
    """The first element of the import path: "net" of net/http.(*conn).serve."""
    return function.partition("/")[0].partition(".")[0]


def is_cut_short(frames: Sequence[tuple[str, str]]) -> bool:
    """Whether a stack's outermost frame is C or assembly without frame pointers, so that its callers are
    unknown. The runtime's own assembly doesn't count: it begins stacks.

    frames: (function, file) of each, innermost first. Where no function is known, the program's symbols may
    be missing.
    """
    if not frames:
        return False
    function, file = frames[-1]
    if function == "?":
        return len(frames) == 1 or any(known != "?" for known, _ in frames)
    return file.endswith(".s") and not function.startswith("runtime.")


class Symbolizer:
    """Resolves addresses, with a cache. Never raises: an unresolved frame keeps its address."""

    def __init__(self, rootdir: Path) -> None:
        self._rootdir = rootdir
        self._programs: dict[tuple[str, int, int], _Program] = {}
        self._trimmed: dict[tuple[object, ...], tuple[Frame, ...]] = {}
        self._frames: dict[Line, Frame] = {}
        # (function, file as shown) -> absolute path
        self._sources: dict[tuple[str, str], str] = {}

    def stack(self, raw: Sequence[tuple[str, int]]) -> tuple[Frame, ...]:
        """The frames of one stack, innermost first: [(file, offset in the file)] as the agent gives them.

        Inlined calls are frames of their own.
        """
        frames: list[Frame] = []
        for depth, (path, offset) in enumerate(raw):
            # All but the innermost are return addresses: the call is the instruction before.
            lines = self._program(path).lines(offset - (depth > 0))
            frames += map(self._frame, lines)
        return tuple(frames)

    def trimmed(self, raw: Sequence[tuple[str, int]]) -> tuple[Frame, ...]:
        """The frames of one stack as users see them."""
        # The same few stacks recur window after window.
        programs = tuple(self._program(path) for path in dict.fromkeys(path for path, _ in raw))
        key = programs, tuple(raw)
        if key not in self._trimmed:
            self._trimmed[key] = trim(self.stack(raw))
        return self._trimmed[key]

    def source_of(self, function: str, file: str) -> str:
        """The absolute path of a frame's file, if the program records it, for other tools."""
        return self._sources.get((function, file), file)

    def _frame(self, line: Line) -> Frame:
        if line not in self._frames:
            frame = self._frames[line] = Frame(line.function, self._relative(line), line.line)
            source = Path(line.file)
            if not source.is_absolute() and (self._rootdir / frame.file).is_file():
                source = self._rootdir / frame.file  # built with -trimpath
            # If files of two programs have the same name, prefer the one in the tests' own tree.
            known = self._sources.get((frame.function, frame.file))
            if known is None or not Path(known).is_relative_to(self._rootdir):
                self._sources[frame.function, frame.file] = str(source)
        return self._frames[line]

    def _program(self, path: str) -> _Program:
        # A service that was rebuilt and restarted has other lines under the same name.
        key = key_of(path)
        if key == (path, 0, 0):
            # The file is gone, like a container's after its last process: use the one known by that name.
            key = next((known for known in reversed(self._programs) if known[0] == path), key)
        if key not in self._programs:
            self._programs[key] = _Program(path)
        return self._programs[key]

    def _relative(self, line: Line) -> str:
        """The file's path as developers know it: relative to the tests' root, or to its module's."""
        file = line.file
        if package_root(line.function) in STANDARD:
            return file.rpartition("/src/")[2]
        path = Path(file)
        if path.is_relative_to(self._rootdir):
            return str(path.relative_to(self._rootdir))
        _, cache, module = file.rpartition("/pkg/mod/")
        if cache:
            return module
        if path.is_absolute():
            root = next((p for p in path.parents if (p / "go.mod").is_file()), None)
            return str(path.relative_to(root)) if root else file
        if "@" not in file:  # built with -trimpath: it begins with the module's path instead of its directory
            for first in range(1, len(path.parts)):
                shorter = Path(*path.parts[first:])
                if (self._rootdir / shorter).is_file():
                    return str(shorter)
        return file


class _Program:
    """One executable."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: dict[int, tuple[Line, ...]] = {}
        self._segments: Sequence[Segment] = ()
        self._table: PcLineTable | None = None
        try:
            with open(path, "rb") as f:
                self._segments = load_segments(f)
            self._table = PcLineTable(path)
            self._segments = self._table.segments
        except (OSError, ValueError):
            pass

    def lines(self, offset: int) -> tuple[Line, ...]:
        """The calls at an offset in the file, innermost first; at least one, which may be unknown."""
        if offset not in self._lines:
            address = self._address(offset)
            found = self._table.lines(address) if self._table else self._addr2line(address)
            unknown = Line("?", f"{Path(self._path).name}+{address:#x}", 0)
            self._lines[offset] = found or (unknown,)
        return self._lines[offset]

    def _address(self, offset: int) -> int:
        for s in self._segments:
            if s.offset <= offset < s.offset + s.size:
                return offset - s.offset + s.address
        return offset

    def _addr2line(self, address: int) -> tuple[Line, ...]:
        """A fallback for tables in a newer format: without inlined calls, but better than nothing."""
        go = shutil.which("go")
        if go is None or not self._segments:  # no file, such as [vdso], or not an ELF file
            return ()
        try:
            run = subprocess.run(
                [go, "tool", "addr2line", self._path],
                input=f"{address:#x}\n",
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ()
        function, _, place = run.stdout.strip().partition("\n")
        file, _, line = place.rpartition(":")
        known = run.returncode == 0 and function not in ("", "?") and line.isdecimal()
        return (Line(function, file, int(line)),) if known else ()


def trim(stack: Sequence[Frame]) -> tuple[Frame, ...]:
    """The stack from the user's own first frame on, without the runtime's entry at its end.

    Of the outer frames only the plumbing is dropped: it is useful to see that net/http calls the handler. A
    stack wholly inside the standard library begins where the plumbing ends.
    """
    frames = [frame for frame in stack if frame.file != "<autogenerated>"]
    while len(frames) > 1 and frames[-1].package_root == "runtime":
        frames.pop()
    for apart in (STANDARD | PLUMBING, PLUMBING):
        for i, frame in enumerate(frames):
            if frame.package_root not in apart and frame.function != "?":
                return tuple(f for f in frames[i:] if f.package_root not in PLUMBING)
    return tuple(frames)
