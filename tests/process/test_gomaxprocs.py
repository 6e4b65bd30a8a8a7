"""GOMAXPROCS of running Go programs, as the runtime has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_netpoll.gobinary.gomaxprocs import gomaxprocs_of
from pytest_netpoll.service.factory import ServiceFactory

IMPORTS = 'import ("fmt"; "runtime"; "time")'


@pytest.mark.parametrize("flags", [[], ["-buildmode=pie"]], ids=["fixed", "pie"])
def test_a_value_set_by_the_program_is_seen(
    go_service: ServiceFactory, go_package: Callable[..., Path], flags: list[str]
) -> None:
    go_package(
        "runtime.GOMAXPROCS(7)\nfmt.Println(runtime.NumCPU())\ntime.Sleep(time.Minute)", imports=IMPORTS
    )
    service = go_service("./server", build_flags=flags, ready=None, env={"GOMAXPROCS": "3"})
    while not service.log:
        service.check_alive()
    assert service.gomaxprocs == 7
    service.stop()
    assert service.gomaxprocs == 7, "as last seen"


@pytest.mark.parametrize(("env", "expected"), [({"GOMAXPROCS": "3"}, 3), ({}, None)])
def test_for_a_stripped_program_the_environment_decides(
    go_service: ServiceFactory,
    go_package: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    expected: int | None,
) -> None:
    monkeypatch.delenv("GOMAXPROCS", raising=False)
    go_package("println(1)\ntime.Sleep(time.Minute)", imports='import "time"')
    service = go_service("./server", build_flags=["-ldflags=-s -w"], ready=None, env=env)
    while not service.log:  # the kernel shows no environment yet while a program is being started
        service.check_alive()
    assert service.gomaxprocs == (expected or len(psutil.Process().cpu_affinity()))


def test_without_a_process_it_is_unknown() -> None:
    assert gomaxprocs_of(2**22 + 1) is None
