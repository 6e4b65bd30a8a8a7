"""python -m pytest_netpoll schema: prints the JSON Schema of what --netpoll-json writes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import resources


def main(argv: Sequence[str]) -> int:
    """The exit status: 0."""
    argparse.ArgumentParser(
        prog="python -m pytest_netpoll schema",
        description="Print the JSON Schema of the report that --netpoll-json writes.",
    ).parse_args(argv)
    print(resources.files("pytest_netpoll.report").joinpath("schema/report.json").read_text("utf-8"), end="")
    return 0
