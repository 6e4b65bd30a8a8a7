"""Whose line was woken in vain: the agent's raw stacks, resolved, trimmed and put together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_netpoll.symbols import Symbolizer

# Of an entry's fields: those that are texts, and those that may be None besides.
_TEXTS = ("offence", "direction", "syscall", "fd_type")
_ADDRESSES = ("local", "peer")

# Of a connection per client the place in the code matters, not each of a thousand peers.
Place = tuple[str, str, str, str, tuple[tuple[str, int], ...]]


def collect(raw: Sequence[Mapping[str, Any]], symbolizer: Symbolizer) -> tuple[dict[str, Any], ...]:
    """Offenders as in the JSON report, the worst first.

    raw: [{"offence", "count", "direction", "syscall", "fd_type", "local", "peer", "stack": [[file,
    offset]]}] over all processes of a service. share: of all vain wakeups (or retries) of its kind.
    Raises ValueError, KeyError or TypeError where `raw` is something else.
    """
    places: dict[Place, list[Mapping[str, Any]]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for entry in raw:
        _check(entry)
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


def _check(entry: Mapping[str, Any]) -> None:
    count = entry["count"]
    texts = [entry[name] for name in _TEXTS]
    texts += [entry[name] for name in _ADDRESSES if entry[name] is not None]
    if not isinstance(count, int) or count <= 0 or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"offender {dict(entry)!r:.200}")


def _common(values: Any) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
