"""An HTTP server for one page that clients can't exhaust by never finishing their requests.

prometheus_client's own keeps a thread and a descriptor for each of those forever: after a few hundred, the
process can't open files any more.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

# Connections at once. If there are more, the oldest is dropped: a scrape takes only milliseconds.
MOST = 16
# Seconds without any data after which a request is dropped.
PATIENCE = 10


class PageServer(ThreadingMixIn, WSGIServer):
    """Serves the WSGI application on a thread until `stop`. OSError if the address isn't available."""

    daemon_threads = True

    def __init__(self, host: str, port: int, application: Callable[..., Any]) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        self._connections: dict[socket.socket, None] = {}  # oldest first
        self._lock = threading.Lock()
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(application)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            while len(self._connections) > MOST:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                # Its thread sees the end and closes it: closed here, the number could be reused too early.
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that went away or were dropped."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, *_: object) -> None:
        """Prints nothing: the live table is on the terminal."""
