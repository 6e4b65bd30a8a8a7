"""A damaged executable gives less information, with a reason: never a crash, never an endless wait."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.gobinary.go_version import go_version_of
from pytest_netpoll.gobinary.gomaxprocs import gomaxprocs_of, place_of
from pytest_netpoll.gobinary.pclntab import PcLineTable
from pytest_netpoll.gobinary.ready_sites import find_sites
from pytest_netpoll.gobinary.scheduler_layout import find_layout
from pytest_netpoll.gobinary.symbols import Symbolizer

# For an undamaged one both take well under a second. On a loaded machine the limit only checks that it ends.
LONGEST = 60.0
EXAMPLES = 100

MAIN = """package main

import "time"

func main() {
	println(1)
	time.Sleep(time.Hour)
}
"""

Mutate = Callable[[bytes], Path]


@pytest.fixture(scope="module")
def program(newest_go: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("elf")
    (directory / "main.go").write_text(MAIN)
    # The checksum already finds damage inside compressed sections.
    command = [str(newest_go.go), "build", "-ldflags=-compressdwarf=false", "-o", "small", "main.go"]
    subprocess.run(command, cwd=directory, check=True)
    return (directory / "small").read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Mutate:
    path = tmp_path_factory.mktemp("damaged") / "program"

    def write(data: bytes) -> Path:
        path.write_bytes(data)
        path.chmod(0o755)
        return path

    return write


def section(program: bytes, name: str) -> tuple[int, int]:
    """(start, length)"""
    found = ELFFile(io.BytesIO(program)).get_section_by_name(name)
    return found["sh_offset"], found["sh_size"]


def regions(program: bytes) -> list[tuple[int, int]]:
    """(start, length) of the parts that are worth damaging.

    Headers, build info, the header and body of pclntab, symbols, the description of runtime.schedt.
    """
    sections, count = struct.unpack_from("<Q", program, 40)[0], struct.unpack_from("<H", program, 60)[0]
    table = program.index(b"\xf1\xff\xff\xff\0\0")
    functions = table + struct.unpack_from("<Q", program, table + 64)[0]
    return [
        (0, 64),
        (64, 56 * struct.unpack_from("<H", program, 56)[0]),
        (sections, 64 * count),
        (program.index(b"\xff Go buildinf:"), 64),
        (table, 72),
        (functions, 4096),
        (functions + struct.unpack_from("<I", program, functions + 4)[0], 4096),
        section(program, ".symtab"),
        section(program, ".debug_abbrev"),
        (section(program, ".debug_info")[0], 32),
        (program.index(b"runtime.schedt\0", section(program, ".debug_info")[0]) - 4, 1024),
    ]


INTERESTING = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([0, 1, 7, 8, 0x7FFF, 0xFFFF, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]).flatmap(
        lambda number: st.sampled_from([2, 4, 8]).map(
            lambda size: (number & (1 << 8 * size) - 1).to_bytes(size, "little")
        )
    ),
)


def look_at(path: Path) -> None:
    started = time.monotonic()
    version = go_version_of(str(path))
    assert version is None or version.isprintable()
    said = f"{path}: "
    try:
        table = PcLineTable(str(path))
    except ValueError as error:
        said = str(error)
    else:
        code = next((s for s in table.segments if not s.writable), None)
        for offset in range(0, code.size, max(1, code.size // 20)) if code else ():
            for call in table.lines(code.address + offset):
                assert isinstance(call.function, str)
    assert said.startswith(f"{path}: ")
    place_of(str(path))
    for find in (find_sites, find_layout):
        with contextlib.suppress(UnmeasuredError):
            find(str(path))
    (frame, *_) = Symbolizer(path.parent).stack([(str(path), 0x1000)])
    assert frame.function
    assert time.monotonic() - started < LONGEST


def test_an_undamaged_program_is_read(program: bytes, written: Mutate) -> None:
    path = str(written(program))
    version = go_version_of(path)
    assert version is not None
    assert version.startswith("go1.")
    table = PcLineTable(path)
    code = next(s for s in table.segments if not s.writable)
    offsets = range(0x1000, code.size, 4096)
    calls = itertools.chain.from_iterable(table.lines(code.address + offset) for offset in offsets)
    assert any(call.function.startswith("runtime.") and call.line > 0 for call in calls)
    assert place_of(path) is not None
    assert find_sites(path).ready > 0
    assert find_layout(path).places["allp"] > 0


def test_a_damaged_program_is_reported(
    program: bytes, written: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It starts a program for each address.
    monkeypatch.setattr("pytest_netpoll.gobinary.symbols._Program._addr2line", lambda *_: ())
    places = regions(program)

    @settings(
        max_examples=EXAMPLES,
        database=None,
        phases=[Phase.generate],  # shrinking an example takes longer than reading it
    )
    @given(st.data())
    def damage(data: st.DataObject) -> None:
        image = bytearray(program)
        for _ in range(data.draw(st.integers(1, 4))):
            start, length = data.draw(st.sampled_from(places))
            at = start + data.draw(st.integers(0, length - 1))
            bytes_there = data.draw(INTERESTING)
            image[at : at + len(bytes_there)] = bytes_there
        look_at(written(bytes(image)))

    damage()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.2, 0.7, 0.99])
def test_a_truncated_program_is_reported(
    program: bytes, written: Mutate, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr("pytest_netpoll.gobinary.symbols._Program._addr2line", lambda *_: ())
    path = written(program[: int(len(program) * share)])
    assert go_version_of(str(path)) is None
    look_at(path)


def with_endless_sections(program: bytes) -> bytes:
    image = bytearray(program)
    sections = struct.unpack_from("<Q", image, 40)[0]
    struct.pack_into("<HH", image, 58, 0, 0)  # the size of a header, and their number: see the first's size
    struct.pack_into("<Q", image, sections + 32, 1 << 60)
    return bytes(image)


def with_half_a_symbol(program: bytes) -> bytes:
    image, (start, size) = bytearray(program), section(program, ".symtab")
    header = program.index(struct.pack("<QQ", start, size)) - 24
    struct.pack_into("<Q", image, header + 32, size - 12)
    struct.pack_into("<Q", image, header + 56, 12)  # the size of a symbol
    return bytes(image)


def test_sections_that_repeat_one_header_forever_are_refused(program: bytes, written: Mutate) -> None:
    path = written(with_endless_sections(program))
    assert go_version_of(str(path)) is None
    with pytest.raises(ValueError, match=r"not an ELF file|there is no room"):
        PcLineTable(str(path))


# The kernel runs them, because it doesn't read sections.
@pytest.mark.parametrize("damaged", [with_endless_sections, with_half_a_symbol])
def test_gomaxprocs_of_a_damaged_running_program_comes_from_its_environment(
    program: bytes, written: Mutate, damaged: Callable[[bytes], bytes]
) -> None:
    command = [str(written(damaged(program)))]
    with subprocess.Popen(command, env={"GOMAXPROCS": "3"}, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.read(1) == b"1"
            assert gomaxprocs_of(process.pid) == 3
        finally:
            process.kill()
