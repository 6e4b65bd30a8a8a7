"""A window of `netpoll.measure()` with a limit: judged and recorded as a marked test is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_netpoll.model.evidence import Offender
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS, PARKED_METRICS
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.options import Config
from pytest_netpoll.service.service import Service
from pytest_netpoll.session.fixtures import MeasuredWindow
from tests.made_up import offender


class Running:
    """A service, as far as a window asks for it."""

    def __init__(self, name: str) -> None:
        self.name = self.asked_name = name

    def why_elsewhere(self) -> None:
        return None


def parked(count: int, kind: str, local: str | None, *peers: str) -> Offender:
    where: Any = {"fd_type": kind, "local": local, "peer": None, "peers": peers}
    return offender(count, offence="parked", growth=9 if peers else 0, **where)


def measured(name: str, *groups: Offender) -> Measurement:
    counters = {**dict.fromkeys(COUNTERS, 0), **dict.fromkeys(PARKED_METRICS, 0), "parked_growth": 9}
    return Measurement(name, 1, "", "go1.26.6", 1.0, Snapshot(counters, {}, 0, 0, None), offenders=groups)


def test_the_end_that_dialed_comes_first_and_the_other_one_is_named() -> None:
    config = SimpleNamespace(stash=pytest.Stash())
    item: Any = SimpleNamespace(stash=pytest.Stash(), get_closest_marker=lambda _: None, config=config)
    limits = resolve([((), {"max_parked_growth": 0})], "netpoll.measure()")
    window = MeasuredWindow(item, Config.default(), "quiet", limits)
    services = [cast("Service", Running("back")), cast("Service", Running("front"))]
    listener = parked(1, "listener", "127.0.0.1:80")
    back = measured("back", listener, parked(9, "tcp", "127.0.0.1:80", "127.0.0.1:5001", "127.0.0.1:5002"))
    front = measured("front", parked(9, "tcp", None, "127.0.0.1:80"))
    window.close(services, [back, front], set(services), {})
    with pytest.raises(pytest.fail.Exception) as failed:
        window.enforce(services, 1)
    [first, second] = [line for line in str(failed.value).splitlines() if "parked_growth" in line]
    assert "front: parked_growth 9 > max 0" in first
    assert "back: parked_growth 9 > max 0" in second
    assert "close each connection that front dials, here to back (127.0.0.1:80)" in str(failed.value)
    made = window.record(1)
    assert [service["name"] for service in made["services"]] == ["front", "back"]
    assert made["services"][0]["offenders"][0]["peer_service"] == "back"
