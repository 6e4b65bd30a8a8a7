"""The subcommands of `python -m pytest_netpoll`, each imported only when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """module: has main(arguments) -> exit code."""

    module: str
    help: str

    def run(self, arguments: Sequence[str]) -> int:
        main: Callable[[Sequence[str]], int] = importlib.import_module(self.module).main
        return main(arguments)


COMMANDS = {
    "compare": Command("pytest_netpoll.cli.compare", "compare two saved reports or baselines"),
    "doctor": Command(
        "pytest_netpoll.cli.doctor", "check if this machine can measure, and how to fix it if not"
    ),
    "dump": Command(
        "pytest_netpoll.cli.dump", "show where a Go process's goroutines are parked on descriptors"
    ),
    "export": Command("pytest_netpoll.cli.export", "write a JSON report in the format of another tool"),
    "install-agent": Command(
        "pytest_netpoll.cli.install_agent",
        "install the agent for users without root, who start it by sudo",
    ),
    "metrics": Command(
        "pytest_netpoll.cli.list_metrics", "list the metrics that a test can limit, or explain some"
    ),
    "rules": Command("pytest_netpoll.cli.rules", "list the rules that a test can forbid, or explain some"),
    "schema": Command("pytest_netpoll.cli.print_schema", "print the JSON Schema of the JSON report"),
    "watch": Command("pytest_netpoll.cli.watch.app", "watch a running Go process, or a command, live"),
}
