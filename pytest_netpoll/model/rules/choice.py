"""Reads the rules that a text names: "all", "NP1,NP201", "second-reader"."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import NamedTuple

from pytest_netpoll.model.rules import RULES, beyond

ALL = "all"


class Choice(NamedTuple):
    """One rule that was named. breadth: 0 by its own name or code, 1 by its family's, 2 by "all"."""

    code: str
    breadth: int


def parse(text: str) -> list[Choice]:
    """The choices in the text. Raises ValueError that says what is wrong and what may be meant."""
    found = [choice for word in text.split(",") for choice in _named(word.strip())]
    if not found:
        raise ValueError("it names no rule")
    return found


def _named(word: str) -> Iterator[Choice]:
    if not word:
        return
    given = word.lower()
    if given == ALL:
        yield from (Choice(code, 2) for code in RULES)
        return
    exact = [rule.code for rule in RULES.values() if given in (rule.code.lower(), rule.name.lower())]
    family = [code for code in RULES if code.lower().startswith(given)] if given.startswith("np") else []
    if not exact and not family:
        raise ValueError(_unknown(word))
    yield from (Choice(code, 0) for code in exact)
    if not exact:
        yield from (Choice(code, 1) for code in family)


def _unknown(word: str) -> str:
    known = {name.lower(): name for rule in RULES.values() for name in (rule.code, rule.name)} | {ALL: ALL}
    close = [known[name] for name in difflib.get_close_matches(word.lower(), known, n=2, cutoff=0.7)]
    # Users may remember only some words of a name, or look for what has another name.
    hint = beyond.about(word) if not close else None
    if hint is not None:
        return f"no rule {word!r}; {hint}"
    close += [r.name for r in RULES.values() if word.lower() in r.name.lower() and r.name not in close]
    return f"no rule {word!r}" + (f", did you mean {' or '.join(map(repr, close[:3]))}?" if close else "")
