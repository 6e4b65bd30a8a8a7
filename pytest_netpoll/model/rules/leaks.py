"""NP5: connections and data that a service leaves behind."""

from __future__ import annotations

from pytest_netpoll.errors import Reason
from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.rules.rule import Proof, Rule, count, offenders, stack_of

# Connections at one local address whose peers are gone: one or two may have a handler that still works.
# Connections that the service dialed each have a local address of their own, so an idle pool doesn't count.
LEAST_LEFT = 3
# What of their number must have been added at one place for goroutines there to be shown with them.
GROWTH_SHARE = 0.5


def _parked_leak(m: Measurement) -> Proof | None:
    if _not_settled(m) is not None:
        return None
    left = [o for o in offenders(m, "parked") if o.local is not None and o.closed >= LEAST_LEFT]
    if not left:
        return None
    worst = max(left, key=lambda o: o.closed)
    number = sum(o.closed for o in left)
    return Proof(
        number,
        f"{count(number)} {worst.fd_type or ''} connections to {worst.local}{_peers(worst)} are still open, "
        "though their peers closed them during the test and the service had come to rest. Typically the "
        "goroutine that should close them waits for something else, such as a channel.",
        stack_of(left),
        evidence=(*left, *_grown(m, number)),
    )


def _peers(o: Offender) -> str:
    return f" (peer{'s' * (len(o.peers) > 1)} {', '.join(o.peers)})" if o.peers else ""


def _grown(m: Measurement, left: int) -> list[Offender]:
    """Where goroutines were added as the connections were left: those that a handler started for each of
    them, such as the reader of an upstream connection, may have been left behind with it.
    """
    least = max(LEAST_LEFT, GROWTH_SHARE * left)
    return [
        o
        for o in offenders(m, "parked")
        if o.growth >= least and o.closed < LEAST_LEFT and o.fd_type != "listener"
    ]


def _not_settled(m: Measurement) -> Reason | None:
    return m.absent.get("abandoned_descriptors") or m.unexplained.get("parked")


def _stuck_reader(m: Measurement) -> Proof | None:
    stuck = sorted((o for o in offenders(m, "parked") if o.stuck), key=lambda o: -o.stuck)
    number = sum(o.stuck for o in stuck)
    if not number or _not_decided(m) is not None:
        return None
    kind = stuck[0].fd_type or "socket"
    peers = _peers(stuck[0])
    unread = "connections to accept" if kind == "listener" else "unread data"
    who, them = ("goroutine is", "it") if number == 1 else ("goroutines are", "them")
    return Proof(
        number,
        f"{count(number)} {who} parked for reading on {kind}{peers} with {unread}: the poller reported it, "
        f"nobody took it, and nothing will wake {them} until more arrives. Typically the read before the "
        "wait was left out, or only looks (MSG_PEEK) for more than there is.",
        stack_of(stuck),
        evidence=tuple(stuck),
    )


def _not_decided(m: Measurement) -> Reason | None:
    return m.absent.get("stuck_goroutines")


RULES = (
    Rule(
        "NP501",
        "parked-leak",
        "The service keeps connections whose peers are gone.",
        f"At least {LEAST_LEFT} connections accepted at one address that their peers closed during the test, "
        "that nobody holds at the other end, and that are still open half a second after the service had "
        "come to rest.",
        "close the connection on every way out of its handler, and end a writer when its reader ends.",
        "A client that the test leaves open or only half-closes isn't a leak. Neither is a pool of "
        "connections that the service dialed, although it grows: limit max_parked_growth for that.",
        "A writer for each connection waits on a channel that nobody closes when the client has gone.",
        _parked_leak,
        _not_settled,
        ("parked", "woken"),
    ),
    Rule(
        "NP502",
        "stuck-reader",
        "A goroutine waits for data, or a connection, that is there already.",
        "A goroutine that is parked for reading on a socket with unread data, which a poll reported more "
        "than 20 ms ago, while the service rests and polls.",
        "read until there is nothing left (EAGAIN) before waiting again: events are edge-triggered. In "
        "RawConn.Read, return false only after such a call. To wait for more than there is, set SO_RCVLOWAT.",
        "A throttled or stopped service just hasn't read yet, a socket below its low-water mark "
        "(SO_RCVLOWAT) has nothing to report, and an error queue (NP105) doesn't hold data to read. A reader "
        "that peeks (MSG_PEEK) until a header is complete waits rightly, but can't be told apart: set "
        "SO_RCVLOWAT to the header's size.",
        "RawConn.Read with a function that returns false without reading.",
        _stuck_reader,
        _not_decided,
        ("parked",),
    ),
)
