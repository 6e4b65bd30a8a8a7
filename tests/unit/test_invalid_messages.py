"""Invalid messages in both directions: the result is an answer or a reason, never a traceback."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_netpoll.agent.counters.timeline import COLUMNS
from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter import agent_client, privilege, schema
from pytest_netpoll.meter.agent_client import Agent
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.options import Config
from pytest_netpoll.report import json_report, recording, terminal
from tests.agents import ABOUT, CLOSED, PROCESSES, READY, SERVICE, Liar

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)
SETTINGS = settings(max_examples=200, database=None)


@pytest.fixture(scope="module")
def protocol() -> Any:
    """The agent's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(privilege.AGENT))
        return importlib.import_module("protocol")


@SETTINGS
@given(
    line=st.text()
    | JSON.map(json.dumps)
    | st.fixed_dictionaries(
        {"do": st.sampled_from(["watch", "close", "open", "_state", "parse"]) | JSON},
        optional={"id": JSON, "pid": JSON, "window": JSON, "settle_ms": st.integers(0, 9) | JSON},
    ).map(json.dumps)
)
def test_the_agent_understands_a_message_completely_or_refuses_it(protocol: Any, line: str) -> None:
    try:
        _, command, arguments = protocol.parse(line)
    except protocol.BadMessage:
        return
    assert set(arguments) == set(protocol.COMMANDS[command])
    assert all(type(value) is int and value >= 0 for value in arguments.values())


def test_the_agent_refuses_deeply_nested_messages(protocol: Any) -> None:
    with pytest.raises(protocol.BadMessage):
        protocol.parse("[" * 1_000_000)


# Two processes are watched, one of which is gone after a lap of the window: requests and answers.
TALK = (
    ("watch", PROCESSES),
    ("programs", PROCESSES),
    ("watch", PROCESSES),
    ("programs", PROCESSES),
    ("open", {"window": 1}),
    ("programs", PROCESSES),
    ("lap", CLOSED),
    ("unwatch", {}),
    ("close", CLOSED),
)
ANSWERS: list[Any] = [{"id": number, "ok": said} for number, (_, said) in enumerate(TALK, 1)]


def right_answers() -> list[Any]:
    """Fresh copies, to be changed."""
    answers: list[Any] = json.loads(json.dumps(ANSWERS))
    return answers


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[bytes]], list[Measurement]]:
    """told(lines) are the measurements of a meter whose agent answers the lines to any request. All of them
    can be reported.
    """

    def told(lines: list[bytes]) -> list[Measurement]:
        liar = Liar([READY, *lines, b"no more"])
        agents: list[Agent] = []

        def new_agent(load: Mapping[str, int]) -> Agent:
            for former in agents:  # it has failed, and another one would answer the same
                assert former.failed is not None
                raise former.failed
            agents.append(Agent(["liar"], load, start=lambda _: liar))
            return agents[0]

        meter = Meter(Config.default(), Symbolizer(tmp_path_factory.getbasetemp()), new_agent=new_agent)
        try:
            meter.watch(SERVICE)
            meter.follow(SERVICE, 4243)
            window = meter.open()
            measurements, window = meter.lap(window, [SERVICE], 0)
            measurements += meter.close(window, [SERVICE])
        finally:
            meter.stop()
        assert meter.windows == []
        for measurement in measurements:
            assert_reported(measurement)
        return measurements

    return told


def assert_reported(measurement: Measurement) -> None:
    verdict = judge([measurement], Limits(), "gate")
    made = recording.build("t.py::test", ("t.py", 1), verdict, Limits(), [measurement], 1.0)
    report = {"schema": json_report.SCHEMA, "environment": {}, "tests": [made]}
    assert schema.wrong(json.loads(json.dumps(report)), json_report.Report) is None
    terminal.summary_table([made], 80, {})
    terminal.failure_section(made, 80)
    assert list(measurement.metrics) == list(METRICS)


def encoded(answers: list[Any]) -> list[bytes]:
    return [json.dumps(answer).encode() for answer in answers]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def test_the_right_answers_are_measured(told: Any) -> None:
    measurements = told(encoded(ANSWERS))
    assert [measurement.unmeasured for measurement in measurements] == [None, None]
    assert [measurement.wakeups for measurement in measurements] == [7, 7]


def test_registrations_that_do_not_decode_count_also_in_a_program_that_cannot_be_read(told: Any) -> None:
    answers = right_answers()
    (closed,) = answers[-1]["ok"]["services"]["4242"]
    closed["executable"] = "/bin/server (deleted)"
    closed["calibration"]["unproven"] = 1
    lap, last = told(encoded(answers))
    assert lap.unmeasured is None
    assert last.unmeasured.startswith("1 of 4 descriptors of process 4242")


def test_only_the_waiting_time_is_unknown_if_the_kernel_does_not_report_it(told: Any) -> None:
    answers = right_answers()
    answers[-1]["ok"]["times"]["4242"]["run_delay_ns"] = None
    lap, end = told(encoded(answers))
    assert (lap.run_delay_seconds, lap.cpu_seconds) == (1e-6, 1e-3)
    assert (end.run_delay_seconds, end.cpu_seconds, end.unmeasured) == (None, 1e-3, None)


@pytest.mark.parametrize("column", range(1, 13))
def test_a_count_of_the_timeline_is_an_integer(told: Any, column: int) -> None:
    answers = right_answers()
    answers[-1]["ok"]["timelines"]["4242"][0][column] = 0.5
    assert told(encoded(answers))[-1].unmeasured.startswith("the agent sent an invalid response: ValueError")


def test_required_values_of_a_timeline_are_never_none(told: Any) -> None:
    answers = right_answers()
    answers[-1]["ok"]["timelines"]["4242"][0][1 + COLUMNS.index("threads_running")] = None
    assert told(encoded(answers))[-1].unmeasured.startswith("the agent sent an invalid response: ValueError")


def test_an_unknown_offence_is_an_invalid_response(told: Any) -> None:
    answers = right_answers()
    answers[-1]["ok"]["services"]["4242"][0]["offenders"][0]["offence"] = "spurios"
    assert told(encoded(answers))[-1].unmeasured.startswith("the agent sent an invalid response: ValueError")


@SETTINGS
@given(st.data())
def test_a_wrong_answer_is_unmeasured_or_at_least_reported(told: Any, data: st.DataObject) -> None:
    answers = right_answers()
    number = data.draw(st.integers(0, len(answers) - 1))
    *path, last = data.draw(st.sampled_from([place for place in places(answers[number]) if place]))
    holder = answers[number]
    for key in path:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(JSON)
    told(encoded(answers))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({}, "ok has no 'processes'"),
        ({"processes": {}}, "ok.processes: expected a list, got {}"),
        ({"processes": [4242]}, "ok.processes[0]: expected an object, got 4242"),
        ({"processes": [{**ABOUT, "executable": 7}]}, "ok.processes[0].executable: expected a text, got 7"),
        ({"processes": [{**ABOUT, "pid": True}]}, "ok.processes[0].pid: expected an integer, got True"),
    ],
    ids=range(5),
)
@pytest.mark.parametrize("number", [n for n, (asked, _) in enumerate(TALK) if asked in ("watch", "programs")])
def test_answers_about_processes_are_checked(told: Any, wrong: Any, complaint: str, number: int) -> None:
    answers = right_answers()
    answers[number]["ok"] = wrong
    reason = f"the agent sent an invalid response: to {TALK[number][0]!r}: {complaint}"
    assert told(encoded(answers))[-1].unmeasured.startswith(reason)


def test_a_number_beyond_64_bits_is_an_invalid_response(told: Any) -> None:
    answers = right_answers()
    answers[-1]["ok"]["duration_ns"] = 10**400
    lap, end = told(encoded(answers))
    assert lap.unmeasured is None
    assert end.unmeasured.startswith("the agent sent an invalid response")


@settings(SETTINGS, max_examples=80)
@given(
    number=st.integers(0, len(ANSWERS) - 1),
    line=st.binary() | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_an_answer_that_cannot_be_parsed_is_unmeasured(told: Any, number: int, line: bytes) -> None:
    lines = encoded(ANSWERS)
    lines[number] = line
    assert told(lines)[-1].unmeasured is not None


@pytest.mark.parametrize(
    "first",
    [
        '{"ready": null}',
        json.dumps({"ready": {"protocol": agent_client.PROTOCOL}}),
        '{"failed": null}',
        '{"failed": {"what": {"a": 1}, "fix": []}}',
        "[" * 100_000,
        "null",
        "",
    ],
    ids=range(7),
)
def test_a_start_that_cannot_be_parsed_is_unmeasured(first: str, tmp_path: Path) -> None:
    (tmp_path / "first").write_text(f"{first}\n")
    liar = agent_client.Agent(["cat", str(tmp_path / "first")])
    with pytest.raises(UnmeasuredError, match=r"invalid response|another protocol|failed|ended"):
        liar.wait_ready()
    liar.stop()
