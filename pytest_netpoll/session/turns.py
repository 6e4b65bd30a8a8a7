"""--netpoll-against: each test is measured in turns on the checkout's services and on those of a revision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_netpoll.errors import Reason, UsageError
from pytest_netpoll.model.against import Plan, compare_rounds, not_compared, settled, unsteady
from pytest_netpoll.model.comparison import Comparison
from pytest_netpoll.model.limits import Limits
from pytest_netpoll.model.sample import samples_of
from pytest_netpoll.options import ROUNDS, Config
from pytest_netpoll.service.patience import Say
from pytest_netpoll.service.service import Service
from pytest_netpoll.service.worktree import Revision, Worktree
from pytest_netpoll.session import renewal
from pytest_netpoll.session.attribution import services_in
from pytest_netpoll.session.marked import fixtures_of
from pytest_netpoll.session.trial import Traffic, Trial

# The share of traffic that may go to the wrong side: a service also makes some traffic itself.
_ASTRAY = 0.5


def check(options: Config) -> None:
    """UsageError for options that contradict each other."""
    if options.against is not None and options.compare is not None:
        raise UsageError(
            "--netpoll-against and --netpoll-compare can't be combined",
            why="a test has one comparison: with a revision measured now, or with a saved baseline",
            fix="leave one of them out; of the ini file's: -o netpoll_compare=",
        )


class Base:
    """The base to compare with. UsageError if there is no such revision."""

    def __init__(self, options: Config, directory: Path, say: Say) -> None:
        assert options.against is not None
        self.revision = Revision(options.against, directory)
        self.worktree = Worktree(self.revision, say)
        self._options = options

    def compare(self, item: pytest.Item, trial: Trial, limits: Limits) -> Comparison:
        """Measures in turns until the tolerances are decided or --netpoll-rounds are used up. trial: with the
        head's first window.
        """
        __tracebackhide__ = True
        least, most = self._options.rounds or ROUNDS
        least = max(least, limits.runs)
        tolerances = self._options.compare_fail
        plan = Plan(self._options.against or "", self.revision.commit, tolerances, least, max(least, most))
        if not trial.two_sided:
            return not_compared(
                plan,
                f"no service is built by go_service from a package, so {self.revision} has none",
            )
        missing = renewal.missing(item)
        if missing is not None:
            return unsteady(plan, missing)
        trial.alternate(plan.looks[0])

        def compared() -> Comparison:
            doubts = {t.service: self._doubt(item, t) for t in trial.traffic() if _at_one_side(t)}
            made = len(trial.base_windows)
            rounds = [
                (samples_of(base, limits), samples_of(head, limits))
                for base, head in zip(trial.base_windows, trial.windows[:made], strict=True)
            ]
            return compare_rounds(rounds, plan, limits.as_json(), doubts)

        def make(rounds: int) -> bool:
            trial.alternate(rounds)
            return trial.base_failure is None and not trial.failed

        if trial.base_failure is None and not trial.failed:
            found = settled(compared, plan.looks, make)
        if trial.base_failure is not None and trial.base_windows:
            passed = f"{self.revision} passed this test {len(trial.base_windows)} times, and then failed it"
            fix = "make it pass there each time, or leave --netpoll-compare-fail out"
            return unsteady(plan, Reason(passed, why=trial.base_failure, fix=fix))
        if trial.base_failure is not None:
            return not_compared(
                plan, f"{self.revision} does not pass this test: {trial.base_failure}; not compared"
            )
        if trial.failed:
            return not_compared(plan, "the test failed")
        return found

    def _doubt(self, item: pytest.Item, traffic: Traffic) -> Reason:
        side = "head" if traffic.head < traffic.base else str(self.revision)
        other = str(self.revision) if side == "head" else "head"
        keeping = list(_keeping(item))
        named = ", ".join(f"{name!r} ({scope} scope)" for name, scope in keeping)
        return Reason(
            f"{side} saw no traffic of its own",
            why=f"a client stayed with {other}: it is connected, or keeps the address, for longer than one "
            "call of the test",
            fix=f"make the fixture {named} function-scoped, so that it reconnects for each side"
            if keeping
            else "take the address from the service, and connect, in the test or a function-scoped fixture",
        )


def _at_one_side(traffic: Traffic) -> bool:
    """Whether traffic for both sides reached only one of them."""
    if not traffic.head and not traffic.base:
        return False
    astray = max(traffic.head_astray, traffic.base_astray)
    return not traffic.head or not traffic.base or astray > _ASTRAY * min(traffic.head, traffic.base)


def _keeping(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """(name, scope) of the test's fixtures that outlive a call and use a service but aren't one."""
    definitions: dict[str, Any] = getattr(getattr(item, "_request", None), "_fixture_defs", {})
    values: dict[str, Any] = {}
    for name, definition in definitions.items():
        cached = getattr(definition, "cached_result", None)
        if cached is not None:
            values[name] = cached[0]
    of_services = {name for name, value in values.items() if list(services_in([value]))}
    served = {"go_service", *of_services}
    while True:
        more = {name for name, d in definitions.items() if name not in served and served & set(d.argnames)}
        if not more:
            break
        served |= more
    for name in fixtures_of(item):
        definition = definitions.get(name)
        if definition is None or name not in served or name in ("go_service", "netpoll", "request"):
            continue
        if definition.scope != "function" and not issubclass(type(values.get(name)), Service):
            yield name, definition.scope
