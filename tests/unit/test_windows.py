"""A window of `netpoll.measure()` with a limit: judged and recorded as a marked test is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_netpoll.model.limits import resolve
from pytest_netpoll.options import Config
from pytest_netpoll.service.service import Service
from pytest_netpoll.session.fixtures import MeasuredWindow
from tests.made_up import parked_group, with_parked


class Running:
    """A service, as far as a window asks for it."""

    def __init__(self, name: str) -> None:
        self.name = self.asked_name = name

    def why_elsewhere(self) -> None:
        return None


def test_the_end_that_dialed_comes_first_and_the_other_one_is_named() -> None:
    config = SimpleNamespace(stash=pytest.Stash())
    item: Any = SimpleNamespace(stash=pytest.Stash(), get_closest_marker=lambda _: None, config=config)
    limits = resolve([((), {"max_parked_growth": 0})], "netpoll.measure()")
    window = MeasuredWindow(item, Config.default(), "quiet", limits)
    services = [cast("Service", Running("back")), cast("Service", Running("front"))]
    listener = parked_group(1, "127.0.0.1:80", kind="listener", growth=0)
    accepted = parked_group(9, "127.0.0.1:80", "127.0.0.1:5001", "127.0.0.1:5002")
    back = with_parked("back", listener, accepted)
    front = with_parked("front", parked_group(9, None, "127.0.0.1:80"))
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
