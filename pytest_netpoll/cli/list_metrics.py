"""`python -m pytest_netpoll metrics [NAME …]`: what a test can limit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from pytest_netpoll.cli.arguments import named
from pytest_netpoll.cli.lines import DOCS, print_rows, say
from pytest_netpoll.errors import UsageError
from pytest_netpoll.model.metrics import LIMITABLE, METRICS, Metric, base_of
from pytest_netpoll.model.units import Unit

_UNITS: Mapping[Unit, str] = {"share": "ratio 0-1"}
# How to write a limit on a metric of that unit.
_EXAMPLES: Mapping[Unit, str] = {
    "count": "50",
    "ratio": "1.5",
    "share": '"5%"',
    "ns": '"10ms"',
    "s": '"100ms"',
}
_PREFIXES = ("max_", "min_")


def main(arguments: Sequence[str]) -> int:
    names = named(
        "metrics",
        "List the metrics that a test can limit, with unit and meaning, or some of them.",
        "NAME",
        'a name, a part of one, or a limit: "polls", "latency", "max_response_p90"',
        arguments,
    )
    found = {metric.name: metric for name in names for metric in _meant(name)} or METRICS
    print_rows(
        [(metric.name, _UNITS.get(metric.unit, metric.unit), metric.meaning) for metric in found.values()]
    )
    if names:
        limits = [f"max_{metric.name}={_EXAMPLES[metric.unit]}" for metric in found.values()]
        say(f"\nTo limit {'it' if len(limits) == 1 else 'them'}: @pytest.mark.netpoll({', '.join(limits)})")
    else:
        text = (
            "To limit them: @pytest.mark.netpoll(max_polls=50, min_wakeups=10); a count that grows with time "
            f"also by its rate: max_polls_per_second=50. More: {DOCS}/metrics.md"
        )
        say(f"\n{text}")
    return 0


def _meant(name: str) -> list[Metric]:
    bare = next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), name)
    bare = base_of(bare.lower())
    if bare in METRICS:
        return [METRICS[bare]]
    found = [metric for metric in METRICS.values() if bare in metric.name]
    if not found:
        close = difflib.get_close_matches(bare, LIMITABLE, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"no metric {name!r}{meant}", fix="see the list: python -m pytest_netpoll metrics")
    return found
