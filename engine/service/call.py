"""The call that is being answered: who makes it, under which name, and what it may spend."""

from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from engine.errors import Overloaded


class Stream(Protocol):
    """What a stream tells about itself while it is answered."""

    def hold(self, size: int) -> None:
        """It holds `size` bytes more until its end, or fewer where that is negative."""

    def replied(self, code: str, error: str) -> None:
        """A request was answered: "OK", or the gRPC status of the error in its answer and the sentence."""


class Account(Protocol):
    """What images and latents are paid from."""

    def spend(self, client: str, images: int) -> None:
        """Takes them out of the client's share.

        Raises:
            RateLimited: When it has used that up.
        """

    def give_back(self, client: str, images: int) -> None:
        """Puts back what was spent on a request that the server then had no room for."""

    def count(self, images: int) -> None:
        """Counts what was spent and stays so."""


@dataclass(slots=True)
class Call:
    """One call, from its arrival to its last answer.

    Attributes:
        client: Whose call it is, for fairness and limits: the name of the token, or of the certificate, else the
            peer's host.
        request_id: Name of the call in logs and traces.
        method: Name of the RPC, for example "Edit".
        account: What the images that the call asks for are paid from. None: there is no limit, and nobody counts.
        images: Images and latents that the call has asked for so far, without those that there was no room for.
        stream: Takes what a stream tells; None for other calls.
    """

    client: str = "local"
    request_id: str = ""
    method: str = ""
    account: Account | None = None
    images: int = 0
    stream: Stream | None = None

    def spending(self, images: int) -> "Spending":
        """To be entered around all work on a request of so many images or latents.

        Entering it raises RateLimited when the client has used up its share, with the time when it has enough again.
        What the server then has no room for costs the client nothing.
        """
        return Spending(self, images)


class Spending:
    """See `Call.spending`."""

    __slots__ = ("_call", "_images")

    def __init__(self, call: Call, images: int) -> None:
        self._call = call
        self._images = images

    def __enter__(self) -> None:
        if (account := self._call.account) is not None:
            account.spend(self._call.client, self._images)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (account := self._call.account) is None:
            return
        if kind is not None and issubclass(kind, Overloaded):
            account.give_back(self._call.client, self._images)
        else:
            account.count(self._images)
            self._call.images += self._images


_UNLIMITED = Call()
_current: ContextVar[Call] = ContextVar("call", default=_UNLIMITED)


def current() -> Call:
    """The call that this task answers; outside of any, one without limits."""
    return _current.get()


def enter(call: Call) -> None:
    """Makes `call` the current one, for the rest of this task and the tasks that it starts."""
    _current.set(call)
