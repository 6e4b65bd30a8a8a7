"""Whose line was woken in vain: the agent's raw stacks, resolved, trimmed and put together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from pytest_netpoll.symbols import Symbolizer

# Of a connection per client the place in the code matters, not each of a thousand peers.
Place = tuple[str, str, str, str, tuple[tuple[str, int], ...]]


def collect(raw: Sequence[Mapping[str, Any]], symbolizer: Symbolizer) -> tuple[dict[str, Any], ...]:
    """Offenders as in the JSON report, the worst first.

    raw: [{"offence", "count", "direction", "syscall", "fd_type", "local", "peer", "stack": [[file,
    offset]]}] over all processes of a service. share: of all vain wakeups (or retries) of its kind.
    """
    places: dict[Place, list[Mapping[str, Any]]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for entry in raw:
        stack = tuple((str(path), int(offset)) for path, offset in entry["stack"])
        places[entry["offence"], entry["direction"], entry["syscall"], entry["fd_type"], stack].append(entry)
        totals[entry["offence"]] += entry["count"]
    merged = []
    for (offence, direction, syscall, fd_type, stack), entries in places.items():
        count = sum(entry["count"] for entry in entries)
        merged.append(
            {
                "offence": offence,
                "count": count,
                "share": count / totals[offence],
                "direction": direction,
                "syscall": syscall,
                "fd_type": fd_type,
                "local": _common(entry["local"] for entry in entries),
                "peer": _common(entry["peer"] for entry in entries),
                "stack": symbolizer.lines(stack),
            }
        )
    return tuple(sorted(merged, key=lambda offender: -offender["count"]))


def total(laps: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[dict[str, Any], ...]:
    """The offenders of several windows together, as `collect` gives those of one."""
    merged: dict[str, dict[str, Any]] = {}
    totals: dict[str, int] = defaultdict(int)
    for offender in chain.from_iterable(laps):
        totals[offender["offence"]] += offender["count"]
        place = repr([offender[name] for name in ("offence", "direction", "syscall", "stack")])
        known = merged.setdefault(place, {**offender, "count": 0})
        known["count"] += offender["count"]
        # Of a connection that was closed before anybody looked, the kind is not known any more.
        known["fd_type"] = _common({known["fd_type"], offender["fd_type"]} - {"closed"} or {"closed"})
        for end in ("local", "peer"):
            known[end] = _common((known[end], offender[end]))
    for known in merged.values():
        known["share"] = known["count"] / totals[known["offence"]]
    return tuple(sorted(merged.values(), key=lambda offender: -offender["count"]))


def _common(values: Any) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
