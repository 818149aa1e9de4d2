"""HTTP for Prometheus: the metrics at /metrics and /, and nothing else, for a few who ask at once."""

import socket
import threading
from contextlib import suppress
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler

_AT_ONCE = 8
_TIME_LIMIT_S = 3.0  # for a request to come, and for each step of its answer


class ScrapeServer(ThreadingHTTPServer):
    """Answers scrapes, at most eight at once: connections beyond are closed.

    Raises:
        OSError: When the address can't be used.
    """

    request_queue_size = 64

    def __init__(self, family: int, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.address_family = family
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler.factory(registry))

    def server_bind(self) -> None:
        """Binds the address. HTTPServer would ask DNS for its name, too, which takes long where DNS is silent."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives the connection a thread, where one is free."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """On that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away or says nothing is no error of the server's."""


class _Handler(MetricsHandler):
    timeout = _TIME_LIMIT_S

    def handle(self) -> None:
        limit = threading.Timer(_TIME_LIMIT_S, _stop_reading, (self.connection,))
        limit.start()
        try:
            super().handle()
        finally:
            limit.cancel()

    def do_GET(self) -> None:  # noqa: N802
        if urlsplit(self.path).path in ("/", "/metrics"):
            super().do_GET()
        else:
            self.send_error(404, explain="the metrics are at /metrics")


def _stop_reading(connection: socket.socket) -> None:
    with suppress(OSError):  # the client has gone
        connection.shutdown(socket.SHUT_RD)
