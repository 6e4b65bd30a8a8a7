"""`python -m pytest_netpoll rules [RULE …]`: explains the rules that a test can forbid."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from pytest_netpoll.cli.arguments import named
from pytest_netpoll.cli.lines import DOCS, print_rows, say
from pytest_netpoll.errors import UsageError
from pytest_netpoll.model.rules import RULES, beyond, choice
from pytest_netpoll.model.rules.rule import Rule

_TO_FORBID = 'To forbid them: @pytest.mark.netpoll(forbid="all"), or netpoll_forbid = all in the ini file.'


def main(arguments: Sequence[str]) -> int:
    names = named(
        "rules",
        "List the rules that a test can forbid, or explain some of them.",
        "RULE",
        'a code, the beginning of one, or a name: "NP201", "NP2", "busy-loop"; "all" for all',
        arguments,
    )
    if not names:
        rows = [(rule.code, rule.name, rule.meaning) for rule in RULES.values()]
        print_rows(rows)
        for text in (_TO_FORBID, f"{beyond.NO_RULE} More: {DOCS}/{beyond.PAGE}"):
            say(f"\n{text}")
        return 0
    try:
        codes = sorted({chosen.code for name in names for chosen in choice.parse(name)})
    except ValueError as error:
        raise UsageError(str(error), fix="see the list: python -m pytest_netpoll rules") from None
    width = min(shutil.get_terminal_size().columns, 100)
    print("\n\n".join(explanation(RULES[code], width) for code in codes))
    return 0


def explanation(rule: Rule, width: int) -> str:
    """Explains a rule, in lines not wider than `width`."""
    parts = {
        "evidence": rule.evidence,
        "example": rule.example,
        "looks alike": rule.alike,
        "fix": rule.fix,
        "forbid": f'@pytest.mark.netpoll(forbid="{rule.code}") or forbid="{rule.name}"',
    }
    lines = [str(rule), *textwrap.wrap(rule.meaning, width)]
    for name, text in parts.items():
        lines += ["", *textwrap.wrap(f"{name}: {text}", width, subsequent_indent="  ")]
    return "\n".join(lines)
