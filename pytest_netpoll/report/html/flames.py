"""Flame graphs: a service's recorded stacks, merged from the outermost frame inwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pytest_netpoll.report import evidence_text, wording
from pytest_netpoll.report.record import FrameRecord, OffenderRecord, ServiceRecord

# Offence -> what its graph shows.
GRAPHS: Mapping[str, str] = {
    "cpu": "CPU time",
    "woken": "where woken goroutines were parked",
    "ready": "callers that wake goroutines",
    "mutex": "where goroutines waited for mutexes",
}


class Graph(NamedTuple):
    """Nodes, each after its parent. names: functions; the first is the root. places: "server/main.go:33", the
    line with the most samples. parents: indexes of the parents, -1 for the root. counts: samples.
    """

    names: list[str]
    places: list[str]
    parents: list[int]
    counts: list[int]


def graphs_of(service: ServiceRecord) -> dict[str, dict[str, Any]]:
    """Offence -> the Graph's fields, for the offences with recorded stacks."""
    if not wording.trusted(service):
        return {}
    found = {}
    for offence, title in GRAPHS.items():
        offenders = [o for o in service["offenders"] if o.get("offence") == offence and o["stack"]]
        if offenders:
            found[offence] = {"title": title, **_merged(offenders)._asdict()}
    return found


def _merged(offenders: Iterable[OffenderRecord]) -> Graph:
    graph = Graph(["all"], [""], [-1], [0])
    numbers: dict[tuple[int, str], int] = {}
    for offender in sorted(offenders, key=lambda o: -o["count"]):
        graph.counts[0] += offender["count"]
        parent = 0
        for frame in reversed(offender["stack"]):
            parent = _node(graph, numbers, parent, frame)
            graph.counts[parent] += offender["count"]
    return graph


def _node(graph: Graph, numbers: dict[tuple[int, str], int], parent: int, frame: FrameRecord) -> int:
    name = wording.one_line(frame["function"] or "?")
    number = numbers.setdefault((parent, name), len(graph.names))
    if number == len(graph.names):
        graph.names.append(name)
        graph.places.append(evidence_text.frame_location(frame))
        graph.parents.append(parent)
        graph.counts.append(0)
    return number
