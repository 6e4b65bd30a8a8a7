"""Messages that are not what they should be, in both directions: an answer or a reason, never a traceback."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_netpoll import privilege, probe
from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.marker import Limits
from pytest_netpoll.metrics import COUNTERS, METRICS
from pytest_netpoll.options import Config
from pytest_netpoll.report import json as json_report
from pytest_netpoll.report import record, terminal
from pytest_netpoll.symbols import Symbolizer
from pytest_netpoll.verdict import judge
from pytest_netpoll.window import LOSSES, Meter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)
SETTINGS = settings(
    max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def agent() -> Any:
    """The agent's module: its top imports the standard library only."""
    spec = importlib.util.spec_from_file_location("netpoll_agent", privilege.AGENT / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@SETTINGS
@given(
    line=st.text()
    | JSON.map(json.dumps)
    | st.fixed_dictionaries(
        {"do": st.sampled_from(["watch", "close", "open", "_state", "parse"]) | JSON},
        optional={"id": JSON, "pid": JSON, "window": JSON, "settle_ms": st.integers(0, 9) | JSON},
    ).map(json.dumps)
)
def test_the_agent_understands_a_message_wholly_or_refuses_it(agent: Any, line: str) -> None:
    try:
        _, command, arguments = agent.parse(line)
    except agent.BadMessage:
        return
    assert set(arguments) == set(agent.COMMANDS[command])
    assert all(type(value) is int and value >= 0 for value in arguments.values())


def test_the_agent_refuses_what_is_nested_too_deep(agent: Any) -> None:
    with pytest.raises(agent.BadMessage):
        agent.parse("[" * 1_000_000)


PROCESS = {
    "pid": 4242,
    "executable": "/bin/true",
    "exited": False,
    "unwatched": 0,
    "foreign": False,
    "calibration": {"layout": "go1.25", "epfd": 4, "proven": 3, "unproven": 0, "why_not": None},
    "counters": {**dict.fromkeys(COUNTERS, 7), **dict.fromkeys(LOSSES, 0), "lost_offenders": 0},
    "histogram": {"130": 14},
    "latency_max_ns": 9000,
    "ready_calls": 5,
    "deadline_wakeups": 1,
    "dispatches": 20,
    "runq_max": 2,
    "slowest": [],
    "offenders": [
        {
            "offence": "spurious",
            "count": 7,
            "direction": "read",
            "syscall": "read",
            "fd_type": "tcp",
            "local": "127.0.0.1:80",
            "peer": None,
            "stack": [["/bin/true", 4096]],
        }
    ],
}
PROCESS["counters"].pop("lost")  # type: ignore[attr-defined]
ANSWER = {
    "id": 3,
    "ok": {
        "duration_ns": 1_000_000,
        "services": {"4242": [PROCESS]},
        "timelines": {"4242": []},
        "times": {"4242": {"cpu_ns": 1_000_000, "run_delay_ns": 1000}},
    },
}

SERVICE = SimpleNamespace(
    name="server",
    pid=4242,
    executable="/bin/true",
    go_version=None,
    gomaxprocs=None,
    stopped=False,
    attached=False,
    check_alive=lambda _: None,
)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], Meter]]:
    """answered(line) is a Meter whose window is open, and whose agent will say the line when it closes."""
    meters = []

    def answered(line: bytes) -> Meter:
        meter = Meter(Config.default(), Symbolizer(tmp_path_factory.getbasetemp()))
        liar = probe.Probe(["sh", "-c", "cat > /dev/null"])
        liar._ready = True
        meter._probe, meter._roots[4242] = liar, SERVICE  # type: ignore[assignment]
        meters.append(liar)
        liar._lines.put(b'{"id": 1, "ok": {"processes": []}}')
        liar._lines.put(b'{"id": 2, "ok": {"window": 1}}')
        window = meter.open()
        liar._lines.put(line)
        return meter, window  # type: ignore[return-value]

    yield answered
    for liar in meters:
        liar.stop()


def closed(answered: Any, line: bytes) -> str | None:
    """What a window that ends with this answer comes to: why it is unmeasured. All of it can be reported."""
    meter, window = answered(line)
    (measurement,) = meter.close(window, [SERVICE])
    meter.stop()
    verdict = judge([measurement], Limits(), "gate")
    made = record.build("t.py::test", ("t.py", 1), verdict, Limits(), [measurement], 1.0)
    report = {"schema": json_report.SCHEMA, "environment": {}, "tests": [made]}
    assert json_report._wrong(json.loads(json.dumps(report)), json_report.Report, "") is None
    assert terminal.summary_table([made], 80, {})
    terminal.failure_section(made, 80)
    assert list(measurement.metrics) == list(METRICS)
    assert meter._open == 0
    return measurement.unmeasured


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def test_the_right_answer_is_measured(answered: Any) -> None:
    reason = closed(answered, json.dumps(ANSWER).encode())
    assert reason is None


@SETTINGS
@given(st.data())
def test_a_wrong_answer_is_unmeasured_or_at_least_reported(answered: Any, data: st.DataObject) -> None:
    answer = copy.deepcopy(ANSWER)
    *path, last = data.draw(st.sampled_from([place for place in places(ANSWER) if place]))
    holder: Any = answer
    for key in path:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[last]
    else:
        # Any text will do for what offence it was: there may be more kinds of them.
        holder[last] = data.draw(JSON.filter(lambda value: last != "offence" or not isinstance(value, str)))
    closed(answered, json.dumps(answer).encode())


@settings(SETTINGS, max_examples=40)
@given(line=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_an_answer_that_is_none_is_unmeasured(answered: Any, line: bytes) -> None:
    assert closed(answered, line) is not None


@pytest.mark.parametrize(
    "first",
    [
        '{"ready": null}',
        '{"failed": null}',
        '{"failed": {"what": {"a": 1}, "fix": []}}',
        "[" * 100_000,
        "null",
        "",
    ],
    ids=range(6),
)
def test_a_start_that_is_none_is_unmeasured(first: str, tmp_path: Path) -> None:
    (tmp_path / "first").write_text(f"{first}\n")
    liar = probe.Probe(["cat", str(tmp_path / "first")])
    with pytest.raises(UnmeasuredError, match=r"nonsense|another protocol|failed|ended"):
        liar.wait_ready()
    liar.stop()
