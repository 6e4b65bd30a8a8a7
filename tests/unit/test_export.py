"""What changed, for people; and a report in other tools' formats, as each tool needs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_netpoll.cli import export
from pytest_netpoll.errors import Reason, UsageError
from pytest_netpoll.model import tolerance
from pytest_netpoll.model.against import Plan, compare_rounds, not_compared
from pytest_netpoll.model.comparison import Comparison, settle
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS
from pytest_netpoll.model.sample import Sample
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import delta, json_report, record, recording, tables
from tests.made_up import offender

ENVIRONMENT = {"commit": "c0ffee" * 6 + "abcd", "branch": "topic", "plugin": "0.1.0", "kernel": "6.8.0"}
WASTEFUL = {"wakeups": 200, "productive_wakeups": 100, "spurious_wakeups": 100, "events": 200, "polls": 210}
PLAN = Plan("main", "beef" * 10, tolerance.parse_list("spurious:+0.02,cpu_seconds:+5%"), 8, 8)


def samples(**metrics: Any) -> dict[str, Sample]:
    return {"server": Sample({"wakeups": 200, "productive_wakeups": 200, **metrics})}


def compared(base: dict[str, Any], heads: Sequence[dict[str, Any]]) -> Comparison:
    return compare_rounds([(samples(**base), samples(**head)) for head in heads], PLAN)


def built(name: str, comparison: Comparison | None = None, **limits: object) -> record.TestRecord:
    counters = {**dict.fromkeys(COUNTERS, 0), **WASTEFUL}
    snapshot = Snapshot(counters, {}, 0, 340_000_000, None)
    run = Measurement("server", 42, "/srv/server", "go1.26.6", 1.0, snapshot, offenders=(offender(99),))
    made = Measurement(
        "server", 42, "/srv/server", "go1.26.6", 1.0, snapshot, offenders=(offender(99),), runs=(run, run)
    )
    demanded = resolve([((), limits)], name)
    verdict = settle(judge([made], demanded), comparison, "gate")
    where = ("test_echo.py", 7)
    return recording.build(
        f"test_echo.py::{name}", where, verdict, demanded, [made], 1.0, comparison=comparison
    )


DUP = compared({"spurious": 0.0, "futile_calls": 0}, [{"spurious": 0.5, "futile_calls": 150}] * 8)
HALF = compared(
    {"cpu_seconds": 0.1, "spurious": 0.0},
    [{"cpu_seconds": c, "spurious": 0.0} for c in (0.1, 0.108, 0.111, 0.104, 0.112, 0.107, 0.109, 0.102)],
)
SAME = compared({"spurious": 0.0, "cpu_seconds": 0.1}, [{"spurious": 0.0, "cpu_seconds": 0.1}] * 8)
RECORDS = [
    built("test_same", SAME),
    built("test_half", HALF),
    built("test_dup", DUP, max_spurious=0.05, min_productive_wakeups=1),
    built(
        "test_new", not_compared(PLAN, "base (main) does not pass this test: AssertionError; not compared")
    ),
]


def test_the_delta_is_worst_first_and_what_did_not_change_is_one_line() -> None:
    text = delta.markdown(RECORDS, ENVIRONMENT)
    head, *lines = text.splitlines()
    assert head == "## pytest-netpoll: main (beefbeefbeef) → c0ffeec0ffee"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][
        2:
    ]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("❌", "`test_echo.py::test_dup`", "`spurious`"),
        ("❔", "`test_echo.py::test_half`", "`cpu_seconds`"),
        ("🔺", "`test_echo.py::test_dup`", "`futile_calls`"),
    ]
    assert rows[0][4:7] == ["0.0 %", "50.0 %", "+50.0 %"]
    assert rows[1][6] == "\\~"
    assert rows[1][7] == "0.0 % to +12.0 %".replace("0.0 %", "+0.0 %", 1)
    assert [line for line in lines if line.startswith("No change")] == [
        "No change in 9 numbers of 3 tests, 8 rounds each."
    ]
    left_out = lines.index("1 of 4 tests was not compared:")
    assert "test_new" in lines[left_out + 2]
    assert "does not pass this test" in lines[left_out + 2]
    assert any("test_half" in line and "8 rounds can't decide" in line for line in lines)


def test_without_changes_the_delta_is_a_heading_and_a_line() -> None:
    lines = delta.markdown([RECORDS[0]], ENVIRONMENT).split("\n\n")
    assert lines[1:] == ["No change in 4 numbers of 1 test, 8 rounds each.\n"]
    assert "Nothing was compared" in delta.markdown([built("test_it")], ENVIRONMENT)


def test_the_terminal_shows_how_many_tests_were_not_compared_and_why() -> None:
    why = "no service is built by go_service from a package, so base (main) has none"
    alone = [built(f"test_alone[{n}]", not_compared(PLAN, why)) for n in range(3)]
    broken = compare_rounds(
        [(samples(), {"server": Sample({}, unmeasured=Reason("the agent died"))})] * 8, PLAN
    )
    [(_, table), *_] = tables.further_tables([RECORDS[0], *alone, built("test_gone", broken)], 160)
    assert table.splitlines() == [
        "No change in 4 numbers of 1 test, 8 rounds each.",
        "4 of 5 tests were not compared:",
        f"  3 tests: {why}",
        "  test_echo.py::test_gone: server was not compared: head, round 1: the agent died",
    ]


def test_the_terminal_shows_the_same_and_fits_its_width() -> None:
    for width in (70, 100, 160):
        [(title, table), *_] = tables.further_tables(RECORDS, width)
        assert title == "netpoll: base main (beefbeefbeef) → head"
        first = table.splitlines()[2]
        assert "spurious" in first
        assert first.endswith("WORSE")
        assert max(map(len, table.splitlines()[:5])) <= width


# The parts of SARIF 2.1.0 that we use, with what its schema demands of them.
SARIF = {
    "type": "object",
    "additionalProperties": False,
    "required": ["$schema", "version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "version": {"type": "string"},
                                    "informationUri": {"type": "string", "format": "uri"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "additionalProperties": False,
                                            # GitHub's code scanning wants the last two of each rule.
                                            "required": ["id", "fullDescription", "help"],
                                            "properties": {
                                                "id": {"type": "string"},
                                                "shortDescription": {"$ref": "#/$defs/message"},
                                                "fullDescription": {"$ref": "#/$defs/message"},
                                                "help": {"$ref": "#/$defs/message"},
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "properties": {"type": "object"},
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["message"],
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": {"$ref": "#/$defs/message"},
                                "locations": {"type": "array", "items": {"$ref": "#/$defs/location"}},
                                "partialFingerprints": {
                                    "type": "object",
                                    "additionalProperties": {"type": "string"},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "$defs": {
        "message": {
            "type": "object",
            "additionalProperties": False,
            "required": ["text"],
            "properties": {"text": {"type": "string"}},
        },
        "location": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "physicalLocation": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "artifactLocation": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "uri": {"type": "string", "format": "uri-reference", "pattern": "^[^/]"},
                                "uriBaseId": {"type": "string"},
                            },
                        },
                        "region": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"startLine": {"type": "integer", "minimum": 1}},
                        },
                    },
                }
            },
        },
    },
}
# What GitLab's documentation of the code quality report format demands.
CODE_CLIMATE = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            "description": {"type": "string"},
            "check_name": {"type": "string"},
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]+$"},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "pattern": "^(?!\\./)(?!/)"},
                    "lines": {
                        "type": "object",
                        "required": ["begin"],
                        "properties": {"begin": {"type": "integer", "minimum": 1}},
                    },
                },
            },
        },
    },
}
# As in https://bencher.dev/bmf.json, with names as long as Bencher accepts.
NUMBER = {"type": "number"}
BENCHER = {
    "type": "object",
    "propertyNames": {"minLength": 1, "maxLength": 1024},
    "additionalProperties": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z0-9-]{1,64}$"},
        "additionalProperties": {
            "type": "object",
            "properties": {"value": NUMBER, "lower_value": NUMBER, "upper_value": NUMBER},
            "required": ["value"],
        },
    },
}
# As the action reads customSmallerIsBetter.
BENCHMARK = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "unit", "value"],
        "properties": {
            "name": {"type": "string"},
            "unit": {"type": "string", "minLength": 1},
            "value": NUMBER,
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
    },
}


@pytest.fixture
def exported(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """exported(format) converts RECORDS, in a project that has the Go file."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "fault_dup.go").write_text("package main\n")
    (tmp_path / "now.json").write_text("")
    monkeypatch.chdir(tmp_path)

    def exported(form: str, *options: str) -> str:
        json_report.write(tmp_path / "now.json", ENVIRONMENT, RECORDS)
        assert export.main(["now.json", f"--format={form}", *options]) == 0
        return capsys.readouterr().out

    return exported


def schema_of(schema: Any, made: str) -> Any:
    content = json.loads(made)
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(content)
    return content


def test_sarif_marks_the_go_line_with_the_broken_rule(exported: Any) -> None:
    (run,) = schema_of(SARIF, exported("sarif"))["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert set(rules) == {"max_spurious", "regressed_spurious"}
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("server/fault_dup.go", 33)
        assert result["level"] == "error"
    assert "worse than base (main)" in json.dumps(run["results"], ensure_ascii=False)
    assert run["properties"] == {"commit": ENVIRONMENT["commit"], "branch": "topic"}


def test_sarif_contains_the_codes_of_the_reports_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = built("test_it")
    made["services"][0]["rules"] = [
        {
            "code": "NP101",
            "name": "second-reader",
            "text": "two read it",
            "line": None,
            "fix": "read from one",
            "forbidden": True,
        }
    ]
    monkeypatch.chdir(tmp_path)
    json_report.write(tmp_path / "now.json", ENVIRONMENT, [made])
    export.main(["now.json", "--format=sarif"])
    (run,) = schema_of(SARIF, capsys.readouterr().out)["runs"]
    (result,) = run["results"]
    assert result["ruleId"] == "NP101"
    (described,) = run["tool"]["driver"]["rules"]
    assert ".. " not in described["help"]["text"]
    assert described["help"]["text"].endswith(". More: python -m pytest_netpoll rules NP101")
    assert "two read it. Fix: read from one (" in result["message"]["text"]


def test_a_rule_without_a_line_number_is_reported_at_the_test(tmp_path: Path) -> None:
    from pytest_netpoll.report.export.findings import findings

    (tmp_path / "main.go").write_text("package main\n")
    made: Any = built("test_it")
    about = {"name": "second-reader", "text": "two read it", "fix": "read from one", "forbidden": True}
    made["services"][0]["rules"] = [
        {**about, "code": code, "line": f"main.go:{line}"} for code, line in (("NP101", "x"), ("NP102", "3"))
    ]
    places = {finding.rule: (finding.path, finding.line) for finding in findings([made], tmp_path)}
    assert places == {"NP101": ("test_echo.py", 7), "NP102": ("main.go", 3)}


def test_a_broken_limit_is_reported_at_its_own_services_line(tmp_path: Path) -> None:
    from pytest_netpoll.report.export.findings import findings
    from tests.unit.test_report_people import two_services

    for name in ("front", "back"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.go").write_text("package main\n")
    found = [f for f in findings([two_services()], tmp_path) if f.rule == "max_spurious"]
    assert {f.service: (f.path, f.line) for f in found} == {
        "front": ("front/main.go", 3),
        "back": ("back/main.go", 4),
    }
    # One whose line isn't known is reported at the test, not at another service's line.
    (tmp_path / "front" / "main.go").unlink()
    found = [f for f in findings([two_services()], tmp_path) if f.rule == "max_spurious"]
    assert {f.service: f.path for f in found} == {"front": "tests/test_echo.py", "back": "back/main.go"}


def test_gitlab_gets_an_issue_for_each_finding_with_its_own_fingerprint(exported: Any) -> None:
    issues = schema_of(CODE_CLIMATE, exported("code-climate"))
    assert {issue["check_name"] for issue in issues} == {"max_spurious", "regressed_spurious"}
    assert len({issue["fingerprint"] for issue in issues}) == len(issues) == 2


def test_an_unmeasured_test_is_a_warning_at_its_own_line(tmp_path: Path) -> None:
    from pytest_netpoll.report.export.findings import findings

    broken = Sample({}, unmeasured=Reason("the agent died"))
    comparison = compare_rounds([(samples(), {"server": broken})] * 8, PLAN)
    (finding,) = findings([built("test_it", comparison)], tmp_path)
    assert (finding.rule, finding.level, finding.path, finding.line) == (
        "unmeasured",
        "warning",
        "test_echo.py",
        7,
    )


def test_bencher_gets_values_with_the_least_and_the_most_of_the_runs(exported: Any) -> None:
    found = schema_of(BENCHER, exported("bencher"))
    entry = found["test_echo.py::test_dup server"]["spurious"]
    assert entry == {"value": 0.5, "lower_value": 0.5, "upper_value": 0.5}
    assert "latency-p99" not in found["test_echo.py::test_dup server"], "it was not measured"


def test_github_action_benchmark_gets_numbers_that_are_better_when_smaller(exported: Any) -> None:
    entries = {entry["name"]: entry for entry in schema_of(BENCHMARK, exported("github-action-benchmark"))}
    entry = entries["test_echo.py::test_dup server: spurious"]
    assert (entry["value"], entry["unit"], entry["range"]) == (0.5, "share", "50.0 % to 50.0 %")
    assert not any("productive" in name for name in entries)


def test_markdown_is_the_delta_and_can_be_written_to_a_file(exported: Any, tmp_path: Path) -> None:
    assert exported("markdown") == delta.markdown(sorted(RECORDS, key=lambda r: r["nodeid"]), ENVIRONMENT)
    assert exported("markdown", "--output=out/delta.md") == ""
    assert (tmp_path / "out" / "delta.md").read_text().startswith("## pytest-netpoll: main")


def test_a_file_that_is_not_a_report_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "now.json").write_text('{"schema": "other/1"}')
    with pytest.raises(UsageError, match="its \"schema\" is 'other/1'"):
        export.main([str(tmp_path / "now.json"), "--format=sarif"])
