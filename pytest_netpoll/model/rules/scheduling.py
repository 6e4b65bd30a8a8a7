"""NP4: goroutines that run late, and what uses the CPU meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_netpoll.errors import Reason
from pytest_netpoll.gobinary.symbols import PLUMBING
from pytest_netpoll.model import units
from pytest_netpoll.model.evidence import Offender, TimelinePoint
from pytest_netpoll.model.histogram import bucket_bounds
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.rules.rule import (
    Proof,
    Rule,
    count,
    counted,
    cpu_samples,
    no_cpu_samples,
    not_measured,
    number,
    offenders,
    rate,
    seconds,
    share,
    stack_of,
    wanted,
)

# A wakeup is late from this many ns on; at least this many must be late, and this share of all.
LATE_NS = 5_000_000
LEAST_LATE = 10
LATE_SHARE = 0.1
# The runtime's histogram of scheduling latencies has one event in 8. How many it must have for conclusions,
# and which share of the late wakeups if goroutines are late.
RECORDED_ONE_IN = 8
LEAST_RECORDED = 5
RECORDED_SHARE = 0.25
# CPU time, as a share of the window, that the service must have used, and wanted, to prove that goroutines
# wait for its own ones. On a busy machine it gets little of what it wants.
BUSY_USED = 0.1
BUSY_WANTED = 0.8
# Shares of the CPU samples: in the program's own code, if others wait for that; or in the GC.
RUNNING_SHARE = 0.5
GC_SHARE = 0.4  # the runtime lets it have a quarter of the CPUs while it works
GC_USED = 0.08  # CPU s per second that the GC used; and wanted, as in BUSY_WANTED:
GC_WANTED = 0.2
# And of the code that makes it necessary: allocating goroutines, which assist it, and the program's own code.
# If there is less, it is a large heap's single collection, or one that the program asked for (runtime.GC).
CAUSE_SHARE = 0.1
LEAST_GC = 0.05  # s in all: a short window may hold one collection
# CPU s per wakeup from which on the service certainly has goroutines that use up their time slices.
TIME_SLICE = 0.01
# The share of a late wakeup's delay that threads must have waited for a CPU to explain it.
CPU_WAIT_SHARE = 0.5
# The share of its CPUs that the service may have used itself if other processes are the cause.
OTHERS_SHARE = 0.5
# If only sysmon polls: the most polls a second, the share of them that are non-blocking, and how much of what
# its Ps can use the service used. What it wanted isn't enough: a service that gets less CPU than its messages
# take is always behind, so it doesn't wait for the network either.
SYSMON_RATE = 200
NONBLOCKING_SHARE = 0.95
PS_USED = 0.7
LEAST_EVENTS = 10
# Polls that wait, for each event, from which on most messages come while nothing else is to be done: a client
# that has its requests computed one by one.
WAITED_SHARE = 0.5
# Per CPU that the service may use: how many threads wanted it on average.
CPUS_WANTED = 2

# Wakeups of goroutines locked to a thread: fewer, in all or per second, cost little.
LEAST_HANDOVERS = 20

# Writes held back; agent/constants.py and bpf/netpoll.h say for how long.
LEAST_HELD = 5

_ALLOCATE = "allocate less (reuse buffers, sync.Pool), or raise GOGC, with GOMEMLIMIT as its bound."
_LEAVE_IT = "leave collecting to the runtime: call neither runtime.GC nor debug.FreeOSMemory."

_GC = "runtime.gc"
# Where goroutines that allocate do a part of its work.
_ASSIST = ("runtime.gcDrainN", "runtime.gcAssist")
# Functions that wake a goroutine for a ticker, and after a sleep.
_TIMER = ("time.", "runtime.goroutineReady")
# Functions below one that C calls.
_CALLBACK = ("_cgoexp_", "crosscall2", "runtime.cgocallback")


def _no_times(m: Measurement) -> Reason | None:
    return not_measured(m, "cpu_seconds", "run_delay_seconds")


def _no_cpu(m: Measurement) -> Reason | None:
    """Why it is unknown whether others kept the service from running."""
    unread = None if m.cpus is not None else _unread("the CPUs that the service may use")
    return unread or _no_times(m)


def _no_samples(m: Measurement) -> Reason | None:
    return no_cpu_samples(m) or _no_times(m)


def _unread(what: str) -> Reason:
    return Reason(
        f"{what} could not be read",
        why="its process had ended, or can't be inspected",
        fix="stop it after the test; run pytest as root, or as the service's user",
    )


def _no_ps(m: Measurement) -> Reason | None:
    """Why it is unknown how many threads may run Go, how many CPUs they have, or how long they waited."""
    if m.gomaxprocs is not None and m.cpus is not None:
        return _no_times(m)
    return _unread("GOMAXPROCS, or the CPUs that the service may use,")


def _late(m: Measurement, part: float = 1, least_share: float = LATE_SHARE) -> tuple[int, int]:
    """(wakeups that ran late, resolved wakeups); 0 late ones if they may be chance.

    part: the share of each delay that counts. least_share: of all wakeups.
    """
    late = sum(n for bucket, n in m.snapshot.histogram.items() if bucket_bounds(bucket)[0] * part >= LATE_NS)
    all_of_them = sum(m.snapshot.histogram.values())
    return (late if late >= max(LEAST_LATE, least_share * all_of_them) else 0), all_of_them


def _own_part(m: Measurement) -> float:
    """The part of the time in which the service had the CPU that it wanted, rather than others; 0 if that is
    unknown.
    """
    used, waited = m.cpu_seconds, m.run_delay_seconds
    if not used or waited is None or m.cpus is None:
        return 0.0
    others = min(waited, max(m.cpus * m.window_seconds - used, 0.0))  # the rest are its own threads
    return used / (used + others)


def _late_by_itself(m: Measurement) -> bool:
    """Whether wakeups would run late on an idle machine, too."""
    return _late(m, _own_part(m))[0] > 0


def _lateness(m: Measurement) -> str:
    late, all_of_them = _late(m)
    used, waited = seconds(m.cpu_seconds or 0), seconds(m.run_delay_seconds or 0)
    return (
        f"{count(late)} of {counted(all_of_them, 'wakeup')} ran more than {units.show(LATE_NS, 'ns')} late, "
        f"with {used} of CPU used and {waited} waited for in {seconds(m.window_seconds)}:"
    )


def _own_code(m: Measurement) -> list[Offender]:
    """The CPU samples of the program's own code: neither the GC's nor the scheduler's."""
    return [o for o in cpu_samples(m) if o.stack and o.stack[0].package_root not in PLUMBING]


def _shares(found: Sequence[Offender]) -> float:
    return sum(o.share for o in found)


def _cpu_bound(m: Measurement, running: Sequence[Offender]) -> bool:
    """Whether some goroutines keep the CPU. If there are just more messages than the service can handle,
    woken goroutines wait for each other, each for a short time. One that is never out of messages isn't woken
    for each, but makes I/O calls.
    """
    moved = m.snapshot.io_outcomes.get("data", 0)
    if (m.cpu_seconds or 0) >= TIME_SLICE * max(sum(m.snapshot.histogram.values()), moved):
        return True
    waiting = {wakeup.stack[-1].function for wakeup in m.slowest if wakeup.stack}
    loop = [o for o in running if o.stack[0].function == running[0].stack[0].function]
    return _shares(loop) >= RUNNING_SHARE and not any(o.stack[-1].function in waiting for o in loop)


def _ran_at_once(m: Measurement) -> bool:
    """Whether the runtime recorded far fewer late goroutines than wakeups were late: their readers then ran
    in time, and did something else before they read.
    """
    recorded = m.snapshot.sched_latency or {}
    if sum(recorded.values()) < LEAST_RECORDED:
        return False
    part = _own_part(m)
    late = sum(n for (least, _), n in recorded.items() if least * part >= LATE_NS)
    return RECORDED_ONE_IN * late < RECORDED_SHARE * _late(m, part)[0]


def _starvation(m: Measurement) -> Proof | None:
    late, _ = _late(m)
    used, waited = m.cpu_seconds, m.run_delay_seconds
    running = _own_code(m)
    if not late or used is None or waited is None or _shares(running) < RUNNING_SHARE:
        return None
    if m.throttled_periods or not _late_by_itself(m) or not _cpu_bound(m, running) or _ran_at_once(m):
        return None
    if used < BUSY_USED * m.window_seconds or used + waited < BUSY_WANTED * m.window_seconds:
        return None
    at = f"{running[0].stack[0].function} alone has {share(running[0].share)}"
    return Proof(
        late,
        f"{_lateness(m)} woken goroutines queue behind the service's own CPU-bound ones, which have "
        f"{share(_shares(running))} of its CPU samples; {at}.",
        stack_of(running),
        _fix_with_one_p(m),
        tuple(running),
    )


def _fix_with_one_p(m: Measurement) -> str | None:
    """The fix where CPU-bound work can't have fewer goroutines than GOMAXPROCS; None for the rule's own."""
    if m.gomaxprocs != 1:
        return None
    if m.cpus is None or m.cpus > 1:
        return "raise GOMAXPROCS, which is 1, or give CPU-bound work a process of its own."
    return "give CPU-bound work a process of its own, or the service more than one CPU (GOMAXPROCS is 1)."


def _nobody_polls(m: Measurement) -> Proof | None:
    polls, used, ps = number(m, "polls"), m.cpu_seconds, m.gomaxprocs
    # If wakeups are late, the rules about lateness explain more, unless other processes have the CPU (NP404).
    if used is None or ps is None or m.cpus is None or _late_by_itself(m) or m.throttled_periods:
        return None
    events = number(m, "events")
    few = polls <= SYSMON_RATE * m.window_seconds and events >= LEAST_EVENTS
    if not few or number(m, "nonblocking_polls") < NONBLOCKING_SHARE * polls:
        return None
    # While it has nothing to run, it waits for the next message, and gets it at once.
    if number(m, "blocking_polls") + number(m, "timed_polls") >= WAITED_SHARE * events:
        return None
    if used < PS_USED * min(ps, m.cpus) * m.window_seconds:
        return None
    running = _own_code(m)
    return Proof(
        polls,
        f"{count(number(m, 'nonblocking_polls'))} of {counted(polls, 'poll')} did not block, "
        f"{rate(polls, m)} a second, with GOMAXPROCS={ps} and {seconds(used)} of CPU used in "
        f"{seconds(m.window_seconds)}: there is always a goroutine to run, so only the "
        "runtime's monitor polls the network, every 10 ms. Messages wait for that.",
        stack_of(running),
        _fix_with_one_p(m),
        tuple(running),
    )


def _cpu_quota(m: Measurement) -> Proof | None:
    quota = next((cgroup for cgroup in m.cgroups if cgroup.throttled_periods), None)
    # The quota explains each of them, however many others there are.
    if quota is None or not _late(m, least_share=0)[0]:
        return None
    if not _explained(m, lambda point: point.throttled_ns or 0):
        return None
    size = " (it has ended since)"
    if quota.quota_us is not None and quota.period_us is not None:
        size = f", {quota.quota_us / 1000:g} ms every {quota.period_us / 1000:g} ms,"
    return Proof(
        quota.throttled_periods,
        f"the CPU quota of the cgroup {quota.name}{size} stopped the service in "
        f"{count(quota.throttled_periods)} of {counted(quota.periods, 'period')}: "
        "woken goroutines wait until the next period.",
        stack_of(_own_code(m)),
        evidence=tuple(_own_code(m)),
    )


def _no_throttling(m: Measurement) -> Reason | None:
    return m.absent.get("throttled_periods") if m.throttled_periods is None else None


def _explained(m: Measurement, waited_in: Callable[[TimelinePoint], int]) -> bool:
    """Whether `waited_in` explains most of the late wakeups: it covers enough of the time they took."""
    late = [wakeup for wakeup in m.slowest if wakeup.latency_ns >= LATE_NS]
    explained = 0
    for wakeup in late:
        end, begin = wakeup.at_ms, wakeup.at_ms - wakeup.latency_ns / 1e6
        opened = 0.0
        waited = 0
        for point in m.timeline:
            if opened < end and begin < point.t_ms:
                waited += waited_in(point)
            opened = point.t_ms
        explained += waited >= CPU_WAIT_SHARE * wakeup.latency_ns
    return explained > len(late) / 2


def _machine_busy(m: Measurement) -> Proof | None:
    late, _ = _late(m)
    used, waited = m.cpu_seconds, m.run_delay_seconds
    if not late or used is None or waited is None or m.cpus is None or waited < used:
        return None
    # If it had most of the CPU itself, its threads waited for each other.
    if used > OTHERS_SHARE * m.cpus * m.window_seconds:
        return None
    if not _explained(m, lambda point: point.run_delay_ns):
        return None
    # NP406 or NP403: its threads waited for each other, or for their quota.
    if _too_many_ps(m) is not None or m.throttled_periods:
        return None
    return Proof(
        late,
        f"{_lateness(m)} the machine is short of CPU: other processes use it while the service's threads "
        "wait for it.",
    )


def _running_ps(m: Measurement) -> float | None:
    """The Ps that ran Go code, or waited for a CPU to do so, on average; None if unknown. On a busy machine
    nobody looks in some intervals.
    """
    total = known = begin = 0.0
    for point in m.timeline:
        if point.ps_running is not None:
            total += point.ps_running * (point.t_ms - begin)
            known += point.t_ms - begin
        begin = point.t_ms
    return total / known if known else None


def _too_many_ps(m: Measurement) -> Proof | None:
    used, waited, ps, cpus = m.cpu_seconds, m.run_delay_seconds, m.gomaxprocs, m.cpus
    if used is None or waited is None or ps is None or cpus is None or ps <= cpus:
        return None
    if m.throttled_periods:
        return None  # threads stopped by a quota count as waiting, too
    at_a_time = wanted(m) / m.window_seconds
    # Threads that others keep from running are more at a time, too.
    if used < BUSY_USED * cpus * m.window_seconds or at_a_time * _own_part(m) < CPUS_WANTED * cpus:
        return None
    # Threads in system calls and C code need no P: more Ps don't make more of them.
    running = _running_ps(m)
    if running is not None and running <= cpus:
        return None
    return Proof(
        ps,
        f"GOMAXPROCS is {ps} on {counted(cpus, 'CPU')}: on average {at_a_time:.1f} of the "
        f"service's threads wanted a CPU at a time, so they wait for each other: {seconds(waited)} in "
        f"{seconds(m.window_seconds)}, with {seconds(used)} used.",
        stack_of(_own_code(m)),
        evidence=tuple(_own_code(m)),
    )


def _why_collecting(called: int, assisted: int) -> tuple[str, str | None]:
    """The cause and its fix; None for the rule's own. called: the samples in runtime.GC. assisted: those of
    goroutines that assist the collector because they allocate.
    """
    if called:
        cause = f"The program calls runtime.GC itself, seen in {counted(called, 'sample')}."
        also = " Goroutines that allocate assist the collector, too." if assisted else ""
        return cause + also, None if assisted else _LEAVE_IT
    typically = "Typically the program allocates for each message"
    if assisted:
        return f"{typically}, or GOGC is low for a small heap.", _ALLOCATE
    return f"{typically}, calls runtime.GC itself, or sets a low GOGC for a small heap.", None


def _gc_pressure(m: Measurement) -> Proof | None:
    used = m.cpu_seconds
    # The runtime's background work keeps its own frames (meter/offender_stacks.py).
    collecting = [o for o in cpu_samples(m) if o.stack and o.stack[0].function.startswith(_GC)]
    part = _shares(collecting)
    if used is None or part < GC_SHARE or part * used < max(LEAST_GC, GC_USED * m.window_seconds):
        return None
    if part * wanted(m) < GC_WANTED * m.window_seconds:
        return None
    assists = [o for o in collecting if o.stack[0].function.startswith(_ASSIST)]
    own = _own_code(m)
    if _shares(assists) + _shares(own) < CAUSE_SHARE:
        return None
    called = sum(o.count for o in cpu_samples(m) if o.collects)
    assisted = sum(o.count for o in assists)
    cause, fix = _why_collecting(called, assisted)
    at = [o for o in own if o.collects] if called > assisted else []
    return Proof(
        part * used,
        f"{share(part)} of the CPU samples are in the garbage collector, {seconds(part * used)} of CPU in "
        f"{seconds(m.window_seconds)}. {cause}",
        stack_of(at or own),
        fix,
        tuple(own),
    )


def _from_c(o: Offender) -> bool:
    """Whether the goroutine runs a callback from C, which keeps it on its thread."""
    parked = o.stack if o.offence == "woken" else o.woken_stack
    return any(frame.function.startswith(_CALLBACK) for frame in parked)


def _ticks(o: Offender) -> bool:
    """Whether a timer of its own wakes the goroutine, as it does a main loop that draws: no other goroutine
    can wait in its place.
    """
    return o.offence == "ready" and bool(o.stack) and o.stack[0].function.startswith(_TIMER)


def _thread_handover(m: Measurement) -> Proof | None:
    found = [o for o in offenders(m, "woken", "ready") if o.locked and not _from_c(o) and not _ticks(o)]
    n = sum(o.count for o in found)
    if n < max(LEAST_HANDOVERS, LEAST_HANDOVERS * m.window_seconds):
        return None
    network = sum(o.count for o in found if o.offence == "woken")
    # For a ready call the wakee's stack matters, not the waker's.
    parked = [o.stack if o.offence == "woken" else o.woken_stack for o in found]
    return Proof(
        n,
        f"about {count(n)} wakeups in {seconds(m.window_seconds)}, {count(network)} of them by the network, "
        "were of goroutines locked to their thread (runtime.LockOSThread): the thread that finds such a "
        "goroutine runnable has to wake the goroutine's thread, hand over to it and go to sleep.",
        next(filter(None, parked), ()),
        evidence=tuple(found),
    )


def _no_ready_calls(m: Measurement) -> Reason | None:
    """Why it is unknown which goroutines others woke. Those that the network woke may be enough to prove
    it."""
    if m.ready_calls is not None or _thread_handover(m):
        return None
    return m.absent.get("ready_calls") or Reason("ready calls were not counted", fix="--netpoll-goready=on")


def _write_held_back(m: Measurement) -> Proof | None:
    found = offenders(m, "held")
    n = sum(o.count for o in found)
    if n < LEAST_HELD:
        return None
    each = sum(o.held_ns or 0 for o in found) / n
    return Proof(
        n,
        f"{count(n)} writes stayed in the service's sockets for {units.show(each, 'ns')} each: TCP_NODELAY "
        "is off, so a small segment waits until the peer acknowledges the previous one (Nagle's algorithm). "
        "Typically an answer is written in pieces, and the peer delays its acknowledgement because it waits "
        "for the rest.",
        stack_of(found),
        evidence=tuple(found),
    )


def _no_held_writes(m: Measurement) -> Reason | None:
    return m.unexplained.get("held")


RULES = (
    Rule(
        "NP401",
        "starvation",
        "Woken goroutines wait until the service's own CPU-bound goroutines let them run.",
        f"At least {LEAST_LATE} wakeups, and a tenth of them, that ran more than 5 ms late, and would have "
        "without the part of the time in which others had the CPU; CPU used and waited for, together "
        f"{BUSY_WANTED} s a second or more; at least half of the CPU samples in the program's own code; and "
        f"either {TIME_SLICE * 1000:.0f} ms of CPU for each wakeup and I/O call that moved data, or half "
        "of the samples in one function, in other goroutines than those that were late.",
        "give CPU-bound work fewer goroutines than GOMAXPROCS, or a process of its own.",
        "A machine that is short of CPU (NP404), garbage collection (NP407), and more messages than the "
        "service can handle make goroutines late, too. So does a reader that sleeps before it reads: the "
        "runtime's own histogram (sched_latency) shows that it ran at once.",
        "A report is computed in the background by as many goroutines as GOMAXPROCS (example_project: "
        "-fault starve).",
        _starvation,
        lambda m: _no_samples(m) or _no_cpu(m),
        offences=("cpu",),
    ),
    Rule(
        "NP402",
        "nobody-polls",
        "All Ps are always busy, so the network is polled only every 10 ms.",
        f"Polls that do not block, {share(NONBLOCKING_SHARE, 0)} of them or more, and at most "
        f"{SYSMON_RATE} a second; fewer than one poll that waits for every two events; threads that run for "
        f"{share(PS_USED, 0)} of what the Ps can use; and no wakeups that are late as in NP401, which "
        "explains more.",
        "let CPU-bound goroutines sleep, use fewer of them than GOMAXPROCS, or give them their own process.",
        "A service that is busy with its own messages polls thousands of times a second. One that gets too "
        "little CPU for its messages, on a busy machine, always has one to handle and polls rarely. One "
        "client whose requests take long to compute gets its answers one by one: between them, the service "
        "waits for the next.",
        "Goroutines that compute for 50 µs and yield, forever.",
        _nobody_polls,
        _no_ps,
        ("cpu",),
    ),
    Rule(
        "NP403",
        "cpu-quota",
        "The CPU quota of the service's cgroup, or of one above it, stops it until the next period.",
        f"At least {LEAST_LATE} wakeups that ran more than 5 ms late, and a quota that stopped the service "
        "(throttled_periods) while most of the slowest wakeups were on their way.",
        "raise the quota, or use less CPU time.",
        "A service that starves itself (NP401) or a busy machine (NP404), but without periods in which the "
        "quota stopped it.",
        "A service with more work than the limit of its container allows.",
        _cpu_quota,
        _no_throttling,
        offences=("cpu",),
    ),
    Rule(
        "NP404",
        "machine-busy",
        "The machine is short of CPU: the service's threads wait while other processes run.",
        "Late wakeups as in NP401; threads that waited for a CPU longer than they ran, also while most of "
        "the slowest wakeups were on their way; and less than half of its CPUs used by the service itself.",
        "run less beside the test, or give the machine more CPUs.",
        "A service that starves itself (NP401), or whose GOMAXPROCS is too high (NP406), or whose threads in "
        "syscalls and C code use the CPU.",
        "Any service, beside a compiler.",
        _machine_busy,
        _no_cpu,
    ),
    Rule(
        "NP405",
        "thread-handover",
        "Goroutines that are locked to a thread (runtime.LockOSThread) keep being woken, and each time one "
        "thread hands over to another.",
        f"At least {LEAST_HANDOVERS} wakeups a second, by the network or by another goroutine, of goroutines "
        "whose g.lockedm is set as they are woken. Needs uprobes for those that goroutines wake.",
        "wait in an unlocked goroutine and let the locked one do only what needs its thread, or call "
        "runtime.UnlockOSThread.",
        "A service whose goroutines aren't locked may have as many wakeups. A locked goroutine that is "
        "rarely woken costs nothing. A Go callback that C called is locked, too, but its lock can't be left "
        "out; that is not reported. Neither is a main loop that a ticker or a sleep wakes, such as one that "
        "draws.",
        "A handler that calls runtime.LockOSThread for a C library and then reads its connection.",
        _thread_handover,
        _no_ready_calls,
        offences=("woken", "ready"),
    ),
    Rule(
        "NP406",
        "more-Ps-than-CPUs",
        "GOMAXPROCS is more than the CPUs that the service may use, and its threads wait for each other.",
        f"GOMAXPROCS, the CPUs that the process may run on, at least {share(BUSY_USED, 0)} of them used, "
        f"and on average {CPUS_WANTED} threads for each of them that ran or waited for one, without the part "
        "of the time in which others had them. More Ps than CPUs must have run Go code on average, if that "
        "is known.",
        "leave GOMAXPROCS to the runtime, or set it to the number of CPUs.",
        "A machine that is short of CPU (NP404), because other processes use it: a burst of messages also "
        "makes many threads wait there. Threads in long syscalls or C code, which GOMAXPROCS doesn't "
        "limit.",
        "A service with GOMAXPROCS=48 in a cpuset of 2.",
        _too_many_ps,
        _no_ps,
        ("cpu",),
    ),
    Rule(
        "NP407",
        "gc-pressure",
        "The garbage collector uses a large part of the service's CPU time.",
        f"At least {share(GC_SHARE, 0)} of the CPU samples in the garbage collector, worth {GC_USED} s "
        f"of CPU a second, and {LEAST_GC} s in all; and {share(CAUSE_SHARE, 0)} in the program's own code "
        "and in goroutines that assist the collector because they allocate.",
        f"{_ALLOCATE} If the program calls runtime.GC itself, {_LEAVE_IT}",
        "A computation (NP401) uses as much CPU, but in the program's own code. A large heap's single "
        "collection, such as that of debug.FreeOSMemory, has no goroutines that allocate beside it.",
        "A handler that allocates for each message, with GOGC=5, or that calls runtime.GC.",
        _gc_pressure,
        _no_samples,
        offences=("cpu",),
    ),
    Rule(
        "NP408",
        "write-held-back",
        "The kernel holds back the end of an answer until the client acknowledges its beginning.",
        f"At least {LEAST_HELD} writes to TCP connections without TCP_NODELAY that returned while a small "
        "segment waited for an acknowledgement and nothing else, and that were sent 20 to 200 ms later. "
        "Needs the kernel's BTF.",
        "write an answer in one piece (bufio.Writer, net.Buffers), or leave TCP_NODELAY on, as Go does.",
        "A handler that takes 40 ms for the second half of its answer, a client that acknowledges at once, "
        "and one that does not read (its window is full).",
        "A handler that calls SetNoDelay(false) and writes a header and a body.",
        _write_held_back,
        _no_held_writes,
        ("held",),
    ),
)
