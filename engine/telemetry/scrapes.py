"""HTTP for Prometheus: the metrics at /metrics and /, and nothing else, for a few who ask at once."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

_AT_ONCE = 8
_SILENCE_S = 3.0

_Respond = Callable[[str, list[tuple[str, str]]], Any]


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """Answers scrapes, at most eight at once: connections beyond are closed.

    Raises:
        OSError: When the address can't be used.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, family: int, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.address_family = family
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)
        self.set_app(_at_its_paths(make_wsgi_app(registry)))

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


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE_S

    def address_string(self) -> str:
        return str(self.client_address[0])  # without asking DNS for a name

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes come for ever; nobody wants a line for each."""


def _at_its_paths(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def answer(environment: dict[str, Any], respond: _Respond) -> Iterable[bytes]:
        if environment["PATH_INFO"] in ("/", "/metrics"):
            return app(environment, respond)
        respond("404 Not Found", [("Content-Type", "text/plain")])
        return [b"the metrics are at /metrics\n"]

    return answer
