"""`python -m pytest_netpoll export FILE --format …`: converts a JSON report for other tools.

Run it in the directory where pytest ran: files are named relative to it. Exit codes: 0 it was written, 2
wrong arguments or file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_netpoll.cli.lines import Help
from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.report import delta, files, github, json_report
from pytest_netpoll.report.export.benchmarks import bencher, github_action_benchmark
from pytest_netpoll.report.export.linters import code_climate, sarif
from pytest_netpoll.report.record import TestRecord


def _markdown(records: Sequence[TestRecord], environment: Mapping[str, Any]) -> str:
    """What changed, if the run compared; else the table of the step summary."""
    if any(record.get("comparison") for record in records):
        return delta.markdown(records, environment)
    return github.markdown(records, environment)


FORMATS: Mapping[str, Callable[[Sequence[TestRecord], Mapping[str, Any]], Any]] = {
    "markdown": _markdown,
    "github-action-benchmark": github_action_benchmark,
    "bencher": bencher,
    "sarif": sarif,
    "code-climate": code_climate,
}


def main(arguments: Sequence[str]) -> int:
    """Prints the export, or writes it to the file of --output."""
    options = _parser().parse_args(arguments)
    fix = f"write one: pytest --netpoll-json={options.file}"
    what = f"{options.file} could not be read"
    try:
        report = json_report.read(options.file, {json_report.SCHEMA: json_report.Report}, what, fix)
        made = FORMATS[options.format](report["tests"], report["environment"])
        text = made if isinstance(made, str) else json.dumps(made, indent=1, allow_nan=False) + "\n"
        if options.output is None:
            print(text, end="")
        else:
            files.write_atomically(options.output, text, f"the {options.format} report")
    except NetpollError as error:
        raise UsageError(error.what, why=error.why, fix=error.fix) from None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_netpoll export",
        description="Write a report of --netpoll-json in the format of another tool.",
        formatter_class=Help,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the JSON report")
    parser.add_argument(
        "--format",
        required=True,
        choices=list(FORMATS),
        metavar="FORMAT",
        help="what changed, for a comment (markdown); numbers for charts (github-action-benchmark's "
        "customSmallerIsBetter, bencher's JSON adapter); findings by line (sarif; code-climate for GitLab)",
    )
    parser.add_argument("--output", type=Path, metavar="OUT", help="write to OUT instead of stdout")
    return parser
