"""A kernel without BTF: less is known of descriptors and children; the counts are the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_netpoll import privilege

PINGS = 200

BLIND = """
def kernels(path=None):
    return Types(_NOTHING)
"""


@pytest.fixture
def blind_meter(new_meter, tmp_path, monkeypatch):
    """A meter whose agent finds no BTF."""
    agent = shutil.copytree(privilege.AGENT, tmp_path / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(privilege.bpf_sources(), tmp_path / "bpf")
    with (agent / "btf.py").open("a") as file:
        file.write(BLIND)
    command = privilege.command
    monkeypatch.setattr(
        privilege,
        "command",
        lambda *given: [str(agent) if word == str(privilege.AGENT) else word for word in command(*given)],
    )
    return new_meter()


def test_wakeups_are_counted_the_same_and_the_line_is_named(
    blind_meter, launch, connect, spaced_pings, newest_go
):
    server = launch("dup", go=str(newest_go.go))
    blind_meter.watch(server)
    connection = connect(server.address)
    window = blind_meter.open()
    spaced_pings(connection, PINGS)
    [m] = blind_meter.close(window, [server])
    assert m.unmeasured is None
    assert blind_meter.environment["follows_children"] is False
    assert blind_meter.environment["typed"] is False
    assert m.productive_wakeups == pytest.approx(PINGS, rel=0.01)
    assert 0.45 <= m.spurious <= 0.55
    for offender in m.offenders:
        assert (offender["fd_type"], offender["peer"]) == ("socket", None)
        assert offender["stack"][0]["function"] == "services/kit.Echo"


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel has no BTF")
def test_where_the_kernel_tells_its_types_they_are_used(meter):
    meter.close(meter.open(), [])
    assert meter.environment["typed"] is True
