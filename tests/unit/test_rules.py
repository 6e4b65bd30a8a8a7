"""The rules that a test can forbid: how they are named, how they bind, and what happens if one is broken."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from pytest_netpoll.__main__ import main
from pytest_netpoll.errors import Reason, UsageError
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model.limits import Limits, resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import median_of
from pytest_netpoll.model.metrics import COUNTERS
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import (
    evidence_entries,
    github,
    junit,
    record,
    recording,
    terminal,
    verdict_text,
    wording,
)
from tests.made_up import offender

FAMILY = {code for code in RULES if code.startswith("NP1")}


def limits(*marks: dict[str, object], **defaults: str) -> Limits:
    """The limits of markers given by their kwargs, closest first."""
    return resolve([((), mark) for mark in marks], "t.py::test", defaults)


def second_reader(**more: Any) -> Measurement:
    counters = {**dict.fromkeys(COUNTERS, 0), "productive_wakeups": 100, "spurious_wakeups": 90}
    counters |= {"wakeups": 190, "deadline_wakeups": 0, "ready_calls": 0}
    found = Measurement(
        "server",
        1,
        "/server",
        "go1.26.6",
        1.0,
        Snapshot(counters, cpu_ns=10**8, run_delay_ns=0, dropped_datagrams=0),
        offenders=(offender(90, cause="registered twice"),),
        gomaxprocs=2,
        cpus=2,
    )
    return dataclasses.replace(found, **more)


def judged(measurement: Measurement, chosen: Limits, mode: Any = "gate") -> record.TestRecord:
    verdict = judge([measurement], chosen, mode)
    return recording.build("t.py::test", ("t.py", 3), verdict, chosen, [measurement], 1.0)


@pytest.mark.parametrize(
    ("named", "codes"),
    [
        ("all", set(RULES)),
        ("NP1", FAMILY),
        ("np101", {"NP101"}),
        ("second-reader", {"NP101"}),
        ("NP1, busy-loop,", FAMILY | {"NP204"}),
        ("more-ps-than-cpus", {"NP406"}),
    ],
)
def test_rules_are_named_by_code_family_and_name(named: str, codes: set[str]) -> None:
    assert set(limits({"forbid": named}).forbidden("server")) == codes


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("second-raeder", "no rule 'second-raeder', did you mean 'second-reader'?"),
        ("NP1O1", "did you mean 'NP101'"),
        ("reader", "did you mean 'second-reader' or 'stuck-reader'?"),
        ("NP9", "no rule 'NP9'"),
        ("mutex", "no rule 'mutex'; none is about mutexes: limit max_mutex_wait_seconds"),
        ("goroutine-leak", "see NP501 parked-leak, or limit max_parked_growth"),
        ("slow-responses", "limit max_response_p90"),
        ("block", "no rule 'block'"),
        ("", "it names no rule"),
        (True, "True is not a string"),
        (["all"], "['all'] is not a string"),
    ],
)
def test_an_unknown_rule_name_is_a_usage_error(named: object, complaint: str) -> None:
    for argument in ("forbid", "allow"):
        with pytest.raises(UsageError, match=re.escape(complaint)) as error:
            limits({argument: named})
        assert error.value.what.startswith(f"t.py::test: bad {argument}=")
        assert "python -m pytest_netpoll rules" in (error.value.fix or "")


@pytest.mark.parametrize(
    ("marks", "left"),
    [
        ([{"forbid": "all", "allow": "NP1"}], set(RULES) - FAMILY),
        ([{"allow": "NP101"}, {"forbid": "NP1"}], FAMILY - {"NP101"}),
        ([{"forbid": "NP101"}, {"forbid": "all", "allow": "NP1"}], set(RULES) - FAMILY | {"NP101"}),
        # The more specific entry decides.
        ([{"forbid": "NP101", "allow": "NP1"}], {"NP101"}),
        ([{"allow": "all"}, {"forbid": "NP101"}], set()),
    ],
)
def test_the_closest_marker_decides_on_a_rule(marks: list[dict[str, object]], left: set[str]) -> None:
    assert set(limits(*marks).forbidden("server")) == left


def test_options_are_the_outermost_level() -> None:
    chosen = limits({"allow": "busy-loop"}, forbid="NP2", allow="NP205")
    assert set(chosen.forbidden("server")) == {"NP201", "NP202", "NP203"}
    assert chosen.judges


def test_a_service_of_its_own_name_has_its_own_rules() -> None:
    chosen = limits({"service": "one", "allow": "NP101"}, {"forbid": "NP1"})
    assert set(chosen.forbidden("one")) == FAMILY - {"NP101"}
    assert set(chosen.forbidden("other")) == FAMILY


def test_only_what_forbidden_rules_need_is_recorded() -> None:
    assert limits({"forbid": "NP201"}).offences == {"futile", "io"}
    assert limits({"forbid": "NP401"}).offences == {"cpu"}
    assert limits({"forbid": "NP4"}).offences == {"cpu", "woken", "ready", "held"}
    assert limits({"forbid": "all"}).offences >= {"futile", "io", "cpu", "ready"}
    assert limits({"forbid": "NP5"}).offences == {"parked", "woken"}
    assert limits({"allow": "all"}).offences == set()


def test_a_forbidden_rule_that_is_proven_fails_with_code_line_and_fix() -> None:
    made = judged(second_reader(), limits({"forbid": "all"}))
    assert (made["outcome"], made["forbidden"]) == ("failed", sorted(RULES))
    [reason] = made["reasons"]
    assert reason["what"] == "server: NP101 second-reader at server/fault_dup.go:33 main.(*watcher).run"
    assert (reason["why"] or "").startswith("90 of 190 wakeups found nothing to read")
    assert (reason["fix"] or "").startswith("read from one goroutine only")
    [breach] = made["breaches"]
    assert (breach["metric"], breach["measured"], breach["limit"]) == ("NP101", 90, 0)
    [rule] = made["services"][0]["rules"]
    assert (rule["code"], rule["name"], rule["forbidden"]) == ("NP101", "second-reader", True)
    assert rule["line"] == "server/fault_dup.go:33"
    [diagnosis] = made["diagnosis"]
    where = "NP101 second-reader at server/fault_dup.go:33"
    assert diagnosis == f"server: {where}: {rule['text']} Fix: {rule['fix']}"
    assert [offender["rules"] for offender in made["services"][0]["offenders"]] == [["NP101"]]


def test_reports_show_the_code_once() -> None:
    made = judged(second_reader(), limits({"forbid": "NP101"}))
    assert ("netpoll.server.rules", "NP101") in junit.properties(made)
    [annotation] = github.annotations([made])
    assert annotation.count("NP101 second-reader") == 1
    section = terminal.failure_section(made, 100)
    assert section.count("NP101 second-reader") == 1
    assert "fix: read from one goroutine only" in section
    assert evidence_entries.worst_places(made)


def test_leaked_connections_are_shown_with_their_rule() -> None:
    left = offender(0, offence="parked", stack=(), abandoned=5, closed=5, peers=("127.0.0.1:9",))
    other = dataclasses.replace(left, local="127.0.0.1:8", abandoned=0, closed=0, count=3)
    made = judged(second_reader(offenders=(left, other)), limits({"forbid": "parked-leak"}))
    assert (made["outcome"], made["breaches"][0]["measured"]) == ("failed", 5)
    section = terminal.failure_section(made, 100)
    assert "5 tcp descriptors whose peers have closed, and nobody is parked on them" in section
    assert "127.0.0.1:8" not in section


def test_a_rule_shows_its_own_evidence_and_no_ordinary_callers() -> None:
    reader, worker = Frame("main.read", "main.go", 7), Frame("main.work", "main.go", 9)
    ordinary = offender(190, offence="woken", stack=(reader,))
    handed = offender(90, offence="ready", stack=(reader,), woken_stack=(worker,), locked=True)
    other = offender(95, offence="ready", stack=(worker,), woken_stack=(reader,))
    made = judged(second_reader(offenders=(ordinary, other, handed)), limits({"forbid": "thread-handover"}))
    [entry] = evidence_entries.explaining(made, made["services"][0])
    assert (
        entry.woken == "which woke the goroutine parked at main.go:9 main.work, which is locked to a thread"
    )
    assert made["breaches"][0]["text"].startswith("server: NP405 thread-handover at main.go:9 main.work: ")
    section = terminal.failure_section(made, 100)
    assert section.count(" of ready calls") + section.count("ready calls, made") <= 2
    assert "wakeups (read" not in section
    # The others are in the report, under a heading of their own.
    assert [heading for heading, _ in evidence_entries.besides(made, made["services"][0])] == [
        "Callers",
        "Woken goroutines",
    ]


def test_where_goroutines_were_added_is_shown_with_what_was_left_behind() -> None:
    left = offender(0, offence="parked", stack=(), abandoned=8, closed=8, peers=("127.0.0.1:9",))
    pump = Frame("main.pump", "proxy.go", 12)
    grown = offender(20, offence="parked", stack=(pump,), growth=8, local=None)
    few = offender(9, offence="parked", growth=2, local=None)
    made = judged(second_reader(offenders=(left, grown, few)), limits({"forbid": "parked-leak"}))
    entries = evidence_entries.explaining(made, made["services"][0])
    assert [entry.text.partition(" (")[0] for entry in entries] == [
        "8 tcp descriptors whose peers have closed, and nobody is parked on them",
        "20 goroutines",
    ]
    assert (entries[1].stack[0]["line"], entries[0].lead_in) == (12, "")
    # Which of them is the cause is not proven.
    assert made["services"][0]["rules"][0]["line"] is None


def test_a_rule_that_is_not_forbidden_is_a_diagnosis_only() -> None:
    made = judged(second_reader(), limits({"forbid": "all", "allow": "second-reader"}))
    assert (made["outcome"], made["breaches"]) == ("passed", [])
    assert made["services"][0]["rules"][0]["forbidden"] is False
    [text] = verdict_text.diagnosis_of(made)
    assert text.startswith("server: NP101 second-reader at server/fault_dup.go:33: 90 of 190")


def test_report_mode_shows_the_outcome_in_gate_mode() -> None:
    made = judged(second_reader(), limits({"forbid": "all"}), "report")
    assert (made["outcome"], made["gate"]) == ("passed", "failed")
    assert wording.status_of(made) == "would fail"


def test_a_rule_without_its_evidence_is_listed_under_all_and_unmeasured_by_its_own_name() -> None:
    lack = Reason("no perf events", fix="--cap-add PERFMON")
    healthy = second_reader(offenders=(), unexplained={"cpu": lack})
    made = judged(healthy, limits({"forbid": "all"}))
    assert made["outcome"] == "passed"
    assert {rule["code"] for rule in made["services"][0]["unchecked"]} == {"NP204", "NP401", "NP407"}
    [said] = verdict_text.unchecked_rules([made, made])
    assert said == Reason(
        "NP204 busy-loop, NP401 starvation and NP407 gc-pressure were not checked in t.py::test: no perf "
        "events",
        fix=lack.fix,
    )
    assert said.what in " ".join((terminal.summary_table([made], 100) or "").split())
    assert said.what in github.markdown([made], {}).replace("\\", "")
    for named in ("busy-loop", "NP204"):
        made = judged(healthy, limits({"forbid": named}))
        assert made["outcome"] == "unmeasured"
        assert made["reasons"] == [
            {
                "what": "server: NP204 busy-loop was not checked: no perf events",
                "why": None,
                "fix": "--cap-add PERFMON",
            }
        ]
    # A message for each reason, whatever the process.
    both = [
        judged(second_reader(offenders=(), unexplained={"cpu": Reason(f"process {n} ran /x/{n}")}), all_rules)
        for n, all_rules in ((1, limits({"forbid": "all"})), (2, limits({"forbid": "all"})))
    ]
    both[1]["nodeid"] = "t.py::other"
    [said] = verdict_text.unchecked_rules(both)
    assert said.what.endswith("gc-pressure were not checked in 2 tests: process 1 ran /x/1")
    # If it isn't forbidden, nothing is missing.
    assert judged(healthy, limits({"forbid": "NP1"}))["services"][0]["unchecked"] == []


@pytest.mark.parametrize(
    ("lacks", "unchecked"),
    [
        ({"gomaxprocs": None}, {"NP402", "NP406"}),
        ({"cpus": None}, {"NP401", "NP402", "NP404", "NP406"}),
        ({"run_delay_ns": None}, {"NP401", "NP402", "NP404", "NP406", "NP407"}),
        ({"cpu_ns": None}, {"NP201", "NP202", "NP203", "NP204", "NP401", "NP402", "NP404", "NP406", "NP407"}),
    ],
)
def test_a_rule_whose_numbers_are_unknown_is_not_checked(lacks: dict[str, None], unchecked: set[str]) -> None:
    healthy = second_reader(offenders=())
    if lacks.keys() <= {"gomaxprocs", "cpus"}:
        blind = dataclasses.replace(healthy, **lacks)  # type: ignore[arg-type]
    else:
        seen = dataclasses.replace(healthy.snapshot, **lacks)  # type: ignore[arg-type]
        blind = dataclasses.replace(healthy, snapshot=seen)
    asked = limits({"forbid": "NP2,NP4", "allow": "NP403,NP408"})
    assert judged(healthy, asked)["services"][0]["unchecked"] == []
    made = judged(blind, limits({"forbid": "all"}))
    assert made["outcome"] == "passed"
    assert {rule["code"] for rule in made["services"][0]["unchecked"]} - {"NP403"} == unchecked
    for code in unchecked:
        assert judged(healthy, limits({"forbid": code}))["outcome"] == "passed"
        assert judged(blind, limits({"forbid": code}))["outcome"] == "unmeasured"


def test_without_uprobes_wakeups_of_locked_goroutines_are_unknown() -> None:
    counters = {name: n for name, n in second_reader().snapshot.counters.items() if name != "ready_calls"}
    blind = second_reader(
        offenders=(), snapshot=dataclasses.replace(second_reader().snapshot, counters=counters)
    )
    assert blind.ready_calls is None
    assert judged(blind, limits({"forbid": "thread-handover"}))["outcome"] == "unmeasured"
    # Wakeups by the network are enough to break it.
    woken = dataclasses.replace(offender(90), offence="woken", locked=True)
    assert (
        judged(dataclasses.replace(blind, offenders=(woken,)), limits({"forbid": "thread-handover"}))[
            "outcome"
        ]
        == "failed"
    )


def test_a_test_without_a_service_does_not_pass_a_rule() -> None:
    assert judge([], limits({"forbid": "all"})).outcome == "unmeasured"
    assert judge([], limits({"allow": "all"})).outcome == "passed"


def test_every_rule_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    listed = capsys.readouterr().out
    assert "max_mutex_wait_seconds" in listed, "where to look for what no rule is about"
    for rule in RULES.values():
        assert re.search(rf"^{rule.code} +{rule.name} .*{re.escape(rule.meaning)}$", listed, re.MULTILINE)
        assert main(["rules", rule.name]) == 0
        explained = capsys.readouterr().out
        assert explained.startswith(f"{rule.code} {rule.name}\n")
        for part in ("evidence: ", "example: ", "looks alike: ", "fix: "):
            assert part in explained
    assert main(["rules", "all", "NP1"]) == 0
    assert capsys.readouterr().out.count("evidence: ") == len(RULES)
    assert main(["rules", "busyloop"]) == 2
    assert "did you mean 'busy-loop'?" in capsys.readouterr().err


def of_runs(*broken: bool) -> Measurement:
    """Of a repeated test whose service breaks NP101 in these runs."""
    healthy = second_reader(offenders=())
    healthy.snapshot.counters.update(spurious_wakeups=0, wakeups=100)
    [merged] = median_of([[second_reader() if one else healthy] for one in broken])
    return merged


@pytest.mark.parametrize("broken", [(False, True), (True, False, True), (False, True, True, False)])
def test_a_rule_that_half_of_the_runs_break_is_broken(broken: tuple[bool, ...]) -> None:
    [breach] = judge([of_runs(*broken)], limits({"forbid": "all"})).breaches
    assert (breach.metric, breach.measured) == ("NP101", 90)


def test_a_rule_that_fewer_runs_break_is_not() -> None:
    assert judge([of_runs(False, True, False)], limits({"forbid": "all"})).outcome == "passed"


def test_a_rule_that_was_not_checked_in_one_run_is_not_checked() -> None:
    blind = second_reader(offenders=(), unexplained={"cpu": Reason("no CPU samples")})
    seeing = second_reader(offenders=())
    [merged] = median_of([[blind], [seeing], [seeing]])
    verdict = judge([merged], limits({"forbid": "busy-loop"}))
    assert (verdict.outcome, verdict.reason) == (
        "unmeasured",
        "server: NP204 busy-loop was not checked: no CPU samples",
    )
