"""`python -m pytest_netpoll COMMAND …`"""

from __future__ import annotations

import difflib
import errno
import os
import shlex
import sys
from collections.abc import Sequence

from pytest_netpoll.cli.commands import COMMANDS
from pytest_netpoll.cli.lines import DOCS
from pytest_netpoll.errors import NetpollError, UsageError
from pytest_netpoll.meter.privilege import AS_ROOT

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str]) -> int:
    """The exit code: the command's own, 1 if it failed, 2 for wrong arguments or unreadable files."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        asked_for_help = list(arguments[:1]) in (["-h"], ["--help"])
        stream = sys.stdout if asked_for_help else sys.stderr
        if arguments and not asked_for_help:
            close = difflib.get_close_matches(arguments[0], COMMANDS, n=1, cutoff=0.5)
            meant = f", did you mean {close[0]!r}?" if close else ""
            print(f"no command {arguments[0]!r}{meant}\n", file=stream)
        print("usage: python -m pytest_netpoll COMMAND [...]\n", file=stream)
        for name, known in COMMANDS.items():
            print(f"  {name:<15}{known.help}", file=stream)
        print(f"\nCOMMAND --help explains its options. More:\n  {DOCS}/commands.md", file=stream)
        return 0 if asked_for_help else USAGE_ERROR
    try:
        return command.run(arguments[1:])
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # Nobody reads the output any more (`| head`, a closed terminal). Python would complain again as it
        # exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except NetpollError as error:
        print(_for_command(error, arguments), file=sys.stderr)
        return USAGE_ERROR if isinstance(error, UsageError) else FAILED


def _for_command(error: NetpollError, arguments: Sequence[str]) -> str:
    """The error with a fix that runs this command as root, where it says to run pytest so."""
    command = f"-m pytest_netpoll {shlex.join(arguments)}"
    fix = error.fix
    if fix is not None:
        fix = fix.replace("run pytest as root", f"run it as root: {AS_ROOT} {command}")
        fix = fix.replace("-m pytest …", command)
    return str(NetpollError(error.what, why=error.why, fix=fix, detail=error.detail))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
