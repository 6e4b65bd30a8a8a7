"""Which end of its connections a service is: the one that dials, or the one that accepts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.measurement import Measurement


def dialed(group: Offender, m: Measurement) -> bool | None:
    """Whether the service dialed the connections on which these goroutines are parked; None if that isn't
    certain. m: the service's measurement.
    """
    if group.fd_type != "tcp":
        return None
    if group.local is None:
        # Each of its connections has a port of its own here, but all have the same one at the other end.
        return True if group.count > 1 and len(group.peers) == 1 else None
    ports = {*m.listening, *map(_port, listening(m))}
    if group.count > 1 or _port(group.local) in ports:
        return False
    # Somebody listens at the other end, and nobody at this one.
    return True if group.peer_service or any(_port(peer) in ports for peer in group.peers) else None


def dialed_more(m: Measurement) -> list[Offender]:
    """Where more goroutines are parked than before on connections that the service dialed."""
    return [group for group in _grown(m) if dialed(group, m)]


def only_accepted_more(m: Measurement) -> bool:
    """Whether all goroutines that are parked now and weren't before have connections that it accepted."""
    grown = _grown(m)
    return bool(grown) and all(dialed(group, m) is False for group in grown)


def listening(m: Measurement) -> set[str]:
    """The addresses on which the service listens, of those on which goroutines are parked."""
    return {o.local for o in m.offenders if o.offence == "parked" and o.fd_type == "listener" and o.local}


def dialers_first(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The services that left connections behind that they dialed, and then the others, such as those that
    accepted them.
    """
    return sorted(measurements, key=lambda m: not dialed_more(m))


def with_names(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements, with the services at the other ends of connections on which goroutines are parked."""

    def named(group: Offender) -> Offender:
        services = {_service_at(peer, measurements) for peer in group.peers}
        return replace(group, peer_service=services.pop()) if len(services) == 1 else group

    return [replace(m, offenders=tuple(map(named, m.offenders))) for m in measurements]


def _service_at(address: str, measurements: Sequence[Measurement]) -> str | None:
    """The service that listens there; None if none or several do."""
    found = [m.service for m in measurements if address in listening(m)]
    return found[0] if len(found) == 1 else None


def _grown(m: Measurement) -> list[Offender]:
    return [o for o in m.offenders if o.offence == "parked" and o.growth]


def _port(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0
