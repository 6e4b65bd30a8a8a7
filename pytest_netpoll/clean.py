"""Makes text from outside safe to print: file names, Go functions, test ids, a service's output.

It may hold anything: newlines that start a line of their own, escapes that control a terminal, characters
that XML forbids, commands to GitHub's or Azure's runner. Every report shows such text through `one_line`, or
through `lines` if it has several.
"""

from __future__ import annotations

import re

# A runner obeys a log line that starts with "::name", and "##[name" anywhere in a line.
_COMMAND = re.compile(r"(?<!\S)::+(?=\S)|##(?=\[)")
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def one_line(text: str) -> str:
    """`text` on one line, with blanks in place of unprintable characters; commands are broken up."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return _COMMAND.sub(lambda match: " ".join(match[0]), text).strip()


def lines(text: str) -> str:
    """As `one_line`, for each line of a text; keeps the indentation, drops colours."""
    cleaned = []
    for line in _ESCAPE.sub("", text).splitlines():
        line = line.expandtabs()
        blanks = len(line) - len(line.lstrip(" "))
        cleaned.append((line[:blanks] + one_line(line)).rstrip())
    return "\n".join(cleaned).rstrip("\n")
