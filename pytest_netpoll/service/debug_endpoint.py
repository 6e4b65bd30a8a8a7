"""Fetches what a Go service reports about itself through net/http/pprof."""

from __future__ import annotations

import contextlib
import http.client
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from pytest_netpoll.errors import Reason, UsageError

PATIENCE = 10.0  # seconds to wait for an answer, beyond those that it covers
MOST_SECONDS = 10  # that a profile covers, at most
MOST_BYTES = 32 << 20  # at most, of an answer
_CHUNK = 64 << 10
_FIX = 'serve net/http/pprof there, or give its path: go_service(…, pprof="/debug/pprof")'


class View(NamedTuple):
    """name: in the URL. file: the end of its file's name. magic: how it begins. command: opens FILE."""

    name: str
    file: str
    what: str
    magic: bytes = b"\x1f\x8b"
    command: str = "go tool pprof -top"


GOROUTINES = View("goroutine", "goroutine.pb.gz", "all goroutines, halfway through a repeated call")
# The views that cover a stretch of time.
STRETCHES = (
    View("profile", "profile.pb.gz", "CPU profile of a repeated call"),
    View("mutex", "mutex.pb.gz", "contended mutexes in a repeated call"),
    View("block", "block.pb.gz", "where goroutines blocked in a repeated call"),
    View("trace", "exec.trace", "execution trace of a repeated call", b"go 1.", "go tool trace"),
)


class Taken(NamedTuple):
    view: View
    content: bytes


class Recording:
    """Fetches a service's views for the next `seconds`, all at once, each in a thread."""

    def __init__(self, url: str, seconds: float) -> None:
        self.seconds = min(math.ceil(seconds), MOST_SECONDS)
        self._url = url.rstrip("/")
        self._asked: list[tuple[View, Future[bytes]]] = []
        self._ask(GOROUTINES, "", delay=min(seconds, MOST_SECONDS) / 2)
        for view in STRETCHES:
            self._ask(view, f"?seconds={self.seconds}")

    def results(self) -> tuple[list[Taken], list[Reason]]:
        """Waits for all views; returns those that came, and why the others are missing."""
        taken, missing = [], []
        for view, answer in self._asked:
            try:
                taken.append(Taken(view, answer.result()))
            except Refused as error:
                missing.append(Reason(f"nothing from {self._url}/{view.name}", why=str(error), fix=_FIX))
        return taken, missing

    def _ask(self, view: View, query: str, delay: float = 0.0) -> None:
        answer: Future[bytes] = Future()

        def wait() -> None:
            time.sleep(delay)
            try:
                url = f"{self._url}/{view.name}{query}"
                answer.set_result(get(url, view.magic, self.seconds + PATIENCE))
            except Exception as error:
                answer.set_exception(error)

        # Not from a pool: pytest would wait for its threads at Ctrl-C.
        threading.Thread(target=wait, name="netpoll-pprof", daemon=True).start()
        self._asked.append((view, answer))


class Refused(Exception):
    """The endpoint didn't send the view; the message says why."""


def get(url: str, magic: bytes, patience: float) -> bytes:
    """The body bytes of an answer, which must begin with `magic`; Refused says what came instead."""
    deadline = time.monotonic() + patience
    # Without the environment's proxies: it is our own service.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=patience) as answer:
            body = _read(answer.read1, deadline)
    except urllib.error.HTTPError as error:
        said = ""
        with error, contextlib.suppress(OSError, http.client.HTTPException):
            said = error.read(200).decode(errors="replace").partition("\n")[0]
        raise Refused(f"HTTP {error.code} {error.reason}: {said}") from None
    except TimeoutError:
        raise Refused(f"no answer within {patience:g} s") from None
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise Refused(f"no answer within {patience:g} s") from None
        raise Refused(str(cause) or repr(cause)) from None
    except http.client.HTTPException:
        raise Refused("the answer isn't HTTP") from None
    if not body.startswith(magic):
        raise Refused("the answer is something else")
    return body


def _read(read: Callable[[int], bytes], deadline: float) -> bytes:
    body = bytearray()
    while more := read(_CHUNK):
        body += more
        if len(body) > MOST_BYTES:
            raise Refused(f"the answer is larger than {MOST_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise Refused("the answer did not end in time")
    return bytes(body)


def checked(place: object) -> str | None:
    """Checks pprof= of go_service: a path at the service's address, or a URL."""
    if place is None:
        return None
    if isinstance(place, str) and place.startswith(("/", "http://", "https://")):
        return place
    raise UsageError(
        "go_service: pprof= must be a path or a URL",
        why=f"got {place!r}",
        fix='give "/debug/pprof", or "http://127.0.0.1:6060/debug/pprof" if it has its own port',
    )
