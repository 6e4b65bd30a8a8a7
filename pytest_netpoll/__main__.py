"""python -m pytest_netpoll COMMAND …: what is done outside a test run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from pytest_netpoll.errors import NetpollError, UsageError

# command -> (the module whose main(argv) it is, imported when asked for; what it does)
COMMANDS = {
    "install-agent": ("pytest_netpoll.install", "put a copy of the agent where sudo may start it"),
}

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where the command failed, 2 where it was not understood."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage())
        return OK
    if not arguments or arguments[0] not in COMMANDS:
        given = f"unknown command {arguments[0]!r}\n\n" if arguments else ""
        print(given + usage(), file=sys.stderr)
        return USAGE
    module, _ = COMMANDS[arguments[0]]
    try:
        status: int = importlib.import_module(module).main(arguments[1:])
    except KeyboardInterrupt:
        return INTERRUPTED
    except NetpollError as error:
        print(f"pytest_netpoll {arguments[0]}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    return status


def usage() -> str:
    lines = [f"  {name:13} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: python -m pytest_netpoll COMMAND …", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
