"""The published JSON Schema matches what the code reads and writes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pytest_netpoll.__main__ import main
from pytest_netpoll.report import json_report

FILE = Path(__file__).parents[2] / "pytest_netpoll" / "report" / "schema" / "report.json"
SCHEMA = json.loads(FILE.read_text())


def test_a_report_without_tests_matches_the_schema(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    json_report.write(tmp_path / "r.json", {"kernel": "6.1"}, [])
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), SCHEMA)


@pytest.mark.parametrize(
    "broken",
    [
        {"schema": "pytest-netpoll/2", "environment": {}, "tests": []},
        {"schema": "pytest-netpoll/1", "environment": {}},
        {"schema": "pytest-netpoll/1", "environment": {}, "tests": [{"nodeid": "t"}]},
    ],
    ids=["another version", "no tests", "half a test"],
)
def test_other_data_does_not_match_the_schema(broken: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
