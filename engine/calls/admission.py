"""Who is let in: what calls are held to, and how many are inside."""

import asyncio
import logging
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
        max_bytes: Bytes of requests that are held at once; streams are not read while there are so many.
    """

    tokens: Tokens | None = None
    certificates: bool = False
    rate: RateLimit | None = None
    max_calls: int = 16384
    max_bytes: int = 512 * 2**20


class Admission:
    """Counts calls in and out. Construct it inside a running event loop; calls are refused until `open`.

    Args:
        guards: What calls are held to.

    Attributes:
        calls: That are being answered, streams among them.
        held: Bytes of their requests; on streams, of those without an answer yet.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.calls = 0
        self.held = 0
        self._ready = False
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self) -> None:
        """Lets calls in from now on; before, they are refused with UNAVAILABLE."""
        self._ready = True

    def close(self) -> None:
        """Lets no more calls in."""
        self._closing = True

    async def wait_until_idle(self, timeout: float) -> None:
        """Returns when no call is inside, or after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except asyncio.TimeoutError:
            logger.warning("%d calls are cut off after %g s of grace", self.calls, timeout)

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
        self.calls += 1
        self.held += size
        self._idle.clear()

    def leave(self, size: int) -> None:
        """Counts a call out that was counted in."""
        self.calls -= 1
        self.held -= size
        if not self.calls:
            self._idle.set()
