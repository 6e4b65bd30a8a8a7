"""Lists what is wrong, one by one, for linters' formats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pytest_netpoll.model.rules import RULES
from pytest_netpoll.report import evidence_entries, verdict_text, wording
from pytest_netpoll.report.checkout import Checkout
from pytest_netpoll.report.record import TestRecord

Level: TypeAlias = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """rule: a rule's code, or what was broken, such as "max_spurious". about: the rule's description. path,
    line: the Go line if there is one, else the test's, in the checkout.
    """

    rule: str
    about: str
    level: Level
    message: str
    nodeid: str
    service: str
    path: str
    line: int

    @property
    def fingerprint(self) -> str:
        """The same for the same fault, even if its line or numbers change."""
        text = "\0".join((self.rule, self.nodeid, self.service, self.path))
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]


def findings(records: Iterable[TestRecord], rootdir: Path) -> list[Finding]:
    """The findings of all tests, worst first, each once. rootdir: pytest's, which files are relative to."""
    checkout = Checkout(rootdir, rootdir)
    found = [finding for record in wording.worst_first(records) for finding in _of_test(record, checkout)]
    return list({finding.fingerprint: finding for finding in reversed(found)}.values())[::-1]


def _of_test(record: TestRecord, checkout: Checkout) -> Iterator[Finding]:
    if wording.expected(record):
        return
    nodeid = record["nodeid"]
    at_test = (record.get("file") or nodeid.partition("::")[0], max(1, record.get("line") or 1))
    lines = _worst_lines(record, checkout)

    def finding(
        rule: str, about: str, level: Level, message: str, service: str, at: tuple[str, int]
    ) -> Finding:
        return Finding(rule, about, level, wording.one_line(f"{message} ({nodeid})"), nodeid, service, *at)

    level: Level = "error" if "failed" in (record["outcome"], record.get("gate")) else "warning"
    alone = [record, *(wording.of_window(record, window) for window in wording.broken_windows(record))]
    for own, breach in ((_worst_lines(one, checkout), breach) for one in alone for breach in one["breaches"]):
        kind, metric = breach.get("kind", "max"), breach["metric"]
        if metric in RULES:
            continue  # below, with its fix
        about = f"the limit {kind}_{metric} of a test was broken"
        text = breach.get("text") or f"{breach['service']}: {metric}"
        at = own.get(breach["service"], at_test)
        yield finding(f"{kind}_{metric}", about, level, text, breach["service"], at)
    for regression in wording.regressions(record):
        metric = regression["metric"]
        about = f"{metric} regressed from the base or baseline beyond its tolerance"
        service = regression["service"]
        at = lines.get(service, at_test)
        yield finding(f"regressed_{metric}", about, level, regression["text"], service, at)
    for death in record.get("deaths", []):
        about, service = "a service ended without being stopped", death["service"]
        at = lines.get(service, at_test)
        yield finding("service_ended", about, "error", f"{service}: {death['how']}", service, at)
    if record["outcome"] == "unmeasured":
        said = "; ".join(reason.headline for reason in verdict_text.reasons(record)) or "unmeasured"
        yield finding("unmeasured", "a test could not be measured", "warning", said, "", at_test)
    for own, measured in ((_worst_lines(one, checkout), m) for one in alone for m in one["services"]):
        name = measured["name"]
        for rule in measured.get("rules", []):
            file, _, line = (rule["line"] or "").rpartition(":")
            path = checkout.find(file) if file and line.isascii() and line.isdecimal() else None
            at = own.get(name, at_test) if path is None else (path.as_posix(), int(line))
            # Forbidden rules are why the test failed.
            severity = level if rule["forbidden"] else "warning"
            text = f"{name}: {rule['text'].removesuffix('.')}. Fix: {rule['fix']}"
            about = RULES[rule["code"]].meaning if rule["code"] in RULES else rule["name"]
            yield finding(rule["code"], about, severity, text, name, at)


def _worst_lines(record: TestRecord, checkout: Checkout) -> dict[str, tuple[str, int]]:
    """Service -> its worst Go line in the checkout."""
    found: dict[str, tuple[str, int]] = {}
    for evidence in evidence_entries.worst_places(record):
        for frame in evidence.stack:
            path = checkout.find(frame["file"] or "")
            if path is not None and frame["line"]:
                found[evidence.service] = (path.as_posix(), frame["line"])
                break
    return found
