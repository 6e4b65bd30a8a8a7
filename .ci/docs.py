"""Writes what is made from the code: README.md's metric table, and the JSON Schema. Run by `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

import json_schema

from pytest_netpoll.model.metrics import markdown_table

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- begin metrics: written by `make docs` -->\n", "<!-- end metrics -->\n"


def generated(text: str) -> str:
    """The README with the table as it should be."""
    part = re.compile(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", re.DOTALL)
    found, count = part.subn(lambda _: f"{markdown_table()}\n", text)
    if count != 1:
        raise SystemExit(f"{README}: expected one {BEGIN.strip()} … {END.strip()}, found {count}")
    return found


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
    json_schema.FILE.write_text(json_schema.text())
