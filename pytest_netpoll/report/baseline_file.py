"""Baseline files, .netpoll/NAME.json: each test's metrics, to be committed and compared with later."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from pytest_netpoll.errors import NetpollError, Reason
from pytest_netpoll.model.comparison import ENVIRONMENT_KEYS, Baseline, changes
from pytest_netpoll.model.metrics import METRICS, Value, not_exact
from pytest_netpoll.model.sample import ESTIMATE, Sample, without
from pytest_netpoll.report import files, json_report
from pytest_netpoll.report.record import ServiceRecord, TestRecord, plain
from pytest_netpoll.report.verdict_text import unmeasured_reason
from pytest_netpoll.report.wording import estimates, trusted

SCHEMA = "pytest-netpoll-baseline/1"
DIRECTORY = ".netpoll"
# Insignificant digits would only make diffs of a committed file harder to read.
_DIGITS = 6
# Nobody makes more rounds: a file that claims more is damaged.
_MOST_ROUNDS = 1000


class _ServiceExtra(TypedDict, total=False):
    rounds: int
    values: dict[str, list[int | float | None]]


class _Service(_ServiceExtra):
    """A service in the file. metrics: medians if there were several rounds. values: of each round, for
    metrics that differed between rounds.
    """

    go_version: str | None
    gomaxprocs: int | None
    metrics: dict[str, int | float | None]


class _File(TypedDict):
    schema: str
    environment: dict[str, Any]
    tests: dict[str, dict[str, _Service]]


def path_of(rootdir: Path, name: str) -> Path:
    return rootdir / DIRECTORY / f"{name}.json"


def write(path: Path, environment: Mapping[str, Any], records: Iterable[TestRecord]) -> list[str]:
    """Writes the file, the same bytes for the same numbers. NetpollError if that fails. If a test has several
    records, the last one counts. Unmeasured numbers, and tests whose own assertion failed, are left out.
    Tests that did not run or are left out stay in the file as they were, if they were measured in the same
    environment: a file has only one. Returns a line for each thing that people may not expect.
    """
    here = {key: environment.get(key) for key in ENVIRONMENT_KEYS}
    tests: dict[str, dict[str, _Service]] = {}
    left_out = []
    for record in sorted(records, key=lambda record: record["nodeid"]):
        if record.get("windows") and not record["services"]:
            continue  # no marker: only parts of it were measured
        services = {service["name"]: _entry(service) for service in record["services"] if trusted(service)}
        if not services or record.get("error") is not None:
            left_out.append(record["nodeid"])
        else:
            tests[record["nodeid"]] = dict(sorted(services.items()))
    left_out = [nodeid for nodeid in left_out if nodeid not in tests]
    lines = []
    try:
        former = _former(path)
    except NetpollError as error:
        former = {"schema": SCHEMA, "environment": here, "tests": {}}
        lines.append(f"its former content is lost: {error.why}")
    old = {nodeid: services for nodeid, services in former["tests"].items() if nodeid not in tests}
    elsewhere = changes({key: (former["environment"].get(key), now) for key, now in here.items()})
    if not elsewhere:
        tests |= old
    for nodeid in left_out:
        how = "keeps its old entry" if nodeid in tests else "is not in it"
        lines.append(f"{nodeid} {how}: its own assertion failed, or it is unmeasured")
    not_run = len(old.keys() - set(left_out))
    if not_run and elsewhere:
        lines.append(
            f"{not_run:,} of its tests did not run and are dropped: they were measured elsewhere "
            f"({', '.join(elsewhere)})"
        )
    elif not_run:
        lines.append(f"kept {not_run:,} tests that did not run; delete the file to drop them")
    revision = {key: environment.get(key) for key in ("commit", "branch") if environment.get(key)}
    content: _File = {"schema": SCHEMA, "environment": here | revision, "tests": dict(sorted(tests.items()))}
    text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    # Puts the values of one metric on one line. (JSON strings contain no such line break.)
    text = re.sub(r"\[\n\s+([-+.,0-9e\s]+?)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    files.write_atomically(path, f"{text}\n", "the baseline")
    return lines


def _former(path: Path) -> _File:
    """The file's content; no tests if there is no file. NetpollError if it can't be read."""
    if not path.is_file():
        return {"schema": SCHEMA, "environment": {}, "tests": {}}
    what = f"the baseline {path} could not be read"
    return cast("_File", json_report.read(path, {SCHEMA: _File}, what, f"delete it: rm {path}"))


def load(rootdir: Path, name: str) -> Baseline:
    """The baseline of that name; NetpollError says how to make one."""
    path = path_of(rootdir, name)
    fix = f"pytest --netpoll-save={name}"
    if not path.exists():
        raise NetpollError(f"there is no baseline {name!r}", why=f"{path} does not exist", fix=fix)
    what = f"the baseline {path} could not be read"
    return _baseline(name, json_report.read(path, {SCHEMA: _File}, what, fix), what, fix)


def load_any(path: Path) -> tuple[Baseline, dict[str, TestRecord]]:
    """Loads a baseline file or a JSON report as a baseline named after the file; for a report, also its
    records.
    """
    what = f"{path} could not be read"
    fix = f"write one: pytest --netpoll-json={path}"
    schemas = {json_report.SCHEMA: json_report.Report, SCHEMA: _File}
    content = json_report.read(path, schemas, what, fix)
    if content["schema"] == SCHEMA:
        return _baseline(path.name, content, what, fix), {}
    records: dict[str, TestRecord] = {record["nodeid"]: record for record in content["tests"]}
    tests = {
        nodeid: {service["name"]: sample(service) for service in record["services"]}
        for nodeid, record in records.items()
    }
    return Baseline(path.name, content["environment"], tests), records


def sample(service: ServiceRecord) -> Sample:
    """A service of a report as a Sample, for comparisons."""
    unmeasured = unmeasured_reason(service)
    if unmeasured is None and not trusted(service):
        unmeasured = Reason(not_exact(service["metrics"].get("lost")))
    runs = service.get("runs", {})
    count = min(map(len, runs.values()), default=0)
    rounds = tuple(
        Sample(without({name: values[i] for name, values in runs.items()}, estimates(service)))
        for i in range(count)
    )
    metrics = without(service["metrics"], estimates(service))
    absent = dict.fromkeys(estimates(service), ESTIMATE)
    return Sample(metrics, service["go_version"], service.get("gomaxprocs"), unmeasured, absent, rounds)


def _baseline(name: str, content: Mapping[str, Any], what: str, fix: str) -> Baseline:
    """Parses the file. NetpollError(what, fix) if its rounds don't fit together."""
    tests: dict[str, dict[str, Sample]] = {}
    for nodeid, services in content["tests"].items():
        samples = tests[nodeid] = {}
        for service, entry in services.items():
            count, values = entry.get("rounds", 1), entry.get("values", {})
            if not 1 <= count <= _MOST_ROUNDS or any(len(each) != count for each in values.values()):
                why = f"tests.{nodeid}.{service}: its values are not those of {count} rounds"
                raise NetpollError(what, why=why, fix=fix)
            rounds = (
                Sample({**entry["metrics"], **{metric: each[i] for metric, each in values.items()}})
                for i in range(count if count > 1 else 0)
            )
            samples[service] = Sample(
                entry["metrics"], entry["go_version"], entry["gomaxprocs"], rounds=tuple(rounds)
            )
    return Baseline(name, content["environment"], tests)


def _entry(service: ServiceRecord) -> _Service:
    metrics = without(service["metrics"], estimates(service))
    entry: _Service = {
        "go_version": service["go_version"],
        "gomaxprocs": service.get("gomaxprocs"),
        # Unmeasured metrics are absent.
        "metrics": {name: _rounded(metrics[name]) for name in METRICS if metrics.get(name) is not None},
    }
    runs = service.get("runs", {})
    if runs:
        entry["rounds"] = max(map(len, runs.values()))
        values = {name: [_rounded(value) for value in runs[name]] for name in entry["metrics"]}
        entry["values"] = {name: each for name, each in values.items() if len(set(each)) > 1}
    return entry


def _rounded(value: Value) -> Value:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
