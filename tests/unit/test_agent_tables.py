"""The agent's tables of differences between machines and Go versions, for both machines, on either."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import struct
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "pytest_netpoll" / "agent"
C = "".join(path.read_text() for path in sorted((ROOT / "bpf").glob("*.[ch]")))
HEADER = (ROOT / "bpf" / "netpoll.h").read_text()


def load(name: str) -> ModuleType:
    """A module of the agent; it isn't a package, because another Python runs it as a directory."""
    spec = importlib.util.spec_from_file_location(f"agent_{name}", AGENT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


machine, layouts, constants = load("bpf/machine"), load("bpf/layouts"), load("constants")

# Where linux-libc-dev installs the kernel's numbers; arm64 has the generic ones.
KERNEL = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}

machines = pytest.mark.parametrize("name", sorted(machine.NUMBERS))


def kernel_numbers(name: str) -> dict[str, int]:
    header = next((path for path in KERNEL[name] if path.exists()), None)
    if header is None:
        pytest.skip(f"no {KERNEL[name][0]}: install linux-libc-dev")
    # 3264: one syscall on 64-bit machines, with another name on 32-bit ones.
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.M)
    return {call: int(number) for call, number in found}


@machines
def test_syscall_numbers_match_the_kernels(name: str) -> None:
    kernel = kernel_numbers(name)
    assert machine.NUMBERS[name] == {call: kernel[call] for call in machine.NUMBERS[name]}


@machines
def test_the_table_has_every_syscall_that_the_machine_has(name: str) -> None:
    assert machine.ROLES.keys() & kernel_numbers(name).keys() == machine.NUMBERS[name].keys()


def goroots() -> list[Path]:
    return sorted(path for path in ROOT.glob(".tools/go-*") if (path / "src" / "syscall").is_dir())


@machines
@pytest.mark.parametrize("goroot", goroots() or [None], ids=lambda path: getattr(path, "name", "none"))
def test_syscall_numbers_match_those_of_go(name: str, goroot: Path | None) -> None:
    if goroot is None:
        pytest.skip("no Go sources in .tools: run .ci/setup test")
    source = (goroot / "src" / "syscall" / f"zsysnum_linux_{GOARCH[name]}.go").read_text()
    go = {
        call.lower(): int(number) for call, number in re.findall(r"^\s*SYS_(\w+)\s*=\s*(\d+)$", source, re.M)
    }
    common = go.keys() & machine.NUMBERS[name].keys()
    assert {"read", "write", "accept4", "connect", "epoll_ctl", "epoll_pwait", "splice"} <= common
    assert {call: machine.NUMBERS[name][call] for call in common} == {call: go[call] for call in common}


@machines
def test_every_number_has_a_role_and_fits_the_kernels_table(name: str) -> None:
    roles = machine.roles(name)
    assert len(roles) == len(machine.NUMBERS[name])
    assert max(roles) < machine.MACROS["SYSCALLS"]
    assert all(roles.values())
    assert machine.names(name) == {number: call for call, number in machine.NUMBERS[name].items()}


def test_only_x86_has_the_old_calls() -> None:
    assert machine.NUMBERS["x86_64"].keys() - machine.NUMBERS["aarch64"].keys() == {"epoll_wait", "dup2"}


def test_roles_name_the_descriptor_of_each_direction() -> None:
    def descriptors(call: str) -> tuple[int | None, int | None]:
        read, write = machine.ROLES[call] & 0xF, machine.ROLES[call] >> 4 & 0xF
        return (read - 1 if read else None, write - 1 if write else None)

    # ssize_t splice(fd_in, off_in, fd_out, …), sendfile(out_fd, in_fd, …), copy_file_range as splice
    assert descriptors("splice") == (0, 2)
    assert descriptors("copy_file_range") == (0, 2)
    assert descriptors("sendfile") == (1, 0)
    assert descriptors("read") == descriptors("accept4") == descriptors("recvmsg") == (0, None)
    assert descriptors("tee") == (0, 1)
    # The descriptor that changes: close(fd), dup3(old, new, …)
    assert (descriptors("close"), descriptors("dup2"), descriptors("dup3")) == (
        (0, None),
        (1, None),
        (1, None),
    )
    assert descriptors("write") == descriptors("connect") == descriptors("getsockopt") == (None, 0)
    assert descriptors("epoll_pwait") == (None, None)


def test_the_c_program_does_not_repeat_numbers_that_the_agent_passes_to_it() -> None:
    passed = {**constants.MACROS, **machine.MACROS, "LAYOUTS": 3}
    assert passed.keys() >= {"BANKS", "SLOT_BITS", "KEEP_IO_CALLS", "LATENCY_BUCKETS", "ROLE_POLL"}
    assert passed.keys() & set(re.findall(r"#\s*define (\w+)", C + HEADER)) == set()
    used = set(re.findall(r"\w+", C + HEADER))
    assert passed.keys() - used == {"LATENCY_SUB_BITS"}, "which bucket_of has as plain numbers"


def test_offences_are_numbered_as_in_the_c_program() -> None:
    [text] = re.findall(r"enum offence \{(.*?)\}", HEADER, re.S)
    numbers = dict(re.findall(r"(\w+) = (\d+)", text))
    assert [name.lower() for name in sorted(numbers, key=lambda name: int(numbers[name]))] == [
        {"io": "io_call"}.get(offence, offence) for offence in offenders_of_the_agent()
    ]


def offenders_of_the_agent() -> tuple[str, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(AGENT))
        offences: tuple[str, ...] = importlib.import_module("counters.offenders").OFFENCES
    return offences


@machines
def test_the_table_knows_where_each_receiving_call_has_its_flags(name: str) -> None:
    roles = {machine.names(name)[number]: role for number, role in machine.roles(name).items()}
    flagged = {call: role >> machine.FLAGS_ARG for call, role in roles.items() if role >> machine.FLAGS_ARG}
    assert flagged == {"recvfrom": 2, "recvmsg": 1, "recvmmsg": 2}


@machines
def test_every_io_call_has_its_own_number(name: str) -> None:
    [shift] = re.findall(r"#define ROLE_IO_CALL\(role\) \(\(\(role\) >> (\d+)\) & ", HEADER)
    roles = {machine.names(name)[number]: role for number, role in machine.roles(name).items()}
    mask = machine.MACROS["IO_CALLS"] - 1
    numbers = {call: roles[call] >> int(shift) & mask for call in machine.IO_CALLS}
    assert mask << int(shift) < 1 << machine.FLAGS_ARG
    assert sorted(numbers.values()) == list(range(len(machine.IO_CALLS)))
    assert len(machine.IO_CALLS) <= machine.MACROS["IO_CALLS"]
    assert all(machine.IO_CALLS[number] == call for call, number in numbers.items())
    # These aren't I/O calls.
    assert not {"getsockopt", "close", "dup2", "dup3", "epoll_ctl", "epoll_pwait"} & set(machine.IO_CALLS)


@machines
def test_an_epoll_event_has_the_size_and_the_offset_of_its_machine(name: str) -> None:
    # struct { u32 events; u64 data; }, packed on x86-64 only.
    event = struct.Struct("<IQ" if name == "x86_64" else "<I4xQ")
    for_arm, for_x86 = re.search(
        r"#ifdef NETPOLL_AARCH64\n(#define EVENT.*?)#else\n(.*?)#endif", C, re.S
    ).groups()  # type: ignore[union-attr]
    text = for_arm if machine.DEFINES[name] == ["-DNETPOLL_AARCH64"] else for_x86
    words = {key: int(value) for key, value in re.findall(r"#define (EVENT_\w+) (\d+)", text)}
    assert words == {"EVENT_WORDS": event.size // 4, "EVENT_DATA": (event.size - 8) // 4}


# runtime/tagptr_64bit.go: addrBits and tagAlignBits of that generation, the same on both machines.
PACKING = {"go1.21": (48, 3), "go1.25": (49, 9)}


def packed(layout: str, address: int, tag: int) -> int:
    """epoll_event.data as the runtime makes it (taggedPointerPack)."""
    if layout not in PACKING:
        return address
    address_bits, align_bits = PACKING[layout]
    assert tag < 1 << (64 - address_bits + align_bits)
    return (address << (64 - address_bits) | tag) & (1 << 64) - 1


# The highest addresses in user space: arm64 has no sign bit in its 48.
ADDRESSES = {
    "x86_64": [0xC0_0000_0200, 0x7F12_3456_7800],
    "aarch64": [0x4000_0000_0200, 0xFFFF_1234_5600, 0x8000_0000_0000],
}


@machines
@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("tag", [0, 1, 0x7FFFF, 0x12345])
def test_addresses_are_unpacked_as_the_machine_packs_them(name: str, layout: object, tag: int) -> None:
    for address in ADDRESSES[name]:
        data = packed(layout.name, address, tag)  # type: ignore[attr-defined]
        assert layouts.address(layout, data, signed=name == "x86_64") == address


@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.name)
def test_a_polldesc_is_proven_by_its_descriptor_and_its_tag(layout: object) -> None:
    words = [0, 7, 3, 0, 0, 0]
    data = packed(layout.name, 0x7F12_3456_7800, 3)  # type: ignore[attr-defined]
    assert layouts.holds(layout, data, 7, words)
    assert not layouts.holds(layout, data, 8, words)
    if layout.tag_bits:  # type: ignore[attr-defined]
        words[layouts.FDSEQ_WORD] = 4
        assert not layouts.holds(layout, data, 7, words)


def test_a_polldesc_is_read_as_the_c_program_reads_it() -> None:
    assert layouts.POLLDESC.size == 8 * int(re.search(r"#define PD_WORDS (\d+)", C)[1])  # type: ignore[index]


def test_the_agent_joins_every_c_file_and_each_is_about_one_topic() -> None:
    program = ast.parse((AGENT / "bpf" / "program.py").read_text())
    [sources] = [
        ast.literal_eval(node.value)
        for node in program.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCES"
    ]
    assert sorted(sources) == sorted(path.name for path in (ROOT / "bpf").glob("*.c"))
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "bpf").glob("*.[ch]")}
    assert {name: count for name, count in lines.items() if count >= 400} == {}
