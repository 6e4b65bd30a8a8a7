"""Diagnoses a measurement: which rules it breaks, where, and the fix."""

from __future__ import annotations

from typing import NamedTuple

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.median import middle
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.model.rules.rule import Finding, Rule


class Unchecked(NamedTuple):
    """A rule that a measurement can't check. why: what is missing."""

    rule: Rule
    why: Reason


def findings(measurement: Measurement) -> list[Finding]:
    """The rules that the measurement breaks, in order of their codes. Empty for a healthy service, and if the
    numbers aren't exact. With several runs, only the run is read whose offenders, slowest wakeups and
    timeline are kept.
    """
    if measurement.unmeasured is not None or measurement.lost:
        return []
    one = middle(measurement.runs) if measurement.runs else measurement
    proven = ((rule, rule.prove(one)) for rule in RULES.values())
    return [Finding(rule, measurement.service, proof) for rule, proof in proven if proof is not None]


def unchecked(measurement: Measurement) -> list[Unchecked]:
    """The rules whose evidence is missing."""
    one = middle(measurement.runs) if measurement.runs else measurement
    missing = ((rule, rule.missing(one)) for rule in RULES.values())
    return [Unchecked(rule, why) for rule, why in missing if why is not None]


def diagnose(measurement: Measurement) -> list[str]:
    """A text for each rule that is broken: "server: what was seen: its cause. Typically … Fix: …"."""
    return [str(finding) for finding in findings(measurement)]
