"""The recorded evidence that explains a failure, merged by place, worst first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from pytest_netpoll.clean import one_line
from pytest_netpoll.errors import Reason
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.metrics import METRICS, base_of
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.report import evidence_text, wording
from pytest_netpoll.report.record import (
    FrameRecord,
    OffenderRecord,
    ServiceRecord,
    SlowAnswerRecord,
    SlowWakeupRecord,
    TestRecord,
    WindowRecord,
)

# Limit -> the field of a "parked" entry that it is about.
_PARKED = {
    "parked_goroutines": "count",
    "parked_growth": "growth",
    "abandoned_descriptors": "abandoned",
    "stuck_goroutines": "stuck",
}


class Entry(NamedTuple):
    """Recorded evidence, merged by kind and place. text: on one line, followed by the stack and the wakee, if
    known. kind: what it is evidence of. place: identifies it among a service's. leads: whether it is worth
    more than numbers. by_timer: whether a timer or an expired deadline woke the goroutine.
    """

    text: str
    stack: list[FrameRecord]
    lead_in: str
    share: float | None = None
    woken: str = ""
    kind: Offence | Literal["late"] = "late"
    place: tuple[Any, ...] = ()
    leads: bool = False
    by_timer: bool = False


def explaining(record: TestRecord, service: ServiceRecord) -> list[Entry]:
    """The entries that explain the service's broken limits and rules: the best one of each, in their order,
    then who held a mutex that others waited for, then the others.
    """
    behind = _offenders_behind(record, service)
    # An entry that explains several limits has the numbers of all offenders there.
    complete = {e.place: e for found in behind.values() for e in offender_entries(service, found)}
    best: dict[tuple[Any, ...], Entry] = {}
    others: dict[tuple[Any, ...], Entry] = {}
    for fault in wording.broken(record, service):
        for number, entry in enumerate(_explaining_one(service, base_of(fault["metric"]))):
            known = best if number == 0 else others
            known.setdefault(entry.place, complete.get(entry.place, entry)._replace(leads=number == 0))
    rest = [entry for place, entry in others.items() if place not in best]
    rest.sort(key=lambda entry: entry.place[0] in _EVERYWHERE)
    held = [entry._replace(leads=True) for entry in rest if entry.place[0] == _HOLDER]
    return [*best.values(), *held, *(entry for entry in rest if entry.place[0] != _HOLDER)]


_HOLDER = "holder"
# Every service has such entries: what else explains a limit is worth more.
_EVERYWHERE = ("ready", "woken", "cpu")


def _explaining_one(service: ServiceRecord, name: str) -> list[Entry]:
    """The entries that explain one broken limit or rule, the best first."""
    if name == "mutex_wait_seconds":
        return mutex_entries(service)
    found: list[Entry] = []
    if name.startswith(LATE):
        found += offender_entries(service, _cpu_causes(service))
        found += slow_entries(service, service["slowest"])
    if name in METRICS and METRICS[name].family in TIMED:
        what = TIMED[METRICS[name].family]
        found += slow_entries(service, [a for a in service.get("slow_answers", []) if a["what"] == what])
    for offence in _evidence_in_order(service, name):
        found += offender_entries(service, _behind(service, name, offence))
    return sorted(found, key=_ends_polls(service)) if _about_polls(name) else found


def _about_polls(name: str) -> bool:
    return name in METRICS and METRICS[name].row == "polls"


# The first part of the names of functions that wake a goroutine because of a timer or an expired deadline.
_TIMERS = ("time.", "runtime.netpoll", "runtime.goroutineReady")
_LEAST_SHARE = 0.05  # of the ready calls, for a place to be preferred


def _ends_polls(service: ServiceRecord) -> Callable[[Entry], tuple[bool, ...]]:
    """The order of entries for a limit on polls: the program's own and timers before what only libraries do;
    timers first if they ended half of the polls that waited, or more.
    """
    metrics = service["metrics"]
    ended, waiting = (
        sum(metrics.get(name) or 0 for name in names)
        for names in (("timeout_polls", "break_polls"), ("blocking_polls", "timed_polls"))
    )
    timers_lead = 0 < waiting <= 2 * ended

    def order(entry: Entry) -> tuple[bool, ...]:
        much = (entry.share or 0) >= _LEAST_SHARE
        own, timer = much and evidence_text.has_own_code(entry.stack), much and entry.by_timer
        return (not timer, not own) if timers_lead else (not (timer or own),)

    return order


# The beginnings of the metrics that the slowest wakeups explain.
LATE = ("latency_", "sched_latency_")


def _offenders_behind(record: TestRecord, service: ServiceRecord) -> dict[Offence, list[OffenderRecord]]:
    """The offenders that explain the service's broken limits and rules."""
    found: dict[Offence, list[OffenderRecord]] = {}
    for fault in wording.broken(record, service):
        name = base_of(fault["metric"])
        groups = [(offence, _behind(service, name, offence)) for offence in _evidence_for(name)]
        if name.startswith(LATE):
            groups.append(("cpu", _cpu_causes(service)))
        for offence, offenders in groups:
            if offenders:
                known = found.setdefault(offence, [])
                known_ids = set(map(id, known))
                known += [o for o in offenders if id(o) not in known_ids]
    return found


def _behind(service: ServiceRecord, name: str, offence: Offence) -> list[OffenderRecord]:
    """The offenders of an offence that explain one broken limit or rule."""
    own = _own(service, offence)
    if name in RULES:
        return [o for o in own if name in o.get("rules", [name])]  # older files have no "rules"
    if name in _PARKED:
        return [o for o in own if cast("dict[str, int]", o).get(_PARKED[name])]
    if name == "mutex_wait_seconds" and offence == "ready":
        return [o for o in own if o.get("unlocks")]
    return own


def _evidence_in_order(service: ServiceRecord, name: str) -> Sequence[Offence]:
    """The evidence for a metric or rule; goroutines woken by the network last where few are."""
    return sorted(_evidence_for(name), key=lambda o: o == "woken" and _timers_lead(service))


def _own(service: ServiceRecord, offence: Offence) -> list[OffenderRecord]:
    """The program's own calls, which limits judge."""
    return [
        o for o in service["offenders"] if evidence_text.offence_of(o) == offence and not o.get("runtime")
    ]


def _cpu_causes(service: ServiceRecord) -> list[OffenderRecord]:
    """The code that used the CPU while woken goroutines waited, where a rule names it."""
    codes = [rule["code"] for rule in service.get("rules", []) if rule["line"] is not None]
    codes = [code for code in codes if "cpu" in _evidence_for(code)]
    return [o for o in _own(service, "cpu") if set(codes) & set(o.get("rules", codes))]


def _timers_lead(service: ServiceRecord) -> bool:
    """Whether goroutines were woken more often by timers and other goroutines than by the network."""
    metrics = service["metrics"]
    return (metrics.get("ready_calls") or 0) > (metrics.get("wakeups") or 0)


def _evidence_for(metric: str) -> Sequence[Offence]:
    """The evidence for a metric; none for metrics that aren't in the table."""
    if metric in METRICS:
        return METRICS[metric].explained_by
    return RULES[metric].offences if metric in RULES else ()


def _wanted(record: TestRecord, service: ServiceRecord) -> set[Offence]:
    """The offences that explain the service's broken limits and rules."""
    return {o for fault in wording.broken(record, service) for o in _evidence_for(base_of(fault["metric"]))}


# Offences shown only if a limit on them is broken, with their names.
_ORDINARY: Mapping[Offence, str] = {
    "ready": "Callers",
    "io": "I/O calls",
    "cpu": "CPU time",
    "woken": "Woken goroutines",
    "parked": "Parked goroutines",
    "mutex": "Waits for mutexes",
}


def besides(record: TestRecord, service: ServiceRecord) -> list[tuple[str, list[Entry]]]:
    """(heading, entries) for evidence that explains nothing broken."""
    explained = {id(o) for offenders in _offenders_behind(record, service).values() for o in offenders}
    rest = [o for o in service["offenders"] if id(o) not in explained]
    wasteful = [o for o in rest if evidence_text.offence_of(o) not in _ORDINARY]
    groups = [("Offenders", wasteful)]
    groups += [
        (heading, [o for o in rest if evidence_text.offence_of(o) == kind])
        for kind, heading in _ORDINARY.items()
    ]
    return [(heading, offender_entries(service, found)) for heading, found in groups if found]


def callers(record: TestRecord, service: ServiceRecord) -> list[Entry]:
    """The callers of ready calls, worst first, if they were recorded but explain no broken limit."""
    return [
        entry for heading, entries in besides(record, service) if heading == "Callers" for entry in entries
    ]


def offender_entries(service: ServiceRecord, offenders: Iterable[OffenderRecord]) -> list[Entry]:
    """One for each kind of offence and stack, the worst first."""
    places: dict[tuple[Any, ...], list[OffenderRecord]] = {}
    for offender in offenders:
        stack, woken = _key(offender["stack"]), _key(offender.get("woken_stack", []))
        # Without a stack, the descriptor identifies an entry.
        place = stack or (offender["fd_type"], offender.get("local"), offender.get("peer"))
        places.setdefault(
            (evidence_text.offence_of(offender), offender.get("runtime"), place, woken), []
        ).append(offender)
    merged = sorted(((_together(same), place) for place, same in places.items()), key=lambda m: _rank(m[0]))
    return [
        Entry(
            evidence_text.offender_text(service, offender),
            _as_deferred(evidence_text.shown_stack(offender)),
            evidence_text.lead_in(offender),
            offender["share"],
            evidence_text.woken_text(offender),
            evidence_text.offence_of(offender),
            place,
            by_timer=_by_timer(offender),
        )
        for offender, place in merged
    ]


def _by_timer(offender: OffenderRecord) -> bool:
    waker = offender["stack"][0]["function"] if offender["stack"] else None
    return evidence_text.offence_of(offender) == "ready" and (waker or "").startswith(_TIMERS)


_DEFER_WRAPPER = re.compile(r"\.deferwrap\d+$")


def _as_deferred(stack: list[FrameRecord]) -> list[FrameRecord]:
    """The stack without the compiler's wrappers of deferred calls: the function that defers is below."""
    functions = [frame["function"] or "" for frame in stack]
    return [
        frame
        for frame, function, caller in zip(stack, functions, [*functions[1:], ""], strict=False)
        if not (_DEFER_WRAPPER.search(function) and _DEFER_WRAPPER.sub("", function) == caller)
    ]


def mutex_entries(service: ServiceRecord) -> list[Entry]:
    """Where goroutines waited for mutexes, and where these were unlocked; the worst of both come first."""
    waits, holders = offender_entries(service, _own(service, "mutex")), _holders(service)
    return [*waits[:1], *holders[:1], *waits[1:], *holders[1:]]


def _holders(service: ServiceRecord) -> list[Entry]:
    """The callers of ready calls that unlocked a mutex and thereby woke a waiter."""
    holders = [offender for offender in _own(service, "ready") if offender.get("unlocks")]
    total = sum(offender["share"] or 0 for offender in holders)
    of_all = [{**offender, "share": (offender["share"] or 0) / (total or 1)} for offender in holders]
    return [
        entry._replace(
            text="the mutex was held until its Unlock "
            f"({units.show(entry.share, 'share')} of the Unlocks that woke a waiter)",
            place=("unlock" if number else _HOLDER, *entry.place),
        )
        for number, entry in enumerate(offender_entries(service, cast("list[OffenderRecord]", of_all)))
    ]


def _rank(offender: OffenderRecord) -> tuple[int, ...]:
    """Leaked goroutines lead, however many others are parked. Of as many, those of connections that have no
    port in common here, because the service dialed them.
    """
    fields = ("waited_ns", "stuck", "abandoned", "growth", "count")
    numbers = (-(cast("dict[str, int | None]", offender).get(name) or 0) for name in fields)
    return (*numbers, offender.get("local") is not None)


def _key(stack: Iterable[FrameRecord]) -> tuple[Any, ...]:
    return tuple((frame["file"], frame["line"], frame["function"]) for frame in stack)


def _together(same: Sequence[OffenderRecord]) -> OffenderRecord:
    """Merges the offenders of one place: the worst one, with the numbers of all."""
    worst = max(same, key=lambda offender: offender["count"])
    shares = [offender["share"] for offender in same]
    outcomes = dict.fromkeys(o["outcome"] for o in same if o.get("outcome"))
    together: OffenderRecord = {
        **worst,
        "count": sum(offender["count"] for offender in same),
        "share": None if None in shares else sum(share or 0 for share in shares),
    }
    for name in (*_PARKED.values(), "waited_ns"):
        if name in worst:
            together[name] = sum(offender.get(name) or 0 for offender in same)  # type: ignore[literal-required]
    if outcomes:
        together["outcome"] = " or ".join(filter(None, outcomes))
    return together


def slow_entries(service: ServiceRecord, slow: Iterable[SlowWakeupRecord | SlowAnswerRecord]) -> list[Entry]:
    """Entries for the slowest wakeups and answers, one for each place and kind, the longest first."""
    places: dict[tuple[Any, ...], list[SlowWakeupRecord | SlowAnswerRecord]] = {}
    for one in slow:
        place = (one.get("what"), one["direction"], one["fd_type"], _key(one["stack"]))
        places.setdefault(place, []).append(one)
    return [
        Entry(
            evidence_text.slow_text(service, same[0], same[1:]),
            same[0]["stack"],
            evidence_text.lead_in(same[0]),
            place=("slow", *place),
        )
        for place, same in places.items()
    ]


def not_kept(service: ServiceRecord) -> list[str]:
    """A line for each kind of offender whose list is incomplete."""
    lines = []
    for offence, (_, name, _) in evidence_text.OFFENCES.items():
        shares = [o["share"] or 0 for o in service["offenders"] if evidence_text.offence_of(o) == offence]
        missing = 1 - sum(shares)
        if any(shares) and missing >= 0.0005:  # which is shown as 0.1 %
            share = units.show(missing, "share")
            # An event for a descriptor that was closed meanwhile has no known owner.
            or_closed = " or it was closed" if offence == "unclaimed" else ""
            lines.append(f"{share} of the {name} not listed: the kernel's table had no more room{or_closed}")
    return lines


# Metric with a broken limit -> the slow answers that explain it.
TIMED = {
    "queue_delay": "queue_delay",
    "poll_delay": "queue_delay",
    "handling": "response",
    "response": "response",
}


def slow_answers(record: TestRecord, service: ServiceRecord) -> list[SlowAnswerRecord]:
    """The slowest reads or answers, if a limit of the service on such times is broken."""
    faults = [METRICS.get(base_of(fault["metric"])) for fault in wording.broken(record, service)]
    wanted = {TIMED.get(metric.family) for metric in faults if metric is not None}
    return [answer for answer in service.get("slow_answers", []) if answer["what"] in wanted]


def unexplained(record: TestRecord, service: ServiceRecord) -> list[Reason]:
    """A reason for each kind of evidence that a broken limit asks for and that is missing."""
    wanted = _wanted(record, service)
    names = {"cpu": "CPU samples", "spurious": "cause of spurious wakeups", "parked": "proof that they stay"}
    return [
        wording.clean(wording.reason_of(why).about(f"no {names.get(offence, offence)}"))
        for offence, why in service.get("unexplained", {}).items()
        if offence in wanted
    ]


def quotas_of(record: TestRecord, service: ServiceRecord) -> list[str]:
    """A line for each cgroup whose quota stopped the service, if a limit on that is broken:

    "the cgroup /x allows 0.2 CPUs (20 ms every 100 ms) and stopped the service in 30 of 31 periods".
    """
    if not any(
        base_of(fault["metric"]).startswith("throttled_") for fault in wording.broken(record, service)
    ):
        return []
    return [
        one_line(evidence_text.quota_text(cgroup))
        for cgroup in service.get("cgroups", [])
        if cgroup["throttled_periods"]
    ]


class Evidence(NamedTuple):
    """A place in Go where something is wrong with the service. text: one line. stack: innermost first, may be
    empty.
    """

    text: str
    stack: list[FrameRecord]
    service: str

    def __str__(self) -> str:
        return self.text + evidence_text.place(self.stack)

    @property
    def here(self) -> str:
        """The text as it is shown at that place: "… wakeups (read on tcp a ← b), parked here"."""
        return f"{self.text} here" if self.text.endswith(_BEFORE_A_PLACE) else self.text


# The ends of texts of entries that go on with a place.
_BEFORE_A_PLACE = ("parked", "running", "made", "for nothing", ",")


def worst_places(record: TestRecord) -> list[Evidence]:
    """The worst place of each service that explains the failure, in the order of services; first those of
    panics. Empty if no panic, offender or late wakeup explains it.
    """
    found: dict[str, Evidence] = {}
    for death in record.get("deaths", []):
        stack, last = _panicked_at(death["last_words"]), death["last_words"].partition("\n")[0]
        if stack:
            text = one_line(f"{death['service']}: {last}")
            found.setdefault(death["service"], Evidence(text, stack, death["service"]))
    several = len({fault["service"] for fault in wording.broken(record)}) > 1
    for service in record["services"]:
        places = [(entry.text, entry.stack) for entry in explaining(record, service)[:1]]
        places += [(text, []) for text in quotas_of(record, service)[:1]]
        about = f"{one_line(service['name'])}: " if several else ""
        for text, stack in places[:1]:
            found.setdefault(service["name"], Evidence(about + text, stack, service["name"]))
    for window in wording.broken_windows(record):
        for service in window["services"]:
            for entry in explaining(wording.of_window(record, window), service)[:1]:
                found.setdefault(service["name"], _in_window(window, service, entry))
    for window in wording.windows_behind(record) if not found else ():
        for service in window["services"]:
            for entry in evidence_in(service)[:1]:
                return [_in_window(window, service, entry)]
    return list(found.values())


def _in_window(window: WindowRecord, service: ServiceRecord, entry: Entry) -> Evidence:
    text = f"{wording.name_of(window)}, {one_line(service['name'])}: {entry.text}"
    return Evidence(text, entry.stack, service["name"])


# "main.explode(0x1)", and below it "\t/src/main.go:17 +0x3f"; not "created by main.run in goroutine 1".
_CALL = re.compile(r"^(?P<function>[^\s(].*)\(.*\)\n\s+(?P<file>\S.*\.go):(?P<line>\d+)", re.MULTILINE)


def _panicked_at(last_words: str) -> list[FrameRecord]:
    """The stack of a Go panic, from its origin on; without the runtime's own frames."""
    frames: list[FrameRecord] = [
        {"function": call["function"], "file": call["file"], "line": int(call["line"])}
        for call in _CALL.finditer(last_words)
    ]
    return [f for f in frames if not re.match(r"panic$|runtime[./]|internal/", f["function"] or "")]


def evidence_in(service: ServiceRecord) -> list[Entry]:
    """Evidence in a window, which has no limits: its offenders, else the slowest wakeups."""
    if not wording.trusted(service):
        return []
    offenders = [o for o in service["offenders"] if evidence_text.offence_of(o) not in _ORDINARY]
    return offender_entries(service, offenders) or slow_entries(service, service["slowest"])[:1]
