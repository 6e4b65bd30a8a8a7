"""The agent's slowest wakeups, with goroutine ids and resolved stacks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_netpoll.agent.constants import PLACE, SLOWEST
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.messages import in_files
from pytest_netpoll.model.evidence import SlowAnswer, SlowWakeup

# Minor version of Go -> which of the agent's two words is runtime.g's goid: at 152, or at 160 if another
# field comes before it. From the DWARF of each of these versions.
_GOID_WORD = {**dict.fromkeys(range(19, 28), 0), 23: 1, 24: 1}
_VERSION = re.compile(r"go1\.([0-9]+)(?![0-9])")


def collect(raw: Sequence[Mapping[str, Any]], symbolizer: Symbolizer) -> tuple[SlowWakeup, ...]:
    """The slowest wakeups, the worst first.

    raw: [{"latency_ns", "at_ns", "goid": [word, word], "go_version", each of PLACE,
    "stack": [[file, offset]]}] over all processes of a service.
    """
    worst = sorted(raw, key=lambda wakeup: -int(wakeup["latency_ns"]))[:SLOWEST]
    return tuple(
        SlowWakeup(
            latency_ns=wakeup["latency_ns"],
            at_ms=round(wakeup["at_ns"] / 1e6, 3),
            goroutine=goroutine(wakeup["goid"], wakeup["go_version"]),
            **{name: wakeup[name] for name in PLACE},
            stack=symbolizer.trimmed(in_files(wakeup["stack"])),
        )
        for wakeup in worst
    )


def answers(raw: Mapping[str, Sequence[Mapping[str, Any]]], symbolizer: Symbolizer) -> tuple[SlowAnswer, ...]:
    """The slowest answers of each kind, the worst first.

    raw: "queue_delay" and "response" -> as for `collect`, with {"parts": [ns, ns, ns, ns]}.
    """
    found: list[SlowAnswer] = []
    for what, entries in raw.items():
        for entry in sorted(entries, key=lambda entry: -int(entry["latency_ns"]))[:SLOWEST]:
            poll, run, unparked, handling = map(int, entry["parts"])
            found.append(
                SlowAnswer(
                    what=what,
                    ns=entry["latency_ns"],
                    poll_delay_ns=poll,
                    wake_to_run_ns=run,
                    unparked_ns=unparked,
                    handling_ns=handling,
                    at_ms=round(entry["at_ns"] / 1e6, 3),
                    goroutine=goroutine(entry["goid"], entry["go_version"]),
                    **{name: entry[name] for name in PLACE},
                    stack=symbolizer.trimmed(in_files(entry["stack"])),
                )
            )
    return tuple(found)


def goroutine(words: Sequence[int], go_version: str) -> int | None:
    """The goroutine's id; None for versions of Go in which its place is unknown."""
    match = _VERSION.match(go_version)
    word = _GOID_WORD.get(int(match[1])) if match else None
    # 0: the memory of g could not be read.
    return None if word is None else words[word] or None
