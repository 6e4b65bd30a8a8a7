"""What a rule is, and how a measurement breaks one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame, is_cut_short
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence, Offender
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import METRICS

# Fewer spurious wakeups, or a smaller share of all wakeups, may be chance.
LEAST_WASTED = 5
LEAST_SHARE = 0.05
# With fewer CPU samples no share is reported: a window of a few ms may have just one.
LEAST_SAMPLES = 10


@dataclass(frozen=True)
class Proof:
    """Proof that a rule is broken. count: how many of what `text` names. text: what was seen and what caused
    it.

    stack: where, innermost first; empty if no code was recorded. fix: None for the rule's own. evidence: the
    offenders that prove it or show where to look.
    """

    count: int | float
    text: str
    stack: tuple[Frame, ...] = ()
    fix: str | None = None
    evidence: tuple[Offender, ...] = ()


def _always(_: Measurement) -> Reason | None:
    return None


@dataclass(frozen=True)
class Rule:
    """One known way of wasting wakeups, polls, I/O calls or CPU time, or of answering late.

    code: "NP101"; rules whose codes begin alike form a family. meaning: what it is, in a sentence. evidence:
    what has to be measured before it is reported. fix: what to do. alike: what looks similar but isn't this.
    example: a service that breaks it. offences: what to record while it is forbidden. prove: reads a
    measurement; None if that proves nothing. missing: why a measurement lacks the evidence; None if it has
    it.
    """

    code: str
    name: str
    meaning: str
    evidence: str
    fix: str
    alike: str
    example: str
    prove: Callable[[Measurement], Proof | None] = field(repr=False, compare=False)
    missing: Callable[[Measurement], Reason | None] = field(default=_always, repr=False, compare=False)
    offences: tuple[Offence, ...] = ()

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


@dataclass(frozen=True)
class Finding:
    """A rule that a service's measurement breaks."""

    rule: Rule
    service: str
    proof: Proof

    @property
    def fix(self) -> str:
        return self.proof.fix or self.rule.fix

    @property
    def line(self) -> str | None:
        """ "server/fault_dup.go:33"; None if no code was recorded."""
        frame = next(iter(self.proof.stack), None)
        return None if frame is None else f"{frame.file}:{frame.line}" if frame.line else frame.file

    @property
    def reason(self) -> Reason:
        """The finding as a reason, without the service's name."""
        frame = next(iter(self.proof.stack), None)
        at = "" if frame is None else f" at {self.line} {frame.function}"
        return Reason(f"{self.rule}{at}", why=self.proof.text, fix=self.fix)

    def __str__(self) -> str:
        at = f" at {self.line}" if self.line else ""
        return f"{self.service}: {self.rule}{at}: {self.proof.text} Fix: {self.fix}"


def number(m: Measurement, metric: str) -> float:
    """A counter; 0 if it was not measured."""
    return m.snapshot.counters.get(metric, 0)


def resolved(m: Measurement) -> float:
    """The wakeups whose outcome is known."""
    return number(m, "productive_wakeups") + number(m, "spurious_wakeups")


def matters(wasted: float, m: Measurement, least_share: float = LEAST_SHARE) -> bool:
    """Whether that many spurious wakeups are more than chance."""
    return wasted >= max(LEAST_WASTED, least_share * resolved(m))


def offenders(m: Measurement, *offences: Offence) -> list[Offender]:
    """The measurement's offenders of these offences, the worst first."""
    return sorted((o for o in m.offenders if o.offence in offences), key=lambda o: -o.count)


def stack_of(found: Sequence[Offender]) -> tuple[Frame, ...]:
    """The stack of the worst offender that has one. If that ends in C or assembly before it reaches the
    program's own code, the first one that has some.
    """
    stacks = [o.stack for o in found if o.stack]
    if not stacks or _has_own_code(stacks[0]) or not _is_cut_short(stacks[0]):
        return stacks[0] if stacks else ()
    return next(filter(_has_own_code, stacks), stacks[0])


def _is_cut_short(stack: tuple[Frame, ...]) -> bool:
    return is_cut_short([(frame.function, frame.file) for frame in stack])


def _has_own_code(stack: tuple[Frame, ...]) -> bool:
    return any(frame.is_own for frame in stack)


def no_cpu_samples(m: Measurement) -> Reason | None:
    """Why it is unknown what used the CPU; None if it is known."""
    return m.unexplained.get("cpu")


def not_measured(m: Measurement, *metrics: str) -> Reason | None:
    """Why one of the metrics is unknown; None if all are known."""
    for name in metrics:
        if getattr(m, name) is None:
            why = Reason.of(m.absent.get(name, METRICS[name].absent))
            return why.about(f"{name} was not measured")
    return None


def cpu_samples(m: Measurement) -> list[Offender]:
    """What used CPU time, the most first; empty if too few samples were taken."""
    found = offenders(m, "cpu")
    return found if sum(o.count for o in found) >= LEAST_SAMPLES else []


def wanted(m: Measurement) -> float:
    """The CPU time that the threads used or waited for, in s: on an idle machine they would get it all."""
    return (m.cpu_seconds or 0) + (m.run_delay_seconds or 0)


def count(value: float) -> str:
    return units.show(round(value), "count")


def counted(value: float, noun: str) -> str:
    """ "1 wakeup", "15,000 wakeups"."""
    return f"{count(value)} {noun}{'' if round(value) == 1 else 's'}"


def share(value: float, digits: int | None = None) -> str:
    return units.show(value, "share", digits)


def seconds(value: float) -> str:
    return units.show(value, "s")


def rate(value: float, m: Measurement) -> str:
    return units.show(round(value / m.window_seconds), "count")
