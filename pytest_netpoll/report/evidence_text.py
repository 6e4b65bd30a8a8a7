"""One line of text for each kind of recorded evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pytest_netpoll.clean import one_line
from pytest_netpoll.gobinary import symbols
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.report import wording
from pytest_netpoll.report.record import (
    CpuQuotaRecord,
    FrameRecord,
    OffenderRecord,
    ServiceRecord,
    SlowAnswerRecord,
    SlowWakeupRecord,
)

# offence -> (the metric that is its total, what to call it, what happened there)
OFFENCES = {
    "spurious": ("spurious_wakeups", "spurious wakeups", "parked"),
    "stale": ("stale_retries", "stale retries", "tried again for nothing"),
    "unclaimed": ("unclaimed_events", "unclaimed events", "nobody waiting"),
}
# The same for sampled offences, of which shares are shown instead of counts.
_SAMPLED = {
    "ready": ("ready_calls", "ready calls", "made"),
    "futile": ("futile_calls", "futile I/O calls", "made"),
    "io": ("io_calls", "I/O calls", "made"),
    "woken": ("wakeups", "wakeups", "parked"),
}


def offence_of(offender: OffenderRecord) -> Offence:
    return offender.get("offence", "spurious")


def offender_text(service: ServiceRecord, offender: OffenderRecord) -> str:
    """ "499 of 500 (99.8 %) spurious wakeups (read on tcp a ← b), parked"; the place follows."""
    offence = offence_of(offender)
    if offence == "cpu":
        return _cpu_text(offender)
    if offence == "parked":
        return _parked_text(offender)
    if offence == "held":
        return _held_text(offender)
    if offence == "mutex":
        return _mutex_text(offender)
    if offence in _SAMPLED:
        return _sampled_text(service, offender)
    metric, name, happened = OFFENCES[offence]
    count, total, where = offender["count"], service["metrics"].get(metric), ""
    if wording.runs_of(service) > 1:
        # The metric is a median over the runs, but the offenders are one run's.
        total = round(count / offender["share"]) if offender["share"] else None
        where = " in one run"
    amount = units.show(count, "count")
    if total and count <= total:
        amount += f" of {units.show(total, 'count')} ({units.show(count / total, 'share')})"
    at = _parked(offender) if offence == "spurious" else f", {happened}"
    return f"{amount} {name}{where} ({_where(offender)}){at}"


def _parked(entry: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> str:
    return ", parked" if entry["stack"] else ""


def shown_stack(entry: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> list[FrameRecord]:
    """The stack to show: if the runtime made the ready call, as for a timer, the woken goroutine's."""
    woken = cast("OffenderRecord", entry).get("woken_stack") or []
    return woken if woken and not has_own_code(entry["stack"]) else entry["stack"]


def has_own_code(stack: Sequence[FrameRecord]) -> bool:
    """Whether a frame of it is the program's own code."""
    return any(map(_is_own, stack))


def up_to_own_code(stack: list[FrameRecord]) -> list[FrameRecord]:
    """The stack up to the outermost frame of the program's own code, without what calls that: net/http, or C.
    All of it without such a frame.
    """
    own = [number for number, frame in enumerate(stack) if _is_own(frame)]
    return stack[: own[-1] + 1] if own else stack


def _is_own(frame: FrameRecord) -> bool:
    return symbols.is_own(frame["function"] or "?")


# Below a stack that `is_cut_short`.
CUT_SHORT = "The stack ends in C or assembly code, which keeps no frame pointers."


def is_cut_short(stack: Sequence[FrameRecord]) -> bool:
    return symbols.is_cut_short([(frame["function"] or "?", frame["file"] or "") for frame in stack])


def lead_in(entry: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> str:
    """The words between an entry's text and its stack: " at", or ", no stack" if one is missing."""
    if shown_stack(entry):
        return " at"
    stackless = entry.get("offence") == "unclaimed" or entry.get("count") == 0
    return "" if stackless else ", no stack"


def _sampled_text(service: ServiceRecord, offender: OffenderRecord) -> str:
    """ "99.8 % of 50,123 ready calls, made". Without its count, which is estimated from a sample."""
    metric, name, happened = _SAMPLED[offender["offence"]]
    counted = service["metrics"].get(metric)
    futile = service["metrics"].get("futile_calls") if offender["offence"] == "io" else None
    if counted is not None and futile:  # which are recorded apart
        counted = max(0, counted - futile)
        name = "other I/O calls"
    total = f"{units.show(counted, 'count')} " if counted is not None else ""
    outcome = offender.get("outcome")
    where = f" ({_where(offender)}, {outcome})" if outcome else ""
    if offender["offence"] == "woken":
        locked = ", of goroutines locked to a thread" if offender.get("locked") else ""
        where = f" ({_where(offender)}){locked}"
    woken = offender.get("woken_stack") or []
    if woken and shown_stack(offender) is woken:
        by = f" by {one_line(offender['stack'][0]['function'] or '?')}" if offender["stack"] else ""
        happened = f"made{by}, woke the goroutine parked"
    name = name.removesuffix("s") if counted == 1 else name
    return f"{units.show(offender['share'], 'share')} of {total}{name}{where}, {happened}"


def woken_text(entry: OffenderRecord | SlowWakeupRecord) -> str:
    """ "which woke the goroutine parked at pool.go:31 main.worker", of a ready call.

    Empty if that isn't known, or is what shown_stack returns.
    """
    woken = cast("OffenderRecord", entry).get("woken_stack") or []
    known = bool(woken) and shown_stack(entry) is not woken
    locked = f", {_LOCKED}" if entry.get("locked") else ""
    return f"which woke the goroutine parked{place(woken)}{locked}" if known else ""


_LOCKED = "which is locked to a thread"


def _cpu_text(offender: OffenderRecord) -> str:
    """ "97.8 % of 495 CPU samples, running"."""
    share = offender["share"] or 0
    taken = round(offender["count"] / share) if share else None
    samples = f"{units.show(taken, 'count')} CPU sample{'s' * (taken != 1)}"
    return f"{units.show(share, 'share')} of {samples}, running"


def _held_text(offender: OffenderRecord) -> str:
    """ "20 writes (write on tcp a → b), held back for 41.2 ms each, made"; the place follows."""
    each = units.show((offender.get("held_ns") or 0) / offender["count"], "ns")
    count = units.show(offender["count"], "count")
    if offender["count"] == 1:
        return f"1 write ({_where(offender)}), held back for {each}, made"
    return f"{count} writes ({_where(offender)}), held back for {each} each, made"


def _mutex_text(offender: OffenderRecord) -> str:
    """ "99.5 % of 2.54 s that goroutines waited for mutexes, in sync.Mutex.Lock,"; the place follows."""
    waited, share = offender.get("waited_ns") or 0, offender["share"] or 0
    total = f"{units.show(waited / share / 1e9, 's')} " if share else ""
    called = f", in {one_line(offender.get('lock') or '')}," if offender.get("lock") else ","
    return f"{units.show(share, 'share')} of {total}that goroutines waited for mutexes{called}"


def _parked_text(offender: OffenderRecord) -> str:
    """ "30 goroutines (read on tcp a, peers b, c): 20 more than at the start, parked"; the place follows."""
    gone, growth = offender.get("abandoned", 0), offender.get("growth", 0)
    peers = offender.get("peers") or []
    ends = ", ".join(peers)
    if service := offender.get("peer_service"):
        ends = f"{service} ({ends})"
    known_as = f"{'peers' if len(peers) > 1 else 'peer'} {ends}" if peers else ""
    if not offender["count"]:
        ends = ", ".join(filter(None, (offender.get("local"), known_as)))
        what = f"{units.show(gone, 'count')} {offender['fd_type']} descriptor"
        what += " whose peer has closed" if gone == 1 else "s whose peers have closed"
        them = "it" if gone == 1 else "them"
        reader = f"; who read from {them} was parked" if offender["stack"] else ""
        return one_line(f"{what}, and nobody is parked on {them} ({ends}){reader}")
    found = [
        f"{units.show(number, 'count')} {what}"
        for number, what in (
            (offender.get("stuck", 0), "with data to read"),
            (gone, "whose peers have closed"),
            (growth, "more than at the start"),
        )
        if number
    ]
    on = f"{offender['direction']} on {offender['fd_type'] or 'descriptors'} {offender.get('local') or ''}"
    where = ", ".join(filter(None, (on.rstrip(), known_as)))
    more = f": {', '.join(found)}" if found else ""
    who = f"goroutine{'s' * (offender['count'] != 1)}"
    return one_line(f"{units.show(offender['count'], 'count')} {who} ({where}){more}, parked")


def most_futile(service: ServiceRecord) -> str:
    """ "splice, EAGAIN": what most of the futile I/O calls were; empty where there were none."""
    worst = max(service.get("futile", []), key=lambda entry: entry["count"], default=None)
    return f"{worst['syscall']}, {worst['outcome']}" if worst else ""


def slow_text(
    service: ServiceRecord,
    wakeup: SlowWakeupRecord | SlowAnswerRecord,
    more: Sequence[SlowWakeupRecord | SlowAnswerRecord] = (),
) -> str:
    """ "12.3 ms to run (read on tcp a ← b, goroutine 18; 1 of 5 running), parked"; the place follows.

    For an answer "response 88.1 ms = 9.7 poll delay + 78.4 wake-to-run (write on tcp a → b, …)".
    more: shorter ones at that place.
    """
    goroutine = wakeup.get("goroutine")
    who = "" if goroutine is None else f", goroutine {goroutine}"
    threads = _threads_at(service, wakeup.get("at_ms"))
    answer: Mapping[str, Any] = wakeup
    last: Mapping[str, Any] = more[-1] if more else {}
    shortest = units.show(last.get("ns", last.get("latency_ns")), "ns")
    others = f", and {len(more):,} more from {shortest}" if more else ""
    if "what" in answer:
        parts = {name: answer[key] for key, name in _PARTS.items() if answer.get(key)}
        took = f"{answer['what'].replace('_', ' ')} {units.show_sum(answer['ns'], parts)}"
        return f"{took} ({_where(wakeup)}{who}{threads}){others}"
    took = units.show(answer["latency_ns"], "ns")
    return f"{took} to run ({_where(wakeup)}{who}{threads}){others}{_parked(wakeup)}"


# Part of an answer's time -> its name.
_PARTS = {
    "poll_delay_ns": "poll delay",
    "wake_to_run_ns": "wake-to-run",
    "unparked_ns": "before the read",
    "handling_ns": "handling",
}


def budget_text(budget: Mapping[str, Any]) -> str:
    """ "response p99 88.1 ms = 9.7 poll delay + 78.0 wake-to-run + 0.4 handling".

    The parts are rounded so that they add up as shown; parts shown as 0 are left out.
    """
    family, _, which = budget["metric"].rpartition("_")
    parts = {name: budget[key] for key, name in _PARTS.items() if budget.get(key)}
    return f"{family.replace('_', ' ')} {which} {units.show_sum(budget['ns'], parts)}"


def budgets_of(service: ServiceRecord) -> list[str]:
    """A line for each percentile with known parts."""
    return [budget_text(budget) for budget in service.get("budgets", ())] if wording.trusted(service) else []


def _threads_at(service: ServiceRecord, at_ms: float | None) -> str:
    """What the service's threads were doing in the interval in which a late wakeup finally ran."""
    if at_ms is None:
        return ""
    begin = 0.0
    for point in service.get("timeline", []):
        if point["t_ms"] >= at_ms:
            count = f"{point['threads_running']:g}" if point["threads_running"] else "none"
            running = f"{count} of {point['threads']} threads running"
            if service["metrics"].get("run_delay_seconds") is None:
                return f"; {running}"
            waited, passed = point["run_delay_ns"], (point["t_ms"] - begin) * 1e6
            return (
                f"; sampled over {units.show(passed, 'ns')}: {running}, and threads waited "
                f"{units.show(waited, 'ns')} for a CPU"
            )
        begin = point["t_ms"]
    return ""


def quota_text(cgroup: CpuQuotaRecord) -> str:
    quota, period = cgroup["quota_us"], cgroup["period_us"]
    allows = ""
    if quota is not None and period:
        cpus = f"{quota / period:.3g} {'CPU' if quota == period else 'CPUs'}"
        allows = f"allows {cpus} ({quota / 1000:g} ms every {period / 1000:g} ms) and "
    stopped = f"{cgroup['throttled_periods']:,} of {cgroup['periods']:,} periods"
    return f"the cgroup {cgroup['name']} {allows}stopped the service in {stopped}"


def _where(wakeup: OffenderRecord | SlowWakeupRecord | SlowAnswerRecord) -> str:
    arrow = "→" if wakeup["direction"] == "write" else "←"
    ends = f" {arrow} ".join(end for end in (wakeup.get("local"), wakeup.get("peer")) if end)
    what = f"{wakeup.get('syscall') or wakeup['direction']} on {wakeup['fd_type'] or 'a descriptor'}"
    return one_line(f"{what} {ends}")


def frame_location(frame: FrameRecord) -> str:
    """ "server/fault_dup.go:33"."""
    file = one_line(frame["file"] or "?")
    return f"{file}:{frame['line']}" if frame["line"] else file


def place(stack: Sequence[FrameRecord]) -> str:
    """ " at server/fault_dup.go:33 main.(*watcher).run"; empty without a stack."""
    if not stack:
        return ""
    return f" at {frame_location(stack[0])} {one_line(stack[0]['function'] or '')}".rstrip()
