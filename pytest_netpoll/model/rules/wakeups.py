"""NP1: goroutines woken for nothing."""

from __future__ import annotations

from collections import Counter

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.evidence import Cause, Offender
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.rules.rule import (
    LEAST_SHARE,
    LEAST_WASTED,
    Proof,
    Rule,
    count,
    counted,
    matters,
    number,
    offenders,
    resolved,
    share,
    stack_of,
)

_ACCEPTS = ("accept", "accept4")

# The share of all wakeups: a connection has more for reading than for accepting it, and on a busy machine
# most acceptors come too late to be woken.
ACCEPT_SHARE = 0.01


def _woken(m: Measurement, cause: Cause, accepting: bool = False) -> list[Offender]:
    return [o for o in offenders(m, "spurious") if o.cause == cause and (o.syscall in _ACCEPTS) == accepting]


def _proof(
    m: Measurement, found: list[Offender], text: str, least_share: float = LEAST_SHARE
) -> Proof | None:
    """The proof if enough wakeups are affected. text: with {n} for these wakeups, {spurious} for all spurious
    ones, {all} for all wakeups.
    """
    n = sum(o.count for o in found)
    if not matters(n, m, least_share):
        return None
    return Proof(
        n,
        text.format(n=count(n), all=count(resolved(m)), spurious=count(number(m, "spurious_wakeups"))),
        stack_of(found),
        evidence=tuple(found),
    )


def _no_sockets(m: Measurement) -> Reason | None:
    return m.unexplained.get("spurious")


def _second_reader(m: Measurement) -> Proof | None:
    found = _woken(m, "registered twice")
    dropped = m.snapshot.dropped_datagrams
    datagrams = sum(o.count for o in found if o.fd_type == "udp")
    if dropped is None:  # any of them may have been
        found = [o for o in found if o.fd_type != "udp"]
    elif dropped and not matters(sum(o.count for o in found) - min(dropped, datagrams), m):
        return None
    return _proof(
        m,
        found,
        "{n} of {all} wakeups found nothing to read or write: another reader of the same socket had already "
        "consumed the data (the socket is registered with epoll more than once). Typically a connection was "
        "duplicated (File, FileConn, an inherited descriptor) and both ends are read.",
    )


def _shared_listener(m: Measurement) -> Proof | None:
    return _proof(
        m,
        _woken(m, "registered twice", accepting=True),
        "{n} of {spurious} spurious wakeups found no connection to accept: another acceptor of the same "
        "listener had already taken it (the listener is registered with epoll more than once, so each "
        "connection may wake several acceptors). Typically worker processes inherited one listener.",
        least_share=ACCEPT_SHARE,
    )


def _stale_readiness(m: Measurement) -> Proof | None:
    # A loop that never waits (NP201) also meets stored events, but far fewer than it makes calls.
    looping: Counter[str] = Counter()
    for o in offenders(m, "futile"):
        if o.outcome == "EAGAIN" and o.stack:
            looping[o.stack[0].function] += o.count
    found = [o for o in offenders(m, "stale") if o.cause == "data"]
    found = [o for o in found if not o.stack or looping[o.stack[0].function] <= o.count]
    n = sum(o.count for o in found)
    if not matters(n, m):
        return None
    return Proof(
        n,
        f"{count(n)} retries got EAGAIN again, beside {counted(resolved(m), 'wakeup')}: the wait returned "
        "immediately because of an event whose data had already been read. Typically RawConn.Read or a "
        "hand-written loop drains the socket, and takes long between two reads.",
        stack_of(found),
        evidence=tuple(found),
    )


def _full_datagram_queue(m: Measurement) -> Proof | None:
    return _proof(
        m,
        _woken(m, "full queue"),
        "{n} of {all} wakeups were for writing to a Unix datagram socket, and found its receiver's queue "
        "full again: each message that is received wakes every sender, and one gets the room. Typically "
        "several senders are quicker than one receiver.",
    )


def _unread_error_queue(m: Measurement) -> Proof | None:
    return _proof(
        m,
        _woken(m, "error queue"),
        "{n} of {all} wakeups were for an error (EPOLLERR) and found nothing to read: each message that the "
        "kernel puts into the socket's error queue wakes the goroutine that waits for data, whether anybody "
        "reads that queue or not. Typically transmit timestamps (SO_TIMESTAMPING), zero-copy notifications "
        "or IP_RECVERR were asked for.",
    )


def _refused_peer(m: Measurement) -> Proof | None:
    found = [o for o in _woken(m, "socket error") if o.fd_type == "udp"]
    refused = m.snapshot.io_outcomes.get("ECONNREFUSED", 0)
    # The call that got the error consumed it, and each error answers at most one call.
    if refused < sum(o.count for o in found) / 2:
        return None
    return _proof(
        m,
        found,
        "{n} of {all} wakeups were for an error (EPOLLERR) that another call had already returned: "
        f"{count(refused)} calls ended in ECONNREFUSED, since nobody listens where the datagrams are sent.",
    )


def _dropped_datagrams(m: Measurement) -> Proof | None:
    found = [o for o in _woken(m, "data") if o.fd_type == "udp"]
    dropped = m.snapshot.dropped_datagrams or 0
    if dropped < sum(o.count for o in found):
        return None
    return _proof(
        m,
        found,
        "{n} of {all} wakeups were for a datagram that the kernel dropped as it was read: "
        f"{count(dropped)} had a wrong checksum (Udp InCsumErrors).",
    )


def _no_checksum_errors(m: Measurement, cause: Cause) -> Reason | None:
    datagrams = [o for o in _woken(m, cause) if o.fd_type == "udp"]
    if _no_sockets(m) is not None or not datagrams or m.snapshot.dropped_datagrams is not None:
        return _no_sockets(m)
    return Reason("/proc/PID/net/snmp could not be read at both ends of the window")


def _unsure_of_second_reader(m: Measurement) -> Reason | None:
    return _no_checksum_errors(m, "registered twice")


def _unsure_of_dropped(m: Measurement) -> Reason | None:
    return _no_checksum_errors(m, "data")


_SOCKETS = "Needs the kernel's BTF."

RULES = (
    Rule(
        "NP101",
        "second-reader",
        "Two readers wait on one socket: each message wakes both, and one of them finds nothing.",
        "Wakeups for reading (EPOLLIN) that ended in EAGAIN, on a socket that is registered with epoll "
        f"more than once, in this process or in several. {_SOCKETS}",
        "read from one goroutine only, and close the duplicate.",
        "An error queue that nobody reads (NP105), a full datagram queue (NP104), a refused peer (NP106) and "
        "datagrams with a wrong checksum (NP107) also wake readers for nothing, but with one registration.",
        "A handler duplicates its connection with TCPConn.File and net.FileConn for a watcher that also "
        "reads (example_project: -fault dup).",
        _second_reader,
        _unsure_of_second_reader,
        ("spurious",),
    ),
    Rule(
        "NP102",
        "shared-listener",
        "Several acceptors wait on one listener: each connection wakes all of them, and one accepts it.",
        "Wakeups of accept that ended in EAGAIN, on a listener that is registered with epoll more than "
        f"once, in this process or in several: at least {LEAST_WASTED}, and {share(ACCEPT_SHARE, 0)} of "
        f"all wakeups. {_SOCKETS}",
        "serve from one process (Go uses all CPUs), or give each worker a listener of its own with "
        "SO_REUSEPORT.",
        "An acceptor that does not wait with epoll may also take the connection from the queue; that is only "
        "reported if the listener is registered twice nevertheless, because its File is kept. A few "
        "connections for which two acceptors were woken among many are not reported.",
        "A prefork server whose workers inherit one listener (example_project: -fault herd).",
        _shared_listener,
        _no_sockets,
        ("spurious",),
    ),
    Rule(
        "NP103",
        "stale-readiness",
        "A reader is about to wait, gets an old event for data that it has already read, and tries again for "
        "nothing.",
        "A readiness for reading (EPOLLIN) that was stored while nobody waited, and two EAGAINs around it, "
        f"on a socket that is registered with epoll once. {_SOCKETS}",
        "use the connection's Read, which forgets old events first, or do not block while draining.",
        "A second reader (NP101) also consumes the data behind a stored readiness. An expired deadline "
        "between two EAGAINs does not count, and neither does a loop that never waits (NP201).",
        "A loop in RawConn.Read that logs between two reads (example_project: -fault stale).",
        _stale_readiness,
        _no_sockets,
        ("stale", "futile"),
    ),
    Rule(
        "NP104",
        "full-datagram-queue",
        "Senders wait for room in a Unix datagram socket's queue, and are woken after others have filled it "
        "again.",
        f"Wakeups for writing (EPOLLOUT) on a Unix datagram socket that ended in EAGAIN. {_SOCKETS}",
        "send from one goroutine, receive faster, or raise net.unix.max_dgram_qlen.",
        "A second reader (NP101) causes as many wakeups for nothing, but for reading.",
        "Several goroutines log to one Unix datagram socket whose receiver is slow.",
        _full_datagram_queue,
        _no_sockets,
        ("spurious",),
    ),
    Rule(
        "NP105",
        "unread-error-queue",
        "The kernel puts messages into a socket's error queue, and each of them wakes the socket's reader, "
        "which finds no data.",
        "Wakeups for an error (EPOLLERR), without data (EPOLLIN), that ended in EAGAIN while the socket's "
        f"error queue held something. {_SOCKETS}",
        "do not ask for timestamps and the like, or send from another socket, from which nobody waits to "
        "read.",
        "A second reader (NP101) causes as many wakeups for nothing, but with data; a refused peer (NP106) "
        "leaves the error queue empty. A service that reads the error queue after each packet is "
        "no exception: its reader is woken all the same.",
        "A UDP server sets SO_TIMESTAMPING for transmitted packets and never reads the timestamps.",
        _unread_error_queue,
        _no_sockets,
        ("spurious",),
    ),
    Rule(
        "NP106",
        "refused-peer",
        "Datagrams go to a port where nobody listens: each refusal (ICMP) wakes the reader for nothing.",
        "Wakeups for an error (EPOLLERR) on a UDP socket that ended in EAGAIN with an empty error queue, "
        f"and as many calls that ended in ECONNREFUSED. {_SOCKETS}",
        "stop sending to a peer that refuses, or try again later.",
        "An error queue that nobody reads (NP105) causes the same events.",
        "A statsd client keeps sending although its server is gone.",
        _refused_peer,
        _no_sockets,
        ("spurious",),
    ),
    Rule(
        "NP107",
        "dropped-datagrams",
        "Datagrams arrive damaged: each wakes the reader, and its read drops the datagram.",
        "Wakeups for reading (EPOLLIN) on a UDP socket that is registered with epoll once, that ended in "
        "EAGAIN, and at least as many datagrams that the network namespace dropped for their checksum. "
        f"{_SOCKETS}",
        "find who sends them: capture with tcpdump -vv, which says 'bad udp cksum'.",
        "A second reader (NP101) causes as many wakeups for nothing, on a socket that is registered twice.",
        "A UDP server behind a device that rewrites packets without their checksum.",
        _dropped_datagrams,
        _unsure_of_dropped,
        ("spurious",),
    ),
)
