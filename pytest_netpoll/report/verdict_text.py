"""Why a test failed or is unmeasured: broken limits and rules, reasons and fixes."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from pytest_netpoll.clean import one_line
from pytest_netpoll.errors import Reason
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.report import wording
from pytest_netpoll.report.record import (
    BreachRecord,
    RegressionRecord,
    RuleRecord,
    ServiceRecord,
    TestRecord,
)


def breach_text(breach: BreachRecord | RegressionRecord) -> str:
    """ "server: spurious 50.0 % (1,999 of 3,998 wakeups) > max 5.0 %"."""
    if "baseline" in breach:
        return breach["text"]
    return breach.get("text") or (
        f"{breach['service']}: {breach['metric']} {breach['measured']}, limit {breach['limit']}"
    )


def reasons(record: TestRecord) -> list[Reason]:
    """For each death, each broken limit and each thing not measured; not the test's own error."""
    given = [] if record.get("error") is not None else _given(record)
    dead = [
        Reason(f"{death['service']}: {death['how']}", fix=death.get("fix"))
        for death in record.get("deaths", [])
    ]
    found = [*dead, *map(_breach_reason, wording.broken(record)), *_of_windows(record), *given]
    return [wording.clean(reason) for reason in dict.fromkeys(found)]


def broken_rules(record: TestRecord, services: Container[str] | None = None) -> list[Reason]:
    """The reasons that are forbidden rules: pytest's message has these without their evidence. services: the
    names of those that they are about; None for all.
    """
    faults = [fault for fault in wording.broken(record) if fault["metric"] in RULES]
    faults = [fault for fault in faults if services is None or fault["service"] in services]
    found = [*map(_breach_reason, faults), *_of_windows(record, only_rules=True, services=services)]
    return [wording.clean(reason) for reason in dict.fromkeys(found)]


def proofs(record: TestRecord) -> list[Reason]:
    """What was seen of each forbidden rule that is broken: pytest's message has only its place and fix."""
    about = [
        (f"{wording.name_of(window)}, ", window["services"]) for window in wording.broken_windows(record)
    ]
    found = [
        Reason(f"{where}{service['name']}: {rule['code']} {rule['name']}", why=rule["text"])
        for where, services in [("", record["services"]), *about]
        for service in services
        for rule in service.get("rules", [])
        if rule["forbidden"]
    ]
    return [wording.clean(reason) for reason in dict.fromkeys(found)]


def _of_windows(
    record: TestRecord, only_rules: bool = False, services: Container[str] | None = None
) -> list[Reason]:
    return [
        Reason(f"{wording.name_of(window)}, {reason.what}", fix=reason.fix)
        for window in wording.broken_windows(record)
        for breach in window["breaches"]
        if not only_rules or breach["metric"] in RULES
        if services is None or breach["service"] in services
        for reason in [_breach_reason(breach)]
    ]


def _breach_reason(fault: BreachRecord | RegressionRecord) -> Reason:
    fix = None if "baseline" in fault else fault.get("fix")
    return Reason(breach_text(fault), fix=fix)


def unmeasured_reason(service: ServiceRecord) -> Reason | None:
    """Why none of its numbers is exact; None if they are."""
    parts, text = service.get("why_unmeasured"), service.get("unmeasured")
    if parts is not None:
        return wording.reason_of(parts)
    return None if text is None else Reason(text)


def _given(record: TestRecord) -> list[Reason]:
    if "reasons" in record:
        return list(map(wording.reason_of, record["reasons"]))
    # An older file has only the text.
    return list(map(Reason, (record["reason"] or "").splitlines()))


def diagnosis_of(record: TestRecord, services: Container[str] | None = None) -> list[Reason]:
    """The diagnosis of the failure, without services that kept their limits. services: the names of those
    that it is about; None for all.
    """
    faulty = {fault["service"] for fault in wording.broken(record)}
    windows = wording.broken_windows(record)

    def wanted(among: Iterable[ServiceRecord]) -> list[ServiceRecord]:
        return [service for service in among if services is None or service["name"] in services]

    own = wanted(record["services"] if faulty or not windows else [])
    found = [rule for s in own if not faulty or s["name"] in faulty for rule in rule_reasons(s)]
    for window in windows or wording.windows_behind(record)[:1]:
        for rule in (rule for service in wanted(window["services"]) for rule in rule_reasons(service)):
            found.append(Reason(f"{wording.name_of(window)}, {rule.what}", why=rule.why, fix=rule.fix))
    return found


def in_a_line(rule: Reason) -> str:
    """A rule's reason as part of a text."""
    return f"{rule.headline} Fix: {rule.fix}"


def all_rule_texts(record: TestRecord) -> list[str]:
    """The diagnosis of all services of a test, without what is among its reasons already; an older file,
    without rules' codes, has only the text.
    """
    if not any("rules" in service for service in record["services"]):
        return record.get("diagnosis", [])
    return [in_a_line(rule) for service in record["services"] for rule in rule_reasons(service)]


def rule_reasons(service: ServiceRecord) -> list[Reason]:
    """A reason for each rule that the service breaks, without those that are among the test's reasons
    already.
    """
    return [
        wording.clean(Reason(f"{service['name']}: {_rule_at(rule)}", why=rule["text"], fix=rule["fix"]))
        for rule in service.get("rules", [])
        if not rule["forbidden"]
    ]


def _rule_at(rule: RuleRecord) -> str:
    """ "NP101 second-reader at server/fault_dup.go:33"."""
    return f"{rule['code']} {rule['name']}" + (f" at {rule['line']}" if rule["line"] else "")


def unchecked_rules(records: Iterable[TestRecord]) -> list[Reason]:
    """ "NP302 deadline-churn was not checked in 3 tests: ready calls were not counted": one for all rules and
    tests for which the same was missing, of whichever process.
    """
    first: dict[tuple[str, str], Reason] = {}
    tests: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        for service in wording.all_services([record]):
            for rule in service.get("unchecked", []):
                why = wording.clean(wording.reason_of(rule))
                missing = (one_line(f"{rule['code']} {rule['name']}"), _WHOSE.sub("", why))
                first.setdefault(missing, why)
                tests.setdefault(missing, {})[record["nodeid"]] = None
    together: dict[tuple[str, tuple[str, ...]], list[tuple[str, str]]] = {}
    for missing, nodeids in tests.items():
        together.setdefault((missing[1], tuple(nodeids)), []).append(missing)
    found = []
    for (_, affected), rules in together.items():
        where = one_line(affected[0]) if len(affected) == 1 else f"{len(affected):,} tests"
        names = [name for name, _ in rules]
        were = "was" if len(names) == 1 else "were"
        found.append(first[rules[0]].about(f"{wording.enumerated(names)} {were} not checked in {where}"))
    return found


# What differs between processes of which the same is missing.
_WHOSE = re.compile(r"\bprocess \d+|(?<= )/\S+")
