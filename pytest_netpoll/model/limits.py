"""\
netpoll(max_<metric>=..., min_<metric>=..., forbid="all", allow="NP4", service="name", runs=1): measure the
Go services during the test, and fail it if a limit or a forbidden rule is broken. Without either it only
measures and reports. forbid= and allow= name rules by code, beginning of a code, or name ("NP1,busy-loop");
see python -m pytest_netpoll rules. python -m pytest_netpoll metrics lists the metrics, such as polls,
spurious, latency_p99, response_p90 and parked_growth. max_<count>_per_second limits a count's rate. Times are
"5ms", "250us", "1.5s" or a timedelta; max_spurious is "5%" or 0.05. With service= the limits and rules are
about that service only; a marker without it, inside a class or module whose marker names a service, is about
that service too. The marker may be repeated. runs= repeats the test's call, each time in a separate window,
and judges each metric's median. Of the markers on the test, its class, its module, and the ini options
netpoll_limits, netpoll_forbid and netpoll_allow, the closest wins, limit by limit and rule by rule.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, RATES, Metric
from pytest_netpoll.model.rules import RULES, choice

Kind: TypeAlias = Literal["max", "min"]

# With fewer wakeups a percentile or a share is noise.
MIN_WAKEUPS = 10

_KINDS: tuple[Kind, ...] = ("max", "min")
_LIMITS: Mapping[str, tuple[Kind, Metric]] = {
    **{f"{kind}_{name}": (kind, metric) for name, metric in METRICS.items() for kind in _KINDS},
    **{f"max_{name}": ("max", metric) for name, metric in RATES.items()},
}
_SEE_METRICS = "see the metrics: python -m pytest_netpoll metrics"
_DEFAULTS_WHERE = "ini option netpoll_limits"
# The marker's arguments that aren't limits.
_RULES = ("forbid", "allow")
_OTHERS = ("service", "runs", *_RULES)
# What people write for a count's rate, which has a limit of its own.
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:/|per) *s(?:ec|econd)?")


def help_text() -> str:
    """The marker's text for `pytest --markers`, in one line."""
    return " ".join(__doc__.split())


@dataclass(frozen=True)
class Limit:
    """One bound on a metric or its rate. value: in the metric's canonical unit (times in ns, or s if the
    metric says so). text: as the user wrote it. service: the only service it binds, None for all. implied:
    not written by the user.
    """

    kind: Kind
    metric: str
    value: int | float
    text: str
    service: str | None = None
    implied: bool = False

    @property
    def name(self) -> str:
        """The name in the marker: "max_spurious"."""
        return f"{self.kind}_{self.metric}"

    @property
    def base(self) -> str:
        """The metric of the table that it limits."""
        return LIMITABLE[self.metric].base

    def __str__(self) -> str:
        return f"{self.name}={self.text}"

    def allows(self, value: int | float) -> bool:
        return value <= self.value if self.kind == "max" else value >= self.value


_IMPLIED_MIN_WAKEUPS = Limit("min", "wakeups", MIN_WAKEUPS, str(MIN_WAKEUPS), implied=True)


@dataclass(frozen=True)
class Ruling:
    """Whether a rule is forbidden. named: by its own name, not with a family or all. service: as in Limit."""

    code: str
    forbidden: bool
    named: bool
    service: str | None = None


@dataclass(frozen=True)
class Limits:
    """All limits on one test, none of them contradictory.

    limits: as written, at most one per service and name. services: those named by a service=, even without
    limits. runs: how many windows the limits are judged over, >= 1. rulings: at most one per service and
    rule.
    """

    limits: tuple[Limit, ...] = ()
    services: tuple[str, ...] = ()
    runs: int = 1
    rulings: tuple[Ruling, ...] = ()

    def for_service(self, name: str | None) -> tuple[Limit, ...]:
        """The limits that bind this service: its own override the general ones; with the implied min_wakeups.
        None returns only the general limits.
        """
        binding = {limit.name: limit for limit in self.limits if limit.service is None}
        if name is not None:
            binding |= {limit.name: limit for limit in self.limits if limit.service == name}
        if any(LIMITABLE[limit.metric].needs_wakeups for limit in binding.values()):
            binding.setdefault("min_wakeups", _IMPLIED_MIN_WAKEUPS)
        return tuple(binding.values())

    def forbidden(self, name: str | None) -> dict[str, bool]:
        """{code: whether by its own name} of the rules that this service must not break, in order of their
        codes. None returns those that no service may break.
        """
        binding = {ruling.code: ruling for ruling in self.rulings if ruling.service is None}
        if name is not None:
            binding |= {ruling.code: ruling for ruling in self.rulings if ruling.service == name}
        return {code: binding[code].named for code in sorted(binding) if binding[code].forbidden}

    @property
    def offences(self) -> set[Offence]:
        """The offences to record for the forbidden rules."""
        codes = {ruling.code for ruling in self.rulings if ruling.forbidden}
        return {offence for code in codes for offence in RULES[code].offences}

    @property
    def judges(self) -> bool:
        """Whether the test can break anything."""
        return bool(self.limits) or any(ruling.forbidden for ruling in self.rulings)

    def binds(self, name: str) -> bool:
        """Whether the test is about this service: a marker with another service= excludes it."""
        bound = bool(self.for_service(name) or self.forbidden(name))
        return not self.services or name in self.services or bound

    def as_json(self) -> dict[str, int | float]:
        """{"max_spurious": 0.05, "min_wakeups": 10, "server:max_latency_p99": 5000000}."""
        general = self.for_service(None)
        result = {limit.name: _plain(limit.value) for limit in general}
        for service in self.services:
            for limit in self.for_service(service):
                if limit not in general:
                    result[f"{service}:{limit.name}"] = _plain(limit.value)
        return result


NO_LIMITS = Limits()


def _plain(value: int | float) -> int | float:
    return int(value) if value == int(value) else value


def resolve(
    marks: Sequence[tuple[Sequence[object], Mapping[str, object]]],
    where: str,
    defaults: Mapping[str, str] | None = None,
    levels: Sequence[object] | None = None,
) -> Limits:
    """Merge the markers of one test, closest first, each as (args, kwargs), over the ini defaults.

    levels: what each marker is on, such as the test's class; None if all are on one level. A marker without
    service= is about the services of the markers around it, if they name any. where: the test's name for
    messages. UsageError on anything the user has to correct.
    """
    chosen: dict[tuple[str | None, str], Limit] = {}
    rulings: dict[tuple[str | None, str], Ruling] = {}
    services: dict[str, None] = {}
    runs: list[int] = []
    own = [_read_service(args, kwargs, where) for args, kwargs in marks]
    for (_, kwargs), about in zip(marks, _inherited(own, levels or [None] * len(own)), strict=True):
        runs += _read_runs(kwargs, where)
        for service in about:
            if service is not None:
                services[service] = None
            for limit in _read_limits(_without(kwargs, *_OTHERS), service, where):
                chosen.setdefault((service, limit.name), limit)
            for ruling in _read_rulings(kwargs, service, where):
                rulings.setdefault((service, ruling.code), ruling)
    runs += _read_runs(defaults or {}, _DEFAULTS_WHERE)
    for limit in _read_limits(_without(defaults or {}, "runs", *_RULES), None, _DEFAULTS_WHERE):
        chosen.setdefault((None, limit.name), limit)
    for ruling in _read_rulings(defaults or {}, None, _DEFAULTS_WHERE):
        rulings.setdefault((None, ruling.code), ruling)
    limits = Limits(tuple(chosen.values()), tuple(services), runs[0] if runs else 1, tuple(rulings.values()))
    for name in (None, *limits.services):
        _reject_contradictions(limits.for_service(name), where)
    return limits


def _inherited(own: Sequence[str | None], levels: Sequence[object]) -> list[Sequence[str | None]]:
    """The services of each marker, closest first: its own service=, else those of the level around it. None
    stands for all services.
    """
    about: list[Sequence[str | None]] = []
    around: Sequence[str | None] = (None,)
    level: list[str | None] = []
    for at in reversed(range(len(own))):
        if at + 1 < len(own) and levels[at] is not levels[at + 1]:
            around, level = (None,) if None in level else tuple(dict.fromkeys(level)), []
        names = around if own[at] is None else (own[at],)
        about.append(names)
        level += names
    return about[::-1]


def _read_service(args: Sequence[object], kwargs: Mapping[str, object], where: str) -> str | None:
    if args:
        raise UsageError(
            f"{where}: @pytest.mark.netpoll takes no positional arguments, got {args[0]!r}",
            fix="name the limit, such as max_spurious=0.05",
        )
    if "service" not in kwargs:
        return None
    service = kwargs["service"]
    if not isinstance(service, str) or not service:
        raise UsageError(
            f"{where}: @pytest.mark.netpoll: service={service!r} is not a name",
            fix='write the name of one service, such as service="server"',
        )
    return service


def _read_runs(given: Mapping[str, object], where: str) -> list[int]:
    """The value of runs= in the arguments, if any."""
    if "runs" not in given:
        return []
    runs = given["runs"]
    # From the ini file it is text.
    number = int(runs) if isinstance(runs, str) and runs.isascii() and runs.isdecimal() else runs
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UsageError(
            f"{where}: @pytest.mark.netpoll: runs={runs!r} is not an integer > 0",
            fix="write how often to run the test, such as runs=5",
        )
    return [number]


def _read_rulings(given: Mapping[str, object], service: str | None, where: str) -> Iterator[Ruling]:
    """One ruling for each named rule; if it is named twice, the more specific one decides."""
    found: list[tuple[int, bool, choice.Choice]] = []
    for name in _RULES:
        if name not in given:
            continue
        text = given[name]
        try:
            if not isinstance(text, str):
                raise ValueError(f"{text!r:.100} is not a string")
            found += [(chosen.breadth, name == "forbid", chosen) for chosen in choice.parse(text)]
        except ValueError as error:
            raise UsageError(
                f"{where}: bad {name}={text!r:.100}",
                why=str(error),
                fix=f'write {name}="all", codes, beginnings of codes or names, with commas between; '
                "see python -m pytest_netpoll rules",
            ) from None
    decided: dict[str, Ruling] = {}
    for breadth, forbidden, chosen in sorted(found, key=lambda entry: entry[:2]):
        decided.setdefault(chosen.code, Ruling(chosen.code, forbidden, breadth == 0, service))
    yield from decided.values()


def _without(given: Mapping[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in given.items() if name not in names}


def _read_limits(given: Mapping[str, object], service: str | None, where: str) -> Iterator[Limit]:
    for name, value in given.items():
        if name not in _LIMITS:
            raise UsageError(f"{where}: {_unknown(name)}", fix=_SEE_METRICS)
        kind, metric = _LIMITS[name]
        try:
            parsed = units.parse(value, metric.unit)
        except ValueError as error:
            rate = _RATE.fullmatch(str(value).strip())
            per_second = f"{name}_per_second"
            fix = f"{per_second}={rate[1]}" if rate and per_second in _LIMITS else None
            raise UsageError(f"{where}: bad limit {name}={value!r}", why=str(error), fix=fix) from None
        yield Limit(kind, metric.name, parsed, str(value).strip(), service)


def _unknown(name: str) -> str:
    if name in LIMITABLE:
        return f"unknown limit {name!r}, did you mean 'max_{name}'?"
    if name == "service":
        return "'service' is not a limit: a default binds all services"
    # Bare metric names are candidates too: 'latncy_p99' lacks the prefix and a letter.
    wanted = {
        **{known: known for known in (*_LIMITS, *_OTHERS)},
        **{bare: f"max_{bare}" for bare in LIMITABLE},
    }
    close = difflib.get_close_matches(name, wanted, n=1)
    return f"unknown limit {name!r}" + (f", did you mean {wanted[close[0]]!r}?" if close else "")


def _reject_contradictions(limits: Iterable[Limit], where: str) -> None:
    by_name = {limit.name: limit for limit in limits}
    for limit in by_name.values():
        lower = by_name.get(f"min_{limit.metric}")
        if limit.kind == "max" and lower is not None and lower.value > limit.value:
            implied = " (implied by the limits on spurious or latency)" if lower.implied else ""
            raise UsageError(f"{where}: no value can satisfy both {limit} and {lower}{implied}")
