"""What a rule is, and what it means that a measurement breaks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Frame
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence, Offender
from pytest_netpoll.model.measurement import Measurement

# Of what is spurious, fewer, or a smaller part of the wakeups, may be chance.
LEAST_WASTED = 5
LEAST_SHARE = 0.05
# Of fewer CPU samples no share is told: a window of a few ms may have one.
LEAST_SAMPLES = 10


@dataclass(frozen=True)
class Proof:
    """That a rule is broken. count: of what, as in `text`, which says what was seen and what caused it.

    stack: where, innermost first; empty where no code was recorded. fix: where the rule's own does not fit.
    """

    count: int | float
    text: str
    stack: tuple[Frame, ...] = ()
    fix: str | None = None


def _always(_: Measurement) -> Reason | None:
    return None


@dataclass(frozen=True)
class Rule:
    """One known way of wasting wakeups, polls, I/O calls or CPU time, or of answering late.

    code: "NP101"; rules whose codes begin alike are of one family. meaning: what it is, in a sentence.
    evidence: what has to be measured before it is said. fix: what to do. alike: what looks like it and is
    not. example: a service that has it.
    offences: what is recorded for it while it is forbidden.
    prove: reads a measurement; None where that proves nothing.
    missing: why a measurement has not the evidence; None where it has.
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
        """ "server/fault_dup.go:33"; None where no code was recorded."""
        frame = next(iter(self.proof.stack), None)
        return None if frame is None else f"{frame.file}:{frame.line}" if frame.line else frame.file

    @property
    def reason(self) -> Reason:
        """Without the service's name."""
        frame = next(iter(self.proof.stack), None)
        at = "" if frame is None else f" at {self.line} {frame.function}"
        return Reason(f"{self.rule}{at}", why=self.proof.text, fix=self.fix)

    def __str__(self) -> str:
        return f"{self.service}: {self.proof.text} Fix: {self.fix}"


def number(m: Measurement, metric: str) -> float:
    """A counter; 0 where it was not measured."""
    return m.snapshot.counters.get(metric, 0)


def resolved(m: Measurement) -> float:
    """The wakeups of which it is known what came of them."""
    return number(m, "productive_wakeups") + number(m, "spurious_wakeups")


def matters(wasted: float, m: Measurement, least_share: float = LEAST_SHARE) -> bool:
    """Whether so many wakeups for nothing are more than chance."""
    return wasted >= max(LEAST_WASTED, least_share * resolved(m))


def offenders(m: Measurement, *offences: Offence) -> list[Offender]:
    """The worst first."""
    return sorted((o for o in m.offenders if o.offence in offences), key=lambda o: -o.count)


def stack_of(found: Sequence[Offender]) -> tuple[Frame, ...]:
    """Of the worst that has one."""
    return next((o.stack for o in found if o.stack), ())


def no_cpu_samples(m: Measurement) -> Reason | None:
    """Why it is unknown what used the CPU."""
    return m.unexplained.get("cpu")


def cpu_samples(m: Measurement) -> list[Offender]:
    """What used CPU time, the most first; empty where too few samples were taken."""
    found = offenders(m, "cpu")
    return found if sum(o.count for o in found) >= LEAST_SAMPLES else []


def wanted(m: Measurement) -> float:
    """Thread-seconds that ran or waited for a CPU: what the service would have used, had the machine been
    idle.
    """
    return (m.cpu_seconds or 0) + (m.run_delay_seconds or 0)


def count(value: float) -> str:
    return units.show(round(value), "count")


def share(value: float) -> str:
    return units.show(value, "share")


def seconds(value: float) -> str:
    return units.show(value, "s")


def rate(value: float, m: Measurement) -> str:
    return units.show(round(value / m.window_seconds), "count")
