"""`python -m pytest_netpoll compare A B`: compares two saved files, as --netpoll-compare does with a run.

Exit status: 0 nothing regressed by more than --fail tolerates, 1 something did or could not be compared,
2 wrong arguments or files. Without --fail nothing is judged, and the last line says so.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_netpoll.clean import one_line
from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.model import tolerance
from pytest_netpoll.model.comparison import Comparison, Rules, compare
from pytest_netpoll.model.tolerance import Tolerance
from pytest_netpoll.report import baseline_file, tables, wording
from pytest_netpoll.report.cells import wrap
from pytest_netpoll.report.delta import delta_of
from pytest_netpoll.report.record import TestRecord
from pytest_netpoll.report.recording import comparison_record
from pytest_netpoll.report.tables import Compared

PASSED, REGRESSED = 0, 1


def main(arguments: Sequence[str]) -> int:
    """Prints the table, a line for each regression, and the conclusion."""
    options = _parser().parse_args(arguments)
    try:
        then, _ = baseline_file.load_any(options.then)
        now, records = baseline_file.load_any(options.now)
    except NetpollError as error:
        # Exit code 2, because 1 would mean a regression.
        raise UsageError(error.what, why=error.why, fix=error.fix) from None
    rules = Rules(_joined(options.fail), options.latencies)
    comparisons = {
        nodeid: compare(nodeid, now.tests[nodeid], now.environment, then, rules, _limits(records.get(nodeid)))
        for nodeid in sorted(now.tests)
    }
    compared = [
        Compared(nodeid, comparison_record(comparison), now.tests[nodeid])
        for nodeid, comparison in comparisons.items()
    ]
    width = max(60, shutil.get_terminal_size().columns)
    limits = {nodeid: _limits(records.get(nodeid)) for nodeid in now.tests}
    print(_table(compared, limits, width) if compared else f"{options.now} has no tests")
    gone = sorted(then.tests.keys() - now.tests.keys())
    for nodeid in gone:
        print("\n".join(wrap(one_line(f"{nodeid}: only in {then.name}"), width)))
    worse = [
        "\n".join(wrap(f"{one_line(nodeid)}: {wording.clean(reason)}", width))
        for nodeid, comparison in comparisons.items()
        for reason in dict.fromkeys(comparison.reasons)
    ]
    if worse:
        print("\n" + "\n".join(worse))
    code, conclusion = _conclusion(list(comparisons.values()), rules)
    print("", *wrap(conclusion, width), sep="\n")
    return code


def _table(compared: Sequence[Compared], limits: Mapping[str, Mapping[str, int | float]], width: int) -> str:
    if not tables.has_intervals(compared):
        return tables.comparison_table(compared, width)
    changes = delta_of({test.nodeid: (test.comparison, ()) for test in compared}, limits)
    return tables.delta_table(changes, width)


def _limits(record: TestRecord | None) -> Mapping[str, int | float]:
    """The test's limits; empty if the newer file is a baseline, which has none."""
    return record["limits"] if record is not None else {}


def _conclusion(comparisons: Sequence[Comparison], rules: Rules) -> tuple[int, str]:
    """The exit code, and the conclusion in words."""
    outcomes = [comparison.outcome for comparison in comparisons]
    known = [outcome for outcome in outcomes if outcome != "new"]
    if not known:
        code = REGRESSED if rules.tolerances else PASSED
        return code, "Nothing was compared: no test is in both files."
    if not rules.tolerances:
        return PASSED, "Nothing was judged: name what must not regress with --fail=METRIC:TOLERANCE."
    bad = [
        f"{outcomes.count(outcome):,} {words}"
        for outcome, words in (("regressed", "regressed"), ("unmeasured", "could not be compared"))
        if outcome in outcomes
    ]
    tests = "test" if len(known) == 1 else "tests"
    if bad:
        return REGRESSED, f"Of {len(known):,} {tests}, {', '.join(bad)}."
    return PASSED, f"No regressions beyond the tolerance, in {len(known):,} {tests}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_netpoll compare",
        description="Compare two files of --netpoll-json or --netpoll-save, test by test.",
        epilog="Exit status: 0 nothing regressed by more than --fail tolerates (without --fail nothing is "
        "judged); 1 something did, or what --fail names could not be compared; "
        "2 wrong arguments, or a file that can't be read.",
    )
    parser.add_argument("then", type=Path, metavar="A", help="the older file")
    parser.add_argument("now", type=Path, metavar="B", help="the newer file")
    parser.add_argument(
        "--fail",
        type=_tolerances,
        action="append",
        default=[],
        metavar="METRIC:TOLERANCE[,...]",
        help="fail if a test regresses by more than TOLERANCE, as with --netpoll-compare-fail",
    )
    parser.add_argument(
        "--latencies",
        choices=("auto", "always"),
        default="auto",
        help="auto: compare timings only if both were measured in the same environment",
    )
    return parser


def _tolerances(text: str) -> tuple[Tolerance, ...]:
    try:
        return tolerance.parse_list(text)
    except ValueError as error:
        # argparse drops the text of a ValueError.
        raise argparse.ArgumentTypeError(str(error)) from None


def _joined(lists: Sequence[Sequence[Tolerance]]) -> tuple[Tolerance, ...]:
    try:
        return tolerance.join(lists)
    except ValueError as error:
        raise UsageError(f"--fail: {error}") from None
