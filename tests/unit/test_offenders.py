"""Offenders of several windows, put together."""

from __future__ import annotations

from pytest_netpoll import offenders


def lap(count, fd_type="tcp", line=39, offence="spurious", peer="a:1"):
    return {
        "offence": offence,
        "count": count,
        "share": 1.0,
        "direction": "read",
        "syscall": "read",
        "fd_type": fd_type,
        "local": "b:2",
        "peer": peer,
        "stack": [{"function": "main.read", "file": "main.go", "line": line}],
    }


def test_the_same_place_is_one_offender_and_the_worst_comes_first():
    total = offenders.total([[lap(10), lap(30, line=50)], [lap(25)], [lap(5, offence="stale")]])
    assert [(o["offence"], o["stack"][0]["line"], o["count"]) for o in total] == [
        ("spurious", 39, 35),
        ("spurious", 50, 30),
        ("stale", 39, 5),
    ]
    assert [o["share"] for o in total] == [35 / 65, 30 / 65, 1.0]


def test_a_descriptor_closed_meanwhile_does_not_split_a_place():
    (total,) = offenders.total([[lap(1, "closed", peer=None)], [lap(2)], [lap(3, "closed", peer=None)]])
    assert (total["count"], total["fd_type"], total["local"], total["peer"]) == (6, "tcp", "b:2", None)
    (total,) = offenders.total([[lap(1, "closed")], [lap(2, "closed")]])
    assert total["fd_type"] == "closed"


def test_the_laps_themselves_stay_as_they_are():
    first = lap(10)
    offenders.total([[first], [lap(1)]])
    assert first == lap(10)
