"""The rules: known ways of wasting wakeups and CPU time, or of answering late, each with a code.

A rule reports nothing unless the measurement proves it. The thresholds lie far from what healthy services
measure, also on a busy machine, and far below what each fault of example_project does.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_netpoll.model.rules import leaks, loops, scheduling, timers, wakeups
from pytest_netpoll.model.rules.rule import Rule

RULES: Mapping[str, Rule] = {
    rule.code: rule for rule in (*wakeups.RULES, *loops.RULES, *timers.RULES, *scheduling.RULES, *leaks.RULES)
}
