"""Compares head with base, measured in turns: what changed, how certainly, and which tolerances broke."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from pytest_netpoll.errors import Reason
from pytest_netpoll.model import confidence
from pytest_netpoll.model.comparison import Comparison
from pytest_netpoll.model.confidence import Design
from pytest_netpoll.model.difference import Difference, Regression, Undecided, differences, judge_rules
from pytest_netpoll.model.measurement import median
from pytest_netpoll.model.metrics import METRICS
from pytest_netpoll.model.sample import Sample, Samples, values_of
from pytest_netpoll.model.tolerance import Tolerance

# The share of rounds that may be unmeasured; they are left out and reported. With more, nothing is compared.
_UNMEASURED = 0.25


class Plan(NamedTuple):
    """What to compare with. ref: as the user wrote it. commit: what it resolved to. least, most: rounds."""

    ref: str
    commit: str
    tolerances: Sequence[Tolerance]
    least: int
    most: int

    @property
    def looks(self) -> tuple[int, ...]:
        return confidence.looks(self.least, self.most)


Round: TypeAlias = tuple[Samples, Samples]  # base, head


def compare_rounds(
    rounds: Sequence[Round],
    plan: Plan,
    limits: Mapping[str, int | float] | None = None,
    doubts: Mapping[str, Reason] | None = None,
) -> Comparison:
    """Compares both sides of one test, each measured once per round.

    limits: as in the JSON report. doubts: service -> why its rounds can't be compared.
    """
    bases, heads = _by_service([base for base, _ in rounds]), _by_service([head for _, head in rounds])
    notes: list[str] = []
    unmeasured: list[Reason] = []
    regressions: list[Regression] = []
    undecided: list[Undecided] = []
    numbers: list[Difference] = []
    source = f"base ({plan.ref})"
    design = Design(in_turns=True, of_looks=len(plan.looks))
    for service, head in heads.items():
        if service not in bases:
            notes.append(f"{service} was not compared: it is not built from a package of the repository")
            continue
        measured = _measured(bases[service], head, source)
        doubt = (doubts or {}).get(service) or measured.doubt
        if doubt is not None:
            (unmeasured if plan.tolerances else notes).append(doubt.about(f"{service} was not compared"))
            continue
        notes += [note.about(service).headline for note in measured.notes]
        found = differences(service, measured.base, measured.head, design, METRICS.values())
        numbers += found.values()
        judged = judge_rules(
            service, measured.base, measured.head, plan.tolerances, found, design, source, limits
        )
        regressions += judged.regressions
        undecided += judged.undecided
        unmeasured += judged.unmeasured
        notes += judged.notes
    if undecided and len(rounds) >= plan.most:
        notes += map(str, undecided)
    return Comparison(
        plan.ref,
        True,
        {
            name: _median_sample([sample for sample in samples if sample is not None])
            for name, samples in bases.items()
            if name in heads
        },
        tuple(regressions),
        tuple(unmeasured),
        tuple(dict.fromkeys(notes)),
        measured=len(rounds),
        judged=bool(plan.tolerances),
        commit=plan.commit,
        numbers=tuple(numbers),
        undecided=tuple(undecided),
    )


def not_compared(plan: Plan, why: str) -> Comparison:
    """The comparison of a test that fails at the base, as for a test that a baseline doesn't have."""
    return Comparison(plan.ref, False, {}, notes=(why,), judged=bool(plan.tolerances), commit=plan.commit)


def unsteady(plan: Plan, why: Reason) -> Comparison:
    """The comparison of a test that couldn't be compared but had to be, such as one that is flaky at the
    base.
    """
    reasons = (why,) if plan.tolerances else ()
    notes = () if plan.tolerances else (why.headline,)
    judged = bool(plan.tolerances)
    return Comparison(plan.ref, True, {}, (), reasons, notes, judged=judged, commit=plan.commit)


def settled(
    comparison: Callable[[], Comparison], looks: Sequence[int], make: Callable[[int], bool]
) -> Comparison:
    """Makes rounds until a tolerance is broken or all are decided, at most as many as the last look.

    make: makes rounds up to that number; returns whether it could.
    """
    for look in looks:
        made = make(look)
        found = comparison()
        if not made or found.regressions or not found.undecided:
            break
    return found


class _Measured(NamedTuple):
    """The rounds of a service that were measured on both sides. doubt: why they are too few to compare."""

    base: list[Sample]
    head: list[Sample]
    notes: list[Reason]
    doubt: Reason | None


def _by_service(side: Sequence[Samples]) -> dict[str, list[Sample | None]]:
    """Each service's sample in each round; None if it did not run."""
    names = dict.fromkeys(name for samples in side for name in samples)
    return {name: [samples.get(name) for samples in side] for name in names}


def _measured(base: Sequence[Sample | None], head: Sequence[Sample | None], source: str) -> _Measured:
    found = _Measured([], [], [], None)
    for number, (then, now) in enumerate(zip(base, head, strict=True), 1):
        whys = [_distrusted(then, f"{source}, round {number}"), _distrusted(now, f"head, round {number}")]
        why = next(filter(None, whys), None)
        if why is not None:
            found.notes.append(why)
        elif then is not None and now is not None:
            found.base.append(then)
            found.head.append(now)
    most = len(base) * _UNMEASURED
    return found._replace(doubt=found.notes[0]) if len(found.notes) > most else found


def _distrusted(sample: Sample | None, where: str) -> Reason | None:
    if sample is None:
        return Reason(f"{where}: it did not run", fix="start it in a fixture, or in each call of the test")
    return Reason.of(sample.unmeasured).about(where) if sample.unmeasured is not None else None


def _median_sample(samples: Sequence[Sample]) -> Sample:
    metrics: dict[str, int | float | None] = {}
    for metric in METRICS.values():
        values = values_of(metric, samples)
        metrics[metric.name] = None if values is None else median(values)
    return Sample(metrics, samples[0].go_version, samples[0].gomaxprocs)
