"""Attaches the pytest-netpoll of another checkout to running processes, until standard input ends.

python before.py CHECKOUT auto|off PID...: started by rows.py. It imports the checkout's own modules; its
benchmark must have our row.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(checkout: str, goready: str, *pids: str) -> None:
    here = Path(__file__).parent
    sys.path[:] = [checkout, f"{checkout}/tests/bench", *(p for p in sys.path if Path(p).resolve() != here)]
    rows = importlib.import_module("rows")
    with tempfile.TemporaryDirectory() as scratch:
        factory = _factory()(rootdir=Path(checkout), cache_dir=Path(scratch))
        services = [factory(pid=int(pid)) for pid in pids]
        try:
            with rows.ours(goready, services) as attached:
                print(json.dumps({"pid": attached.pid}), flush=True)
                sys.stdin.read()
        except rows.RowError as error:
            sys.exit(str(error))
        print(json.dumps({"seen": attached.seen, "figures": attached.figures}), flush=True)


def _factory() -> Any:
    """The checkout's ServiceFactory; older checkouts have it elsewhere."""
    for module in ("service.factory", "service.service"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"pytest_netpoll.{module}").ServiceFactory
    return importlib.import_module("pytest_netpoll.service").ServiceFactory


if __name__ == "__main__":
    main(*sys.argv[1:])
