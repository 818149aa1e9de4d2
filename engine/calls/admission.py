"""Who is let in: what calls are held to, and how many are inside."""

import asyncio
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass

from engine.calls.access import RateLimit, Tokens
from engine.errors import NotReady, Overloaded, ShuttingDown

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 0.1


@dataclass(frozen=True)
class Guards:
    """What calls are held to.

    Attributes:
        tokens: Who may call; None: everyone.
        certificates: Whether clients show certificates, by whose name they then go.
        rate: Images a second of each client; None: any number.
        max_calls: Calls that are answered at once.
        max_bytes: Bytes of requests and answers that are held at once; streams are not read while there are so many.
    """

    tokens: Tokens | None = None
    certificates: bool = False
    rate: RateLimit | None = None
    max_calls: int = 16384
    max_bytes: int = 512 * 2**20


class Admission:
    """Counts calls in and out. Construct it inside a running event loop; calls are refused until `open`.

    A call is inside until its answer has left, however slowly the client reads.

    Args:
        guards: What calls are held to.

    Attributes:
        calls: That are inside, streams among them.
        held: Bytes of their requests and answers; on streams, of requests without an answer yet, of the last source,
            and of answers that wait for their turn.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.calls = 0
        self.held = 0
        self._lock = threading.Lock()
        self._ready = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()

    def open(self) -> None:
        """Lets calls in from now on; before, they are refused with UNAVAILABLE."""
        self._ready = True

    def close(self) -> None:
        """Lets no more calls in."""
        self._closing = True

    async def wait_until_idle(self, timeout: float) -> None:
        """Returns when no call is inside, or after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._all_left(), timeout)
        except asyncio.TimeoutError:
            logger.warning("%d calls are cut off: the grace is over", self.calls)

    @property
    def is_full(self) -> bool:
        """Whether no more bytes of requests should be held."""
        return self.held >= self.guards.max_bytes

    def enter(self, size: int) -> None:
        """Counts a call in, whose request has `size` bytes.

        Raises:
            EngineError: When the server can't take it now.
        """
        if self._closing:
            raise ShuttingDown("the server is shutting down; send the request to another one")
        if not self._ready:
            raise NotReady("the server is warming up; send the request again when its health says SERVING")
        if self.calls >= self.guards.max_calls:
            raise Overloaded(
                f"the server is answering {self.calls} calls, its most; send again after a pause, or to another one",
                _RETRY_AFTER_S,
            )
        if self.held + size > self.guards.max_bytes:
            raise Overloaded(
                f"the server holds {self.held} bytes of requests, at most {self.guards.max_bytes}, and {size} more "
                "don't fit; send again after a pause, or to another one",
                _RETRY_AFTER_S,
            )
        with self._lock:
            self.calls += 1
            self.held += size

    def hold(self, size: int) -> None:
        """Counts more bytes, or fewer where `size` is negative."""
        with self._lock:
            self.held += size

    def leave(self, size: int) -> None:
        """Counts a call out, for which `size` bytes are held. On any thread."""
        with self._lock:
            self.calls -= 1
            self.held -= size
            awaited = self._closing and not self.calls
        if awaited:
            with suppress(RuntimeError):  # the event loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._left.set)

    async def _all_left(self) -> None:
        while self.calls:
            self._left.clear()
            if self.calls:
                await self._left.wait()
