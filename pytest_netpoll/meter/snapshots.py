"""Makes a Snapshot from the agent's numbers for a process; nothing else in the plugin reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

from pytest_netpoll.model.histogram import BUCKETS
from pytest_netpoll.model.metrics import COUNTERS, OPTIONAL_COUNTERS
from pytest_netpoll.model.snapshot import Delay, Parts, Snapshot


def read_snapshot(message: object) -> Snapshot:
    """Read an agent's message; ValueError says which field is wrong.

    {"counters": {name: int}, "histogram": {"index": int}, "latency_max_ns": int, "runq_max": int|null,
    "io_outcomes": {outcome: int}, "futile": [[syscall, outcome, int]], "events_per_poll": {"int": int},
    "p_looks", "p_running", "mutex_wait", "lock_wait": int|null, "sched_latency": [[ns, ns, int]]|null,
    "delays": {name: {"histogram", "max_ns": int, "budget": {"index": [int]}}}|null, "requests", "answered",
    "strangers": int};
    other fields are ignored. A process's times aren't in it.
    Optional counters may be absent or null.
    """
    if not isinstance(message, Mapping):
        raise ValueError(f"snapshot: expected an object, got {message!r}")
    raw_counters = _object(message, "counters")
    # An unknown name may be a misspelt optional counter, which would silently count as unmeasured.
    for name in raw_counters:
        if name not in COUNTERS and name not in OPTIONAL_COUNTERS:
            raise ValueError(f"counters: unknown counter {name!r}")
    counters = {name: _natural(raw_counters.get(name), f"counters.{name}") for name in COUNTERS}
    for name in OPTIONAL_COUNTERS:
        if raw_counters.get(name) is not None:
            counters[name] = _natural(raw_counters[name], f"counters.{name}")
    delays = {} if message.get("delays") is None else _object(message, "delays")
    return Snapshot(
        counters=counters,
        histogram=_histogram(message),
        latency_max_ns=_natural(message.get("latency_max_ns"), "latency_max_ns"),
        runq_max=_optional_natural(message.get("runq_max"), "runq_max"),
        io_outcomes={
            outcome: _natural(count, f"io_outcomes.{outcome}")
            for outcome, count in _object(message, "io_outcomes").items()
        },
        futile=_futile(message.get("futile")),
        events_per_poll=_polls(_object(message, "events_per_poll")),
        p_looks=_optional_natural(message.get("p_looks"), "p_looks"),
        p_running=_optional_natural(message.get("p_running"), "p_running"),
        sched_latency=_latencies(message.get("sched_latency")),
        mutex_wait_ns=_optional_natural(message.get("mutex_wait"), "mutex_wait"),
        lock_wait_ns=_optional_natural(message.get("lock_wait"), "lock_wait"),
        delays={name: _delay(delays, name) for name in delays},
        requests=_natural(message.get("requests", 0), "requests"),
        answered=_natural(message.get("answered", 0), "answered"),
        strangers=_natural(message.get("strangers", 0), "strangers"),
    )


def _histogram(message: Mapping[str, object]) -> dict[int, int]:
    return {
        _bucket(key): _natural(count, f"histogram.{key}")
        for key, count in _object(message, "histogram").items()
    }


def _bucket(key: object) -> int:
    index = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else -1
    if not 0 <= index < BUCKETS:
        raise ValueError(f"histogram: {key!r} is not a bucket in 0..{BUCKETS - 1}")
    return index


def _delay(delays: Mapping[str, object], name: str) -> Delay:
    delay = _object(delays, name)
    budget = {}
    for key, parts in _object(delay, "budget").items():
        if not isinstance(parts, list) or len(parts) != len(fields(Parts)):
            raise ValueError(f"budget: expected {len(fields(Parts))} sums, got {parts!r:.200}")
        budget[_bucket(key)] = Parts(*(_natural(part, "budget") for part in parts))
    return Delay(_histogram(delay), _natural(delay.get("max_ns"), "max_ns"), budget)


def _object(message: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = message.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected an object, got {value!r}")
    return value


def _futile(value: object) -> dict[tuple[str, str], int]:
    if not isinstance(value, list):
        raise ValueError(f"futile: expected a list, got {value!r:.200}")
    found: Counter[tuple[str, str]] = Counter()
    for entry in value:
        match entry:
            case [str(syscall), str(outcome), count]:
                found[syscall, outcome] += _natural(count, "futile")
            case _:
                raise ValueError(f"futile: expected [syscall, outcome, calls], got {entry!r:.200}")
    return dict(found)


def _polls(value: Mapping[str, object]) -> dict[int, int]:
    for events in value:
        if not (events.isascii() and events.isdecimal() and len(events) <= 4 and int(events)):
            raise ValueError(f"events_per_poll: {events!r:.60} is no number of events")
    return {int(events): _natural(polls, f"events_per_poll.{events}") for events, polls in value.items()}


def _latencies(value: object) -> dict[tuple[int, int], int] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"sched_latency: expected a list, got {value!r:.200}")
    found: dict[tuple[int, int], int] = {}
    for entry in value:
        match entry:
            case [low, high, count]:
                bounds = _natural(low, "sched_latency"), _natural(high, "sched_latency")
                found[bounds] = _natural(count, "sched_latency")
            case _:
                raise ValueError(f"sched_latency: expected [ns, ns, count], got {entry!r:.200}")
    return found


def _natural(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: expected an integer >= 0, got {value!r}")
    return value


def _optional_natural(value: object, name: str) -> int | None:
    return None if value is None else _natural(value, name)
