"""What a Meter remembers: which windows are open, and whether to try another agent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import checks
from pytest_netpoll.meter.agent_client import Agent, State
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.tolerance import Tolerance
from pytest_netpoll.options import Config
from tests.agents import CLOSED, PROCESSES, READY, SERVICE, Liar

OPENED = {"window": 1}


class Interrupts(Liar):
    """Raises Ctrl-C where it would answer None."""

    def receive(self, seconds: float) -> bytes | None:
        line = super().receive(seconds)
        if line is None:
            raise KeyboardInterrupt
        return line


def saying(*answers: Any, ready: bytes = READY) -> list[bytes]:
    """Its lines."""
    return [ready, *(json.dumps({"id": n, "ok": answer}).encode() for n, answer in enumerate(answers, 1))]


@pytest.fixture
def meter_with(tmp_path: Path) -> Callable[..., tuple[Meter, list[Agent]]]:
    """meter_with(liar, …): its first agent, the replacement, and so on; and those that it has used."""

    def meter_with(*liars: Liar) -> tuple[Meter, list[Agent]]:
        used: list[Agent] = []

        def new_agent(load: Mapping[str, int]) -> Agent:
            used.append(Agent(["liar"], load, start=lambda _: liars[len(used)]))
            return used[-1]

        return Meter(Config.default(), Symbolizer(tmp_path), new_agent=new_agent), used

    return meter_with


def test_a_window_is_open_until_it_is_closed_and_a_lap_keeps_it_so(meter_with: Any) -> None:
    meter, _ = meter_with(Liar(saying(PROCESSES, OPENED, PROCESSES, CLOSED, CLOSED)))
    window = meter.open()
    assert meter.windows == [window]
    _, window = meter.lap(window, [], 0)
    assert (meter.windows, window.failed) == ([window], None)
    meter.close(window, [])
    assert (meter.windows, window.is_open) == ([], False)


@pytest.mark.parametrize("answers", [0, 1, 2, 3], ids=["open", "opening", "lap", "lapping"])
def test_an_interrupted_window_is_no_longer_open(meter_with: Any, answers: int) -> None:
    meter, _ = meter_with(Interrupts(saying(PROCESSES, OPENED, PROCESSES)[: 1 + answers]))
    with pytest.raises(KeyboardInterrupt):
        meter.lap(meter.open(), [], 0)
    assert meter.windows == []


def test_an_interrupted_close_closes_only_that_window(meter_with: Any) -> None:
    meter, _ = meter_with(Interrupts(saying(PROCESSES, OPENED, PROCESSES, OPENED)))
    outer, inner = meter.open(), meter.open()
    with pytest.raises(KeyboardInterrupt):
        meter.close(inner, [SERVICE])
    assert meter.windows == [outer]
    (measurement,) = meter.close(outer, [SERVICE])
    assert measurement.unmeasured is not None  # that agent's answers may be out of step
    assert meter.windows == []


def test_an_agent_that_died_is_replaced_and_one_that_never_was_ready_is_not(meter_with: Any) -> None:
    meter, agents = meter_with(Liar([READY]), Liar(saying(PROCESSES, OPENED)))
    assert meter.open().failed is not None
    assert meter.open().failed is None
    assert [agent.state for agent in agents] == [State.DIED, State.READY]

    meter, agents = meter_with(Liar([b'{"failed": {"what": "no BTF"}}']), Liar(saying(PROCESSES, OPENED)))
    for _ in range(2):
        failed = meter.open().failed
        assert failed is not None
        assert failed.what == "no BTF"
    assert [agent.state for agent in agents] == [State.NEVER_READY]


@pytest.mark.parametrize("chosen", [{"against": "main"}, {"compare": "main"}, {"save": "main"}])
def test_compared_metrics_are_measured_even_without_limits(tmp_path: Path, chosen: Any) -> None:
    rules = tuple(
        Tolerance(name, "+0", absolute=0) for name in ("response_p99", "parked_growth", "cpu_seconds")
    )
    loads = []

    def new_agent(load: Mapping[str, int]) -> Agent:
        loads.append(load["answers"])
        return Agent(["liar"], load, start=lambda _: Liar(saying(PROCESSES, OPENED)))

    for options, answers, parked in (({**chosen, "compare_fail": rules}, 1, True), (chosen, 0, False)):
        config = dataclasses.replace(Config.default(), **options)
        meter = Meter(config, Symbolizer(tmp_path), new_agent=new_agent)
        meter.start()
        window = meter.open()
        assert loads[-1] == answers
        assert window.parked is parked
        assert not window.cpu_samples  # evidence, which would slow the service down
    alone = dataclasses.replace(Config.default(), compare_fail=rules)
    assert alone.compared == frozenset()


@pytest.mark.parametrize("has_btf", [True, False])
def test_it_is_not_said_that_there_is_no_btf_where_only_a_member_is_missing(
    meter_with: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_btf: bool
) -> None:
    monkeypatch.setattr(checks, "BTF", tmp_path / "vmlinux")
    if has_btf:
        (tmp_path / "vmlinux").touch()
    ready = json.loads(READY)
    ready["ready"]["sees_held_writes"] = False
    answers = saying(PROCESSES, OPENED, CLOSED, ready=json.dumps(ready).encode())
    meter, _ = meter_with(Liar(answers))
    [measured] = meter.close(meter.open(), [SERVICE])
    reason = measured.unexplained["held"]
    assert reason.what == "it could not be recorded whether writes are held back"
    assert ("lacks a member" in reason.why) == has_btf
    assert ("CONFIG_DEBUG_INFO_BTF=y" in reason.fix) == (not has_btf)
