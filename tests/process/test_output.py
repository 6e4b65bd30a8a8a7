"""What a service prints is kept in bounded memory, and never blocks it."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.output import HEAD_BYTES, TAIL_BYTES, Output
from tests.waiting import patiently

Nasty = Callable[..., list[str]]

LIMIT = 4 << 20


def test_both_streams_are_kept_in_order(go_service: ServiceFactory) -> None:
    command = ["sh", "-c", "echo one; echo two >&2; echo three; sleep 60"]
    server = go_service(command=command, ready=re.compile("three"))
    assert server.log == "one\ntwo\nthree\n"
    assert server.tail(2) == "two\nthree"
    assert server.tail(0) == ""


def test_bytes_that_are_not_text_are_replaced(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("garbage", "sleep"), ready=re.compile("garbage"))
    assert server.log == "\ufffd\ufffd\0garbage\ufffd\n"


def test_a_service_that_closes_its_output_lives_on(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("environment:MODE", "close_output", "listen:{port}", "sleep"))
    assert server.log == "MODE=None\n"
    server.check_alive()
    server.restart()
    assert server.log.count("MODE=None\n") == 2


def test_endless_output_neither_blocks_the_service_nor_fills_memory(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    before = psutil.Process().memory_info().rss
    server = go_service(
        command=nasty("environment:FIRST", "spam:256", "environment:LAST", "sleep"),
        ready=re.compile("LAST=None"),
        timeout=300,
    )
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert len(server.log) <= LIMIT + 100
    assert server.log.startswith("FIRST=None\nspam")
    assert server.log.endswith("last\nLAST=None\n")
    assert re.search(r"\n\[[0-9]+ bytes of output cut here by pytest-netpoll\]\n", server.log)


def test_what_was_printed_before_an_answer_is_in_the_log_after_it(
    go_service: ServiceFactory, nasty: Nasty
) -> None:
    server = go_service(command=nasty("http_ok_after:0"), env={"PORT": "{port}"})
    for number in range(1, 50):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(server.url, timeout=60)
        assert server.log.count("GET") == number


def test_a_restart_is_visible_in_the_log(go_service: ServiceFactory, nasty: Nasty) -> None:
    server = go_service(command=nasty("environment:MODE", "sleep"), ready=re.compile("MODE"))
    server.restart()
    # Its line makes it ready; the end of the line may be read later.
    patiently(lambda: server.log == "MODE=None\n[started again by pytest-netpoll]\nMODE=None\n")


def test_the_tail_of_endless_lines_is_short() -> None:
    output = Output()
    output.add(b"x" * (1 << 20))
    assert len(output.tail(20)) < 1 << 16


@pytest.mark.parametrize("chunk", [1000, 70_000, 5 << 20])
def test_the_start_and_the_end_are_kept_and_the_cut_is_counted_exactly(chunk: int) -> None:
    whole = b"".join(b"%09d\n" % number for number in range(1 << 20))
    output = Output()
    for offset in range(0, len(whole), chunk):
        output.add(whole[offset : offset + chunk])
    head, count, tail = re.split(r"\n\[([0-9]+) bytes of output cut here.*\]\n", output.text())
    assert whole.startswith(head.encode())
    assert whole.endswith(tail.encode())
    assert len(head) == HEAD_BYTES
    assert TAIL_BYTES <= len(tail) <= LIMIT - HEAD_BYTES
    assert int(count) == len(whole) - len(head) - len(tail)
    assert output.size == len(whole)


@pytest.mark.parametrize("since", [0, 5, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 7, 2 * HEAD_BYTES])
def test_output_from_a_position_on_is_exact_where_nothing_was_cut(since: int) -> None:
    whole = b"".join(b"%07d\n" % number for number in range(HEAD_BYTES // 4))
    output = Output()
    output.add(whole)
    assert output.text(since) == whole[since:].decode()


def test_a_character_is_not_split_at_the_cut() -> None:
    output = Output()
    output.add(b"x" * (HEAD_BYTES - 1) + "é".encode() + b"y")
    assert output.text().endswith("xéy")
