"""Records one window of a service event by event, with an agent that lives only that long.

Measuring uses another agent, because recording single events costs more and would distort the numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_netpoll.agent.constants import TRACE_RECORDS
from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.agent_client import INVALID_FIX
from pytest_netpoll.meter.messages import Traced, in_files
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.meter.processes import Watched
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.trace import Call, Event, Look, Poll, Ready, Stack, Trace
from pytest_netpoll.options import Config
from pytest_netpoll.service.patience import Say


class Recorded(NamedTuple):
    """measurement: of the same window. trace: None if unmeasured; the measurement says why."""

    measurement: Measurement
    trace: Trace | None


class Recording:
    """recorded: one for each service, in their order, once the block has ended."""

    def __init__(self) -> None:
        self.recorded: list[Recorded] = []


@contextlib.contextmanager
def recording(
    config: Config,
    symbolizer: Symbolizer,
    services: Sequence[Watched],
    roots: Mapping[int, Watched],
    say: Say | None = None,
    records: int = TRACE_RECORDS,
) -> Iterator[Recording]:
    """Records the block. roots: the services by process. records: how many to keep for all services together.
    Raises nothing: if the block can't be recorded, the measurements say why.
    """
    # Timing answers takes a larger program, and the trace doesn't show them.
    meter = Meter(dataclasses.replace(config, response="off"), symbolizer, say, trace=records)
    found = Recording()
    try:
        for pid, service in roots.items():
            meter.admit(service, pid)
        window = meter.open()
        try:
            yield found
        finally:
            measured, answer = meter.end(window, services)
            traces = answer.get("traces", {}) if answer is not None else {}
            for service, measurement in zip(services, measured, strict=True):
                own = [traces[str(pid)] for pid, of in roots.items() if of is service and str(pid) in traces]
                found.recorded.append(_recorded(measurement, own, symbolizer))
    finally:
        meter.stop()


def _recorded(measurement: Measurement, raw: Sequence[Traced], symbolizer: Symbolizer) -> Recorded:
    if measurement.unmeasured is not None:
        return Recorded(measurement, None)
    try:
        if not raw:
            raise LookupError("no trace")
        return Recorded(measurement, collect(raw, symbolizer))
    except (ValueError, LookupError, TypeError) as error:
        why = Reason("the agent recorded no trace", why=repr(error), fix=INVALID_FIX)
        return Recorded(dataclasses.replace(measurement, unmeasured=why), None)


def collect(raw: Sequence[Traced], symbolizer: Symbolizer) -> Trace:
    """Merges the traces of a service's roots. Raises ValueError, LookupError or TypeError if they are
    malformed.
    """
    polls: list[Poll] = []
    events: list[Event] = []
    calls: list[Call] = []
    readies: list[Ready] = []
    looks: list[Look] = []
    for one in raw:
        stacks = [symbolizer.trimmed(in_files(stack)) for stack in one["stacks"]]

        def stack(index: int | None, stacks: Sequence[Stack] = tuple(stacks)) -> Stack:
            return () if index is None else stacks[index]

        polls += [Poll(*row) for row in one["polls"]]
        events += [Event(*row) for row in one["events"]]
        calls += [Call._make([*fields, stack(place)]) for *fields, place in one["calls"]]
        readies += [Ready._make([*fields, stack(a), stack(b)]) for *fields, a, b in one["readies"]]
        looks += [Look(*row) for row in one["looks"]]
    at = operator.attrgetter("at")
    return Trace(
        polls=sorted(polls, key=at),
        events=sorted(events, key=at),
        calls=sorted(calls, key=at),
        readies=sorted(readies, key=at),
        looks=sorted(looks, key=at),
        dropped=max(one["dropped"] for one in raw),
        missed_looks=sum(one["missed_looks"] for one in raw),
    )
