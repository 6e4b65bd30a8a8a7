"""NP2: I/O calls and CPU time that achieve nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.rules.rule import (
    Proof,
    Rule,
    count,
    counted,
    cpu_samples,
    no_cpu_samples,
    not_measured,
    offenders,
    rate,
    seconds,
    share,
    stack_of,
    wanted,
)

# Futile calls: a healthy service has none, and a few may be a library's checks.
LEAST_FUTILE = 100
# A loop makes many of them for each call that reads or accepts something. A call that fails for each request,
# such as writing a line to a full disk, is no loop, though requests may follow each other within 1 ms.
FUTILE_PER_READ = 10
# And for each second of a CPU: real loops make 500,000 or more. If a computation checks now and then whether
# its client has left, it makes fewer.
FUTILE_RATE = 50_000

# A loop that only checks: CPU time that it used, and that it wanted, in s per second; and the share of its
# samples in calls that check.
LEAST_BURNT = 0.1
LEAST_WANTED = 0.25
LOOKING_SHARE = 0.6

# Reads that are too small: how many, how many per wakeup, and bytes each; and the share of them that got as
# many bytes as they asked for. A read with room for more takes the whole message.
LEAST_READS = 200
READS_PER_WAKEUP = 10
SMALL_READ = 16
FILLED_SHARE = 0.8
# The same code as in net/http.
_HTTP2 = "golang.org/x/net/http2."


def _taken(m: Measurement) -> float:
    """How many calls read or accepted something; if I/O calls were not recorded, how many moved data."""
    calls = offenders(m, "io")
    if not calls:
        return m.snapshot.io_outcomes.get("data", 0)
    return sum(o.count for o in calls if o.direction == "read" and o.outcome == "data")


def _spin(
    text: str, among: Collection[str] = (), but: Collection[str] = ()
) -> Callable[[Measurement], Proof | None]:
    """A check of the futile calls with an outcome in `among`, or with any outcome not in `but`."""

    def concerns(outcome: str | None) -> bool:
        return outcome in among if among else outcome not in but

    def prove(m: Measurement) -> Proof | None:
        kinds = {kind: n for kind, n in m.snapshot.futile.items() if concerns(kind[1])}
        n = sum(kinds.values())
        if m.cpu_seconds is None:
            return None
        # One loop uses one CPU at most; others may be busy with something else.
        looping = min(m.cpu_seconds, m.window_seconds)
        if n < max(LEAST_FUTILE, FUTILE_PER_READ * _taken(m), FUTILE_RATE * looping):
            return None
        syscall, outcome = max(kinds, key=lambda kind: kinds[kind])
        found = [o for o in offenders(m, "futile") if concerns(o.outcome)]
        said = text.format(n=count(n), rate=rate(n, m), syscall=syscall, outcome=outcome)
        return Proof(n, said, stack_of(found), evidence=tuple(found))

    return prove


_WITHOUT_PAUSE = (
    "{n} I/O calls in a row ({rate} a second, mostly {syscall}) ended in {outcome}, without data or an event"
)


def _no_cpu_time(m: Measurement) -> Reason | None:
    return not_measured(m, "cpu_seconds")


def _no_cpu(m: Measurement) -> Reason | None:
    return no_cpu_samples(m) or _no_cpu_time(m)


def _only_checks(o: Offender) -> bool:
    return o.not_blocking >= LOOKING_SHARE * o.count


def _busy_loop(m: Measurement) -> Proof | None:
    used = m.cpu_seconds
    if used is None:
        return None
    for loop in cpu_samples(m):
        burnt = loop.share * used
        long = burnt >= LEAST_BURNT * m.window_seconds
        long = long and loop.share * wanted(m) >= LEAST_WANTED * m.window_seconds
        if long and _only_checks(loop):
            return Proof(
                burnt,
                f"{seconds(burnt)} of CPU in {seconds(m.window_seconds)} went to a loop that checks without "
                f"waiting: {share(loop.not_blocking / loop.count)} of its CPU samples are in calls that do "
                "not block, and find nothing. Typically a select with a default, or runtime.Gosched, in a "
                "loop.",
                loop.stack,
                evidence=tuple(o for o in cpu_samples(m) if _only_checks(o)),
            )
    return None


def _unbuffered(m: Measurement) -> Proof | None:
    wakeups = m.wakeups or 0

    def too_small(o: Offender) -> bool:
        small = o.bytes is not None and o.bytes <= SMALL_READ * o.count
        reads = o.outcome == "data" and o.direction == "read" and o.fd_type in ("tcp", "unix")
        reads = reads and o.filled >= FILLED_SHARE * o.count
        # net/http reads HTTP/2 without TLS like this, which its users can't change.
        reads = reads and (
            not o.stack or any(f.is_own and not f.function.startswith(_HTTP2) for f in o.stack)
        )
        return reads and small and o.count >= max(LEAST_READS, READS_PER_WAKEUP * wakeups)

    readers = tuple(filter(too_small, offenders(m, "io")))
    for reader in readers:
        assert reader.bytes is not None
        return Proof(
            reader.count,
            f"about {count(reader.count)} {reader.syscall} calls for {counted(wakeups, 'wakeup')} brought "
            f"{reader.bytes / reader.count:.1f} bytes each. Typically a message is read byte by byte, or "
            "field by field, from the connection itself.",
            reader.stack,
            evidence=readers,
        )
    return None


_PAUSE_FREE = (
    "A driver that checks its connection, or the attempt before a park, makes two such calls in a row: that "
    "is not enough. Nor is a call that fails for each request, such as a line of log for a full disk; or one "
    "by which a computation checks now and then whether its client has left."
)
_FUTILE = (
    f"At least {LEAST_FUTILE} futile calls (the third and further in a row on one descriptor and direction, "
    f"within 1 ms), {FUTILE_PER_READ} for each call that read or accepted something, and {FUTILE_RATE:,} for "
    "each second of a CPU, that "
)

RULES = (
    Rule(
        "NP201",
        "spin-eagain",
        "A loop repeats an I/O call that would block, instead of waiting.",
        _FUTILE + "ended in EAGAIN.",
        "wait for the descriptor: put it into non-blocking mode before os.NewFile, or use the net package's "
        "calls.",
        _PAUSE_FREE,
        "io.Copy from a connection to a full pipe that the runtime does not poll.",
        _spin(_WITHOUT_PAUSE + ": a loop tries again instead of waiting.", among=("EAGAIN",)),
        missing=_no_cpu_time,
        offences=("futile", "io"),
    ),
    Rule(
        "NP202",
        "spin-eof",
        "A loop keeps reading after the end of the file or the connection.",
        _FUTILE + "returned the end of the file.",
        "leave the loop at io.EOF.",
        _PAUSE_FREE,
        "A handler that continues at io.EOF.",
        _spin(_WITHOUT_PAUSE + ": a loop treats the end of the file as no data yet.", among=("end of file",)),
        missing=_no_cpu_time,
        offences=("futile", "io"),
    ),
    Rule(
        "NP203",
        "spin-error",
        "A loop repeats an I/O call that fails.",
        _FUTILE + "ended in the same error.",
        "leave the loop on permanent errors, and pause before you retry after temporary ones.",
        _PAUSE_FREE,
        "An accept loop that ignores EMFILE (example_project: -fault spin).",
        _spin(_WITHOUT_PAUSE + ": a loop ignores the error.", but=("EAGAIN", "end of file")),
        missing=_no_cpu_time,
        offences=("futile", "io"),
    ),
    Rule(
        "NP204",
        "busy-loop",
        "A goroutine checks for something in a loop that never waits.",
        f"CPU samples of one function, that ran or waited for a CPU for at least {LEAST_WANTED} s a second, "
        f"at least {share(LOOKING_SHARE, 0)} of which are in calls that check and find nothing: a select "
        "with one case and a default, runtime.Gosched, or TryLock. With two cases, the samples don't show "
        "whether one was ready, so that is not reported.",
        "wait: leave the default out of the select, or use a channel, a sync.Cond or a ticker. If the loop "
        "computes something between two checks, check less often.",
        "A computation uses as much CPU time, but in its own code. A hub that sends to each subscriber by a "
        "select with a default, or a goroutine that drains a channel, checks and finds something.",
        "A watcher that checks in a loop, with a select with a default, whether it should stop.",
        _busy_loop,
        _no_cpu,
        offences=("cpu",),
    ),
    Rule(
        "NP205",
        "unbuffered-io",
        "A message is read in many small pieces, each with a syscall.",
        f"At one place, at least {READS_PER_WAKEUP} reads per wakeup that returned {SMALL_READ} bytes or "
        f"fewer each, {share(FILLED_SHARE, 0)} of which asked for no more than they got, from a sample of "
        "all I/O calls. Goroutines that run only Go's standard library or x/net/http2 don't count.",
        "read through a bufio.Reader.",
        "A large transfer makes as many calls per wakeup, but in large pieces. A service that is busy "
        "whenever a small message comes reads it without a wakeup, but asks for more, and so takes it whole.",
        "A line protocol whose reader asks for one byte at a time (example_project: -fault unbuffered).",
        _unbuffered,
        offences=("io",),
    ),
)
