"""From samples to Markdown: only numbers of the same round are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from load import Load
from rows import ROWS
from tabulate import tabulate

BASE = "nothing"
# The share of nothing's throughput that ours should keep.
TARGETS = {"ours": 0.97, "ours-goready": 0.90}


@dataclass(frozen=True)
class Sample:
    """One row's turn in one round.

    watched, unwatched: operation -> ns, in the process with the row attached and in one without. seen: what
    the row saw. figures: other numbers, name -> value.
    """

    saturated: Load
    half: Load
    watched: Mapping[str, float]
    unwatched: Mapping[str, float]
    seen: str
    figures: Mapping[str, float]


Rounds = Mapping[int, Sample]
Results = Mapping[str, Rounds]
Pick = Callable[[Sample], float]


def spread(values: Sequence[float], form: str, factor: float = 1) -> str:
    """ "0.94 (0.93 to 0.96)": the median and the quartiles."""
    if not values:
        return ""
    scaled = [value * factor for value in values]
    if len(scaled) == 1:
        return format(scaled[0], form)
    low, middle, high = statistics.quantiles(scaled, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def against_base(results: Results, row: str, pick: Pick) -> list[tuple[float, float]]:
    """(the row's, nothing's) of each round that has both."""
    base = results[BASE]
    return [(pick(sample), pick(base[number])) for number, sample in results[row].items() if number in base]


def ratios(results: Results, row: str, pick: Pick) -> list[float]:
    """1 of nothing itself."""
    if row == BASE:
        return [1.0]
    return [value / base for value, base in against_base(results, row, pick) if base]


def differences(results: Results, row: str, pick: Pick) -> list[float]:
    return [value - base for value, base in against_base(results, row, pick)]


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def of_load(results: Results, failures: Mapping[str, str], pick: Callable[[Sample], Load]) -> str:
    """requests/s, kept, p99 and CPU time of one kind of load, one line per row."""
    lines = []
    for row, rounds in results.items():
        title = ROWS[row].title
        if not rounds:
            lines.append([title, f"not measured: {failures[row]}", "", "", "", ""])
            continue
        loads = [pick(sample) for sample in rounds.values()]
        lines.append(
            [
                title,
                f"{statistics.median(load.rate for load in loads):,.0f}",
                spread(ratios(results, row, lambda sample: pick(sample).rate), ".3f"),
                f"{statistics.median(load.p99 for load in loads) * 1e3:.2f} ms",
                spread(ratios(results, row, lambda sample: pick(sample).p99), ".2f"),
                spread([load.cpu for load in loads], ".1f", 1e6),
            ]
        )
    return table(lines, ("attached", "requests/s", "kept", "p99", "p99 / nothing's", "CPU a request, µs"))


def of_operations(results: Results, pick: Callable[[Sample], Mapping[str, float]]) -> str:
    """ns of each operation with nothing attached, and what each row adds to it."""
    operations = list(next(pick(sample) for sample in results[BASE].values()))
    lines = []
    for row, rounds in results.items():
        if not rounds:
            continue
        cells = []
        for operation in operations:

            def ns(sample: Sample, operation: str = operation) -> float:
                return pick(sample)[operation]

            if row == BASE:
                cells.append(spread([ns(sample) for sample in rounds.values()], ",.0f"))
            else:
                cells.append(spread(differences(results, row, ns), "+,.0f"))
        lines.append([ROWS[row].title, *cells])
    return table(lines, ("ns", *operations))


def of_figures(results: Results) -> str:
    """The other numbers of each row, one column per number."""
    rows = {row: rounds.values() for row, rounds in results.items() if ROWS[row].kind != "base" and rounds}
    names = list(
        dict.fromkeys(name for rounds in rows.values() for sample in rounds for name in sample.figures)
    )
    lines = [
        [
            ROWS[row].title,
            *(spread([s.figures[name] for s in rounds if name in s.figures], ".3g") for name in names),
        ]
        for row, rounds in rows.items()
    ]
    return table(lines, ("attached", *names))


def of_proofs(results: Results, failures: Mapping[str, str]) -> str:
    """What each row saw in its last round, and why it dropped out, if it did."""
    lines = []
    for row, rounds in results.items():
        if ROWS[row].kind == "base":
            continue
        seen = list(rounds.values())[-1].seen if rounds else ""
        lines.append([ROWS[row].title, str(len(rounds)), seen, failures.get(row, "")])
    return table(lines, ("attached", "rounds", "saw, in the last one", "fell out, because"))


def verdicts(results: Results) -> list[str]:
    """A line for each target: met or not, by the medians."""
    kept = {
        row: statistics.median(ratios(results, row, lambda sample: sample.saturated.rate))
        for row, rounds in results.items()
        if rounds
    }
    peers = {row: kept[row] for row in kept if ROWS[row].kind == "peer"}
    lines = []
    for row, target in TARGETS.items():
        if row not in kept:
            continue
        lines.append(
            f"{ROWS[row].title}: keeps {kept[row]:.1%}, target {target:.0%}: "
            f"{'met' if kept[row] >= target else 'NOT MET'}"
        )
        ahead = [peer for peer in peers if kept[row] <= peers[peer]]
        if peers:
            names = ", ".join(f"{ROWS[peer].title} ({peers[peer]:.1%})" for peer in ahead)
            lines.append(f"{ROWS[row].title}: {'NOT ahead of ' + names if ahead else 'ahead of every peer'}")
    return lines
