"""The call that is being answered: who makes it, under which name, and what it may spend."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


class Stream(Protocol):
    """What a stream tells about itself while it is answered."""

    def hold(self, size: int) -> None:
        """It holds `size` bytes more until its end, or fewer where that is negative."""

    def replied(self, code: str, error: str) -> None:
        """A request was answered: "OK", or the gRPC status of the error in its answer and the sentence."""


@dataclass(slots=True)
class Call:
    """One call, from its arrival to its last answer.

    Attributes:
        client: Whose call it is, for fairness and limits: the name of the token, or of the certificate, else the
            peer's host.
        request_id: Name of the call in logs and traces.
        method: Name of the RPC, for example "Edit".
        account: Takes (client, images) for every batch of images that the call asks for; raises RateLimited when
            the client has used up its share. None: no limit.
        images: Images and latents that the call has asked for so far.
        stream: Takes what a stream tells; None for other calls.
    """

    client: str = "local"
    request_id: str = ""
    method: str = ""
    account: Callable[[str, int], None] | None = None
    images: int = 0
    stream: Stream | None = None

    def spend(self, images: int) -> None:
        """Counts the images or latents of a request, before any work on them.

        Raises:
            RateLimited: When the client has used up its share, with the time when it has enough again.
        """
        if self.account is not None:
            self.account(self.client, images)
            self.images += images


_UNLIMITED = Call()
_current: ContextVar[Call] = ContextVar("call", default=_UNLIMITED)


def current() -> Call:
    """The call that this task answers; outside of any, one without limits."""
    return _current.get()


def enter(call: Call) -> None:
    """Makes `call` the current one, for the rest of this task and the tasks that it starts."""
    _current.set(call)
