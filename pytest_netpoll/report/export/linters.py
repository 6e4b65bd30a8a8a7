"""SARIF 2.1.0, for GitHub code scanning and editors; Code Climate's issues, for GitLab's code quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_netpoll import __version__
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.report.export.findings import findings
from pytest_netpoll.report.record import TestRecord

_HOME = "https://github.com/pytest-netpoll/pytest-netpoll"
_SARIF = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_SEVERITIES = {"error": "major", "warning": "minor", "note": "info"}


def sarif(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> dict[str, Any]:
    found = findings(records, Path.cwd())
    rules = {finding.rule: finding.about for finding in found}
    index = {rule: number for number, rule in enumerate(rules)}
    driver = {
        "name": "pytest-netpoll",
        "informationUri": _HOME,
        "version": str(environment.get("plugin") or __version__),
        "rules": [_rule(rule, about) for rule, about in rules.items()],
    }
    results = [
        {
            "ruleId": finding.rule,
            "ruleIndex": index[finding.rule],
            "level": finding.level,
            "message": {"text": finding.message},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": quote(finding.path), "uriBaseId": "%SRCROOT%"},
                        "region": {"startLine": finding.line},
                    }
                }
            ],
            "partialFingerprints": {"netpoll/v1": finding.fingerprint},
        }
        for finding in found
    ]
    run: dict[str, Any] = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    revision = {key: environment[key] for key in ("commit", "branch") if environment.get(key)}
    if revision:
        run["properties"] = revision
    return {"$schema": _SARIF, "version": "2.1.0", "runs": [run]}


def _rule(rule: str, about: str) -> dict[str, Any]:
    """GitHub's code scanning wants a full description and a help of each rule."""
    text = {"text": about}
    more = f"python -m pytest_netpoll rules {rule}" if rule in RULES else f"{_HOME}#readme"
    explained = {"text": f"{about.removesuffix('.')}. More: {more}"}
    return {"id": rule, "shortDescription": text, "fullDescription": text, "help": explained}


def code_climate(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG001
    return [
        {
            "type": "issue",
            "check_name": finding.rule,
            "description": finding.message,
            "categories": ["Performance"],
            "severity": _SEVERITIES[finding.level],
            "fingerprint": finding.fingerprint,
            "location": {"path": finding.path, "lines": {"begin": finding.line, "end": finding.line}},
        }
        for finding in findings(records, Path.cwd())
    ]
