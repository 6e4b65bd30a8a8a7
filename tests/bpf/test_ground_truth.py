"""The numbers of services whose true numbers are known, on every generation of Go."""

from __future__ import annotations

import shutil

import pytest
from elftools.elf.elffile import ELFFile

from tests.waiting import undisturbed

PINGS = 500


@undisturbed
def test_every_spaced_ping_is_one_productive_wakeup(launch, measure, connect, spaced_pings, go_toolchain):
    server = launch("echo", go=str(go_toolchain.go))
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, PINGS)
    m = stretch(server)
    assert m.productive_wakeups == pytest.approx(PINGS, rel=0.01)
    assert (m.spurious_wakeups, m.abandoned_wakeups, m.stale_retries, m.lost) == (0, 0, 0, 0)
    assert m.spurious == 0


@undisturbed
def test_half_of_the_wakeups_of_a_duplicated_connection_are_spurious(
    launch, measure, connect, spaced_pings, go_toolchain
):
    server = launch("dup", go=str(go_toolchain.go))
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, PINGS)
    m = stretch(server)
    assert m.wakeups == pytest.approx(2 * PINGS, rel=0.02)
    assert 0.45 <= m.spurious <= 0.55


@undisturbed
def test_a_stripped_service_is_measured_and_its_lines_are_named(
    launch, measure, connect, spaced_pings, go_toolchain
):
    server = launch("dup", go=str(go_toolchain.go), build_flags=["-ldflags=-s -w"])
    assert_dup_is_caught(server, measure, connect, spaced_pings)


# Each builds the whole standard library again, so use only one toolchain.
@pytest.mark.parametrize(
    ("flags", "cgo"),
    [
        (["-buildmode=pie"], None),
        (["-trimpath"], None),
        (["-ldflags=-linkmode=external"], True),
        (["-ldflags=-linkmode=external -extldflags=-static"], True),
        (["-buildmode=pie", "-ldflags=-linkmode=external -s -w"], True),
        (["-race"], True),
        ([], False),
    ],
    ids=["pie", "trimpath", "cgo", "cgo-static", "cgo-pie-stripped", "race", "static"],
)
@undisturbed
def test_every_build_mode_is_measured(launch, measure, connect, spaced_pings, newest_go, flags, cgo):
    if cgo and not (shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("cgo needs a C compiler: apt-get install gcc libc6-dev")
    env = {} if cgo is None else {"CGO_ENABLED": str(int(cgo))}
    server = launch("dup", go=str(newest_go.go), build_flags=flags, env=env)
    if cgo is not None:
        assert links_libc(server.executable) == (cgo and "-static" not in flags[0])
    assert_dup_is_caught(server, measure, connect, spaced_pings)


def links_libc(executable):
    """Whether it is linked to the system's C library at run time."""
    with open(executable, "rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        return dynamic is not None and any(tag.entry.d_tag == "DT_NEEDED" for tag in dynamic.iter_tags())


def assert_dup_is_caught(server, measure, connect, spaced_pings):
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, 200)
    m = stretch(server)
    assert 0.45 <= m.spurious <= 0.55
    assert sum(offender.share for offender in m.offenders) == pytest.approx(1)
    # Either reader may be the one that comes too late; both read on the same line.
    for offender in m.offenders:
        assert (offender.direction, offender.syscall) == ("read", "read")
        assert offender.stack[0].function == "services/kit.Echo"
        assert offender.stack[0].file.endswith("kit/kit.go")
        assert offender.stack[0].line == 61


@undisturbed
def test_a_spliced_echo_leaves_hardly_a_wakeup_unresolved(
    launch, measure, connect, spaced_pings, go_toolchain
):
    server = launch("spliceecho", go=str(go_toolchain.go))
    connection = connect(server.address)
    with measure() as stretch:
        spaced_pings(connection, PINGS)
    m = stretch(server)
    assert m.productive_wakeups == pytest.approx(PINGS, rel=0.01)
    assert m.abandoned_wakeups + m.pending_wakeups <= 0.01 * m.wakeups
