"""The one representation of a measured test: plain JSON, from which every report is rendered.

Records are plain because under pytest-xdist they travel from the workers to the controller, and because saved
files are rendered and compared without the test run. `recording` makes them. Times are in ns unless the name
says otherwise, metrics in their canonical units (see units.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pytest_netpoll.model.evidence import Cause, Offence
from pytest_netpoll.model.verdict import Outcome

# A TypedDict in two halves: keys of the "Extra" half may be absent from a file, as in one written before they
# were invented. `recording.build` sets all of them.


class FrameRecord(TypedDict):
    """One frame of a Go stack, whose innermost frame comes first.

    function, file, line: None if the program's tables don't have it.
    """

    function: str | None
    file: str | None
    line: int | None


class _OffenderExtra(TypedDict, total=False):
    unlocks: bool
    lock: str | None
    waited_ns: int | None
    offence: Offence
    outcome: str | None
    runtime: bool
    cause: Cause | None
    bytes: int | None
    filled: int
    not_blocking: int
    collects: bool
    locked: bool
    held_ns: int | None
    local: str | None
    peer: str | None
    woken_stack: list[FrameRecord]
    growth: int
    abandoned: int
    stuck: int
    closed: int
    peers: list[str]
    peer_service: str | None
    rules: list[str]


class OffenderRecord(_OffenderExtra):
    """A place in the code that wastes or causes something, or a descriptor without such a place.

    offence: "spurious": goroutines woken for nothing; "stale": stale retries; "unclaimed": events that
    found nobody waiting, without a stack; "ready": callers of runtime.ready; "futile", "io": I/O calls;
    "cpu": CPU samples; "woken": goroutines that the network woke; "held": writes that Nagle's algorithm
    held back; "mutex": goroutines that waited for a sync.Mutex or sync.RWMutex, over all looks at them;
    "parked": see Parked. count: estimated from a sample for ready calls, I/O calls and woken
    goroutines. share: 0-1, of all such in the service, or in the sample; None in files from before it was
    recorded. outcome: how the I/O calls ended, such as "EAGAIN"; None for other offences. runtime: of
    ready calls, whether the runtime made them for its own background work. cause: of spurious wakeups and
    stale retries; None if unknown. bytes: what the I/O calls moved, estimated. filled: of "io", those
    that read as many bytes as they asked for, estimated; only of read and recvfrom. not_blocking: of CPU
    samples, those in a runtime call that only checks, such as that of a select with a default. collects: of
    CPU samples, whether they are in a call of runtime.GC, which only the program makes. local,
    peer: None if they differ between the goroutines at this place. stack: starts at your own code; empty
    if the kernel had no room for it. woken_stack: of ready calls, where the woken goroutine had been
    parked. locked: of ready calls and woken goroutines, whether the woken goroutine is locked to a thread.
    held_ns: of "held", for how long in total. unlocks: of ready calls, whether a mutex was unlocked there,
    which woke a goroutine that waited for it. lock: of "mutex", what was waited for, such as
    "sync.RWMutex.RLock"; None if unknown. waited_ns: for how long in total; `share` is the share of this
    time. growth, abandoned, stuck, peers: of "parked" only, see Parked. peer_service: of
    "parked", the service of the test that has all these peers; None if it isn't one. rules: the codes of
    the broken rules that it is evidence of.
    """

    count: int
    share: float | None
    direction: str
    syscall: str | None
    fd_type: str | None
    stack: list[FrameRecord]


class ParkedRecord(TypedDict):
    """Goroutines parked at one place when the window closed: the offenders of the offence "parked".

    count: 0 for descriptors on which no goroutine is parked; stack is then where who read from them had been
    parked, if known. growth: how many more than when the window
    opened. abandoned: descriptors whose peers closed meanwhile. stuck: goroutines with data to read that a
    poll had reported. peers: some of the descriptors' other ends. stack: where they are parked, innermost
    first.
    """

    count: int
    growth: int
    abandoned: int
    stuck: int
    direction: str
    fd_type: str | None
    local: str | None
    peers: list[str]
    stack: list[FrameRecord]


class _SlowWakeupExtra(TypedDict, total=False):
    goroutine: int | None
    syscall: str | None
    local: str | None
    peer: str | None
    at_ms: float | None


class SlowWakeupRecord(_SlowWakeupExtra):
    """One of the wakeups that took longest to run.

    latency_ns: from the poll's return to that of the goroutine's next I/O call. at_ms: when it ran, since the
    window opened. goroutine: its id, as in a traceback. syscall, local, peer: None or absent if unknown.
    stack: where the reader or writer was parked.
    """

    latency_ns: int | float
    direction: str
    fd_type: str | None
    stack: list[FrameRecord]


class SlowAnswerRecord(TypedDict):
    """One of the slowest reads or answers.

    what: "queue_delay" or "response". ns: how long it took, of which poll_delay_ns, wake_to_run_ns,
    unparked_ns and handling_ns are the parts. at_ms: since the window opened. goroutine: its id. stack: where
    the read, or the answering write, was made.
    """

    what: str
    ns: int | float
    poll_delay_ns: int | float
    wake_to_run_ns: int | float
    unparked_ns: int | float
    handling_ns: int | float
    at_ms: float | None
    goroutine: int | None
    direction: str
    syscall: str | None
    fd_type: str | None
    local: str | None
    peer: str | None
    stack: list[FrameRecord]


class _TimelineExtra(TypedDict, total=False):
    blocking_polls: int
    timed_polls: int
    nonblocking_polls: int
    empty_polls: int
    timeout_polls: int
    break_polls: int
    throttled_ns: int | None
    runq_max: int | None
    ps_running: float | None
    spinning: float | None
    reads: int
    answers: int
    queue_delay_ns: int
    poll_delay_ns: int
    wake_to_run_ns: int
    handling_ns: int


class CorrelationRecord(TypedDict):
    """How two rates of the timeline went together.

    metric, other: what was compared, per second. coefficient: Pearson's; None for too few intervals, or if
    one of them never changed. intervals: how many there were.
    """

    metric: str
    other: str
    coefficient: float | None
    intervals: int


class CpuQuotaRecord(TypedDict):
    """A cgroup whose CPU quota bound the service.

    quota_us: CPU time in each period, None if there is no quota. period_us: None as well. periods: in which
    the cgroup wanted to run. throttled_periods: in which the quota stopped it. throttled_ns: for how long,
    over all CPUs.
    """

    name: str
    quota_us: int | None
    period_us: int | None
    periods: int
    throttled_periods: int
    throttled_ns: int


class FutileCalls(TypedDict):
    """Futile I/O calls of one syscall and outcome."""

    syscall: str
    outcome: str
    count: int


class TimelineRecord(_TimelineExtra):
    """One interval of the window, about 100 ms long.

    t_ms: its end, since the window opened. wakeups: in the interval, as all counts here. threads: alive at
    its end. threads_running: of these, on a CPU or waiting for one. run_delay_ns: that threads waited for a
    CPU, in total. throttled_ns: that a CPU quota stopped the service. ps_running, spinning: Ps that ran Go
    code, and threads that looked for work, on average. reads: reads that took data. answers: reads that were
    answered. queue_delay_ns, poll_delay_ns, wake_to_run_ns, handling_ns: sums over them.
    """

    t_ms: float
    wakeups: int
    productive: int
    spurious: int
    polls: int
    threads: int
    threads_running: float
    run_delay_ns: int


class _BreachExtra(TypedDict, total=False):
    kind: Literal["max", "min"]
    text: str
    fix: str | None


class BreachRecord(_BreachExtra):
    """A broken limit, or a broken forbidden rule.

    metric: of a rule, its code. measured: of a rule, what was counted. text: all of it in one line for
    people. fix: None if there is none.
    """

    service: str
    metric: str
    measured: int | float
    limit: int | float


class RegressionRecord(TypedDict):
    """What regressed beyond its tolerance.

    tolerance: as given in --netpoll-compare-fail. again: the values when it was remeasured. text: all of it
    in one line for people.
    """

    service: str
    metric: str
    measured: int | float
    baseline: int | float
    tolerance: str
    again: list[int | float]
    text: str


class ComparedService(TypedDict):
    """A service in the baseline.

    metrics: the baseline's values that exist.
    """

    name: str
    metrics: dict[str, int | float | None]


class ChangeRecord(TypedDict):
    """A metric whose value differs from the baseline's by more than chance.

    text: all of it in a few words.
    """

    service: str
    metric: str
    measured: int | float
    baseline: int | float
    text: str


class _NumberExtra(TypedDict, total=False):
    rounds: int
    base_rounds: int | None


class NumberRecord(_NumberExtra):
    """A number of both sides, each measured in several rounds.

    base, head: medians. change, low, high: the change and the ends of its 95 % interval; low and high are
    None if there were too few rounds. relative: whether these are fractions of the base, or differences in
    the metric's unit. exact: each side had one value in all rounds. text: the change in a few words. rounds:
    of the head. base_rounds: of a saved baseline, or None if both sides were measured in turns.
    """

    service: str
    metric: str
    base: int | float
    head: int | float
    change: float
    low: float | None
    high: float | None
    relative: bool
    exact: bool
    text: str


class UndecidedRecord(TypedDict):
    """A tolerance that all rounds could not decide.

    enough: how many rounds might decide it; None if the change lies at the tolerance. text: all of it in a
    few words.
    """

    service: str
    metric: str
    tolerance: str
    enough: int | None
    text: str


class _ComparisonExtra(TypedDict, total=False):
    judged: bool
    changes: list[ChangeRecord]
    commit: str | None
    numbers: list[NumberRecord]
    undecided: list[UndecidedRecord]


class ComparisonRecord(_ComparisonExtra):
    """A test against a baseline, or against the base of --netpoll-against.

    baseline: its name, or the revision as given. outcome: "new" if the baseline doesn't have the test. notes:
    a line for each thing that was not compared or not confirmed. measured: how often the test was measured;
    against a base, the number of rounds. judged: whether there were tolerances; without any, "passed" means
    nothing more. changes: what differs from a baseline by more than chance, better or worse. commit: of the
    base; None for a saved baseline. numbers: all that was compared, with intervals; empty for a baseline with
    too few rounds. undecided: tolerances that stayed undecided.
    """

    baseline: str
    outcome: Literal["passed", "regressed", "unmeasured", "new"]
    regressions: list[RegressionRecord]
    notes: list[str]
    measured: int
    services: list[ComparedService]


class ReasonRecord(TypedDict):
    """What happened, its cause, and how to fix it, each in one line."""

    what: str
    why: str | None
    fix: str | None


class RuleRecord(TypedDict):
    """A rule that a service breaks.

    text: what was seen and what caused it. line: "main.go:33", None if no code was recorded. forbidden: for
    this test.
    """

    code: str
    name: str
    text: str
    line: str | None
    fix: str
    forbidden: bool


class UncheckedRule(ReasonRecord):
    """A forbidden rule whose evidence was not available."""

    code: str
    name: str


class BudgetRecord(TypedDict):
    """What one percentile of the response times, or of the queue delays, consists of.

    metric: such as "response_p99". ns: its value, of which poll_delay_ns, wake_to_run_ns, unparked_ns and
    handling_ns are the parts. unparked_ns: waiting for a goroutine that was not parked.
    """

    metric: str
    ns: float
    poll_delay_ns: float
    wake_to_run_ns: float
    unparked_ns: float
    handling_ns: float


class _ServiceExtra(TypedDict, total=False):
    rules: list[RuleRecord]
    unchecked: list[UncheckedRule]
    unmeasured: str | None
    why_unmeasured: ReasonRecord | None
    gomaxprocs: int | None
    runs: dict[str, list[int | float | None]]
    histogram: dict[str, int]
    unexplained: dict[str, ReasonRecord]
    io_outcomes: dict[str, int]
    futile: list[FutileCalls]
    parked: list[ParkedRecord] | None
    timeline: list[TimelineRecord]
    correlation: CorrelationRecord
    cgroups: list[CpuQuotaRecord]
    delays: dict[str, dict[str, int]]
    budgets: list[BudgetRecord]
    slow_answers: list[SlowAnswerRecord]
    absent: dict[str, ReasonRecord]
    estimates: list[str]
    columns: dict[str, int | float | str | None]


class ServiceRecord(_ServiceExtra):
    """One service in the window.

    metrics: every metric, None if it was not measured. unmeasured: why none of them is exact, or None.
    why_unmeasured: the same in its parts. gomaxprocs: None if unknown. runs: each metric in each of several
    runs, whose medians `metrics` then are; empty for a single run. histogram: latency bucket -> latencies in
    it. unexplained: evidence that a limit asks for -> why it could not be recorded. io_outcomes: how the I/O
    calls ended -> calls, which add up to io_calls. futile: the futile ones among them. parked: None if it was
    not asked for. rules: those that it breaks, forbidden or not. unchecked: forbidden rules that could not be
    checked. timeline: in order of time. correlation: of two rates of the timeline. cgroups: whose CPU quota
    bound the service, the one that stopped it longest first. delays: as histogram, for "queue_delay",
    "poll_delay", "handling" and "response". budgets: the parts of the median and the p99 of the responses, or
    of the queue delays if there are no responses. slow_answers: the slowest reads and answers. absent: metric
    -> why it is None, if more is known than the metric's own reason. estimates: the metrics that are only a
    rough estimate by the Go runtime here, because no limit asked for more; comparisons and baselines leave
    them out. columns: heading -> value, what the hook pytest_netpoll_columns adds to the tables. slowest: the
    slowest wakeups. offenders: what wastes or causes something, the worst first.
    """

    name: str
    pid: int | None
    executable: str | None
    go_version: str | None
    metrics: dict[str, int | float | None]
    offenders: list[OffenderRecord]
    slowest: list[SlowWakeupRecord]


class DeathRecord(TypedDict):
    """A service that ended without being stopped.

    how: in words. fix: what to do if it is meant to end, or None. last_words: its panic, or its last lines.
    """

    service: str
    how: str
    fix: str | None
    last_words: str


class _WindowExtra(TypedDict, total=False):
    limits: dict[str, int | float]
    breaches: list[BreachRecord]


class WindowRecord(_WindowExtra):
    """One `netpoll.measure()` block of a test.

    number: of the test's windows, from 1, in the order in which they closed. name: as given to measure(), or
    None. read: the services whose numbers the test asked for, the last one last. diagnosis: a text for each
    rule that is broken. limits: as given to measure(). breaches: of its limits and forbidden rules.
    """

    number: int
    name: str | None
    window_seconds: float
    read: list[str]
    diagnosis: list[str]
    services: list[ServiceRecord]


class ArtifactRecord(TypedDict):
    """A file that --netpoll-artifacts wrote.

    what: its content. command: opens it, if run in its directory.
    """

    name: str
    what: str
    bytes: int
    command: str


class ArtifactsRecord(TypedDict):
    """The artifacts of one test.

    notes: why others are missing.
    """

    directory: str
    files: list[ArtifactRecord]
    notes: list[ReasonRecord]


class _TestExtra(TypedDict, total=False):
    reasons: list[ReasonRecord]
    file: str
    line: int
    error: str | None
    xfail: str | None
    diagnosis: list[str]
    comparison: ComparisonRecord | None
    toolchain: str | None
    requests_per_second: float | None
    gate: Outcome
    deaths: list[DeathRecord]
    windows: list[WindowRecord]
    windows_left_out: int
    forbidden: list[str]
    artifacts: ArtifactsRecord | None


class TestRecord(_TestExtra):
    """One test, an element of "tests" in the JSON report.

    outcome: of the test. reason: a line for each cause, and "  fix: …" if one is known; None if passed.
    reasons: the same in their parts. breaches: broken limits and forbidden rules, also those that report mode
    let pass. file: relative to the root directory. line: of the test, from 1. error: the first line of the
    test's own failure, which is then also the reason. xfail: why pytest expected the failure, or None.
    diagnosis: a text for each fault recognized in a service: what was seen, what causes it, how to fix it.
    comparison: against a baseline or a base, None if there is none. toolchain: which of several Go
    toolchains, as in the nodeid. requests_per_second: of what the test reported with
    record_property("requests", n). gate: the outcome in gate mode; differs from `outcome` only in report
    mode. deaths: the services that ended without being stopped. windows: of the `netpoll.measure()` blocks;
    if there are very many, only the last ones. windows_left_out: how many others there were.
    forbidden: the codes of the rules that no service may break. artifacts: the files that --netpoll-artifacts
    wrote, or None.
    """

    nodeid: str
    outcome: Outcome
    reason: str | None
    window_seconds: float
    limits: dict[str, int | float]
    breaches: list[BreachRecord]
    services: list[ServiceRecord]


def plain(value: object) -> Any:
    """A copy of `value` that JSON and execnet can carry: no tuples, no NaN, no lone surrogates.

    Surrogates come from file names that are not UTF-8. Values of other types become text.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if value is None or isinstance(value, int):  # bool is an int
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(str(value))
