"""Asking a service for its profiles if it answers with something else, late, or never."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.service import debug_endpoint
from pytest_netpoll.service.debug_endpoint import Recording, Refused, checked, get
from tests.waiting import patiently

PROFILE = b"\x1f\x8b and so on"


class Server:
    """Answers each connection with `answer`, and again every 10 ms while it drips; closes it on request."""

    def __init__(self) -> None:
        self.answer, self.drips, self.closes = b"", False, True
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/debug/pprof"
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.recv(4096)
        try:
            connection.sendall(self.answer)
            while self.drips:
                connection.sendall(b".")
                time.sleep(0.01)
        except OSError:
            pass
        self._held.append(connection)
        if self.closes:
            connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.drips = False
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._held:
            connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


OK = b"HTTP/1.1 200 OK\r\n\r\n"


def test_a_profile_is_recognized_by_its_beginning(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.answer = OK + PROFILE
    assert get(f"{server.url}/heap", b"\x1f\x8b", 20) == PROFILE


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (OK + b"<html>", "the answer is something else"),
        (OK, "the answer is something else"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n404 page not found\n", "HTTP 404 Not Found: 404 page not found"),
        (b"HTTP/1.1 500 Oh\r\n\r\nCould not enable CPU profiling: already in use\n", "already in use"),
        (b"220 mail.example.org ESMTP\r\n", "the answer isn't HTTP"),
        (b"", "closed connection"),
        (OK + PROFILE * 100, "larger than 0 MiB"),
    ],
    ids=["a page", "nothing", "not found", "in use", "no HTTP", "closed", "large"],
)
def test_anything_else_is_refused_with_a_message(
    server: Server, answer: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debug_endpoint, "MOST_BYTES", 1000)
    server.answer = answer
    with pytest.raises(Refused, match=why):
        get(f"{server.url}/heap", b"\x1f\x8b", 20)


def test_waiting_always_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug_endpoint, "PATIENCE", -0.5)  # half a second in total
    server.closes = False
    taken, missing = Recording(server.url, 0.1).results()
    assert taken == []
    assert {reason.why for reason in missing} == {"no answer within 0.5 s"}
    assert [reason.what.rpartition("/")[2] for reason in missing] == [
        "goroutine", "profile", "mutex", "block", "trace",
    ]  # fmt: skip
    server.answer, server.drips = OK + PROFILE, True

    def reasons() -> set[str | None]:
        return {reason.why for reason in Recording(server.url, 0.1).results()[1]}

    # On a busy machine even the first byte may come later than that.
    assert patiently(lambda: reasons() == {"the answer did not end in time"})


def test_a_place_is_a_path_or_a_url() -> None:
    for place in (None, "/debug/pprof", "http://127.0.0.1:6060/debug/pprof"):
        assert checked(place) == place
    for wrong in ("debug/pprof", 6060, True):
        with pytest.raises(UsageError, match="pprof= must be a path or a URL"):
            checked(wrong)
