"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pytest_netpoll.model import units


def named(command: str, description: str, metavar: str, help: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command that lists things, or shows only those that its arguments name."""
    parser = argparse.ArgumentParser(prog=f"python -m pytest_netpoll {command}", description=description)
    parser.add_argument("named", nargs="*", metavar=metavar, help=help)
    found: list[str] = parser.parse_args(arguments).named
    return found


def positive(text: str) -> int:
    try:
        return units.positive(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def tcp_port(text: str) -> int:
    number = positive(text)
    if number >= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a TCP port")
    return number
