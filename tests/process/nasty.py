"""A badly behaved service. Its arguments are behaviours ("name" or "name:value"), shown one after another.

Ends when the last of them returns, like any program.
"""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_open = []


def say(text: str) -> None:
    print(text, flush=True)


def listen(port: str) -> None:
    server = socket.create_server(("127.0.0.1", int(port)))
    _open.append(server)


def listen_everywhere(port: str) -> None:
    _open.append(socket.create_server(("0.0.0.0", int(port))))


def listen_in_child(port: str) -> None:
    if os.fork() == 0:
        listen(port)
        sleep()


def http_ok_after(count: str) -> None:
    """Answers 503 at first, then 404: it is up, but doesn't have that page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self) -> None:
            Handler.asked += 1
            self.send_response(404 if Handler.asked > int(count) else 503)
            self.end_headers()

    http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_cleanly_on_sigterm() -> None:
    def end(*_: object) -> None:
        say("clean")
        raise SystemExit(7)

    signal.signal(signal.SIGTERM, end)


def fork_child(behaviours: str) -> None:
    """A child in the same session; several behaviours of it are joined by "+"."""
    _child(behaviours, False)


def fork_child_with_own_session(behaviours: str) -> None:
    _child(behaviours, True)


def _child(behaviours: str, own_session: bool) -> None:
    child = subprocess.Popen(
        [sys.executable, __file__, *behaviours.split("+")], start_new_session=own_session
    )
    _open.append(child)
    say(f"child {child.pid}")


def close_output() -> None:
    os.close(1)
    os.close(2)


def garbage() -> None:
    os.write(1, b"\xff\xfe\x00garbage\x80\n")


def spam(mebibytes: str) -> None:
    line = b"spam" * 1023 + b"last\n"
    sys.stdout.flush()
    for _ in range(int(mebibytes) << 8):
        os.write(1, line)


def end_with(status: str) -> None:
    raise SystemExit(int(status))


def end_by(number: str) -> None:
    os.kill(os.getpid(), int(number))


def sleep() -> None:
    while True:
        time.sleep(3600)


def sleep_for(seconds: str) -> None:
    time.sleep(float(seconds))


def wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.01)


def environment(name: str) -> None:
    say(f"{name}={os.environ.get(name)}")


def show_directory() -> None:
    say(str(Path.cwd()))


if __name__ == "__main__":
    for behaviour in sys.argv[1:]:
        name, colon, value = behaviour.partition(":")
        globals()[name](*[value] if colon else [])
