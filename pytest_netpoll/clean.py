"""What comes from outside, made fit to be shown: file names, Go functions, test ids, what a service prints.

It may hold anything: newlines that make a line of their own of what follows, escapes that steer a terminal,
characters that XML forbids, commands to GitHub's or Azure's runner. Every report shows such text through
`one_line`, or `lines` where it has several.
"""

from __future__ import annotations

import re

# A runner obeys a line of the log that starts with "::name", and "##[name" wherever it stands.
_COMMAND = re.compile(r"(?<!\S)::+(?=\S)|##(?=\[)")
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def one_line(text: str) -> str:
    """`text` on one line, with a blank in place of all that is not printable; commands are broken up."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return _COMMAND.sub(lambda match: " ".join(match[0]), text).strip()


def lines(text: str) -> str:
    """The same for each line of a text, which keeps its indentation and loses its colours."""
    cleaned = []
    for line in _ESCAPE.sub("", text).splitlines():
        line = line.expandtabs()
        blanks = len(line) - len(line.lstrip(" "))
        cleaned.append((line[:blanks] + one_line(line)).rstrip())
    return "\n".join(cleaned).rstrip("\n")
