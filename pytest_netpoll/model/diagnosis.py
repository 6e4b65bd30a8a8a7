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
    numbers aren't exact. Of several runs, at least half have to break a rule. Its proof is that of the run
    whose offenders, slowest wakeups and timeline are kept, if that run breaks it.
    """
    if measurement.unmeasured is not None or measurement.lost:
        return []
    runs = _runs(measurement)
    found: list[Finding] = []
    for rule in RULES.values():
        proofs = [proof for run in runs if (proof := rule.prove(run)) is not None]
        if proofs and 2 * len(proofs) >= len(runs):
            found.append(Finding(rule, measurement.service, proofs[0]))
    return found


def unchecked(measurement: Measurement) -> list[Unchecked]:
    """The rules whose evidence is missing, in any of several runs."""
    found: list[Unchecked] = []
    for rule in RULES.values():
        missing = [why for run in _runs(measurement) if (why := rule.missing(run)) is not None]
        if missing:
            found.append(Unchecked(rule, missing[0]))
    return found


def _runs(measurement: Measurement) -> list[Measurement]:
    """The runs, the one whose evidence is kept first."""
    if not measurement.runs:
        return [measurement]
    kept = middle(measurement.runs)
    return sorted(measurement.runs, key=lambda run: run is not kept)


def diagnose(measurement: Measurement) -> list[str]:
    """A text for each rule that is broken: "server: what was seen: its cause. Typically … Fix: …"."""
    return [str(finding) for finding in findings(measurement)]
