"""A call's permit: the transport asks it for room, and tells it what has come."""

from collections.abc import Callable
from typing import Protocol


class Permit(Protocol):
    """What a call holds that was admitted; `engine.access.admission.CallPermit` counts it. For any thread."""

    client: str

    def receive_when_room(self, receive: Callable[[], None]) -> None:
        """Calls `receive`, which asks core for the call's next message, as soon as there is room for one."""
        receive()

    def received(self, size: int) -> None:
        """The message has come, of `size` bytes; or none will."""
        return

    def started(self) -> None:
        """The event loop begins to answer the call."""
        return

    def abandon(self) -> bool:
        """Releases the permit if the call still waits for room for its message; whether it did."""
        return False

    def release(self) -> None:
        """The call is over; it may be told so twice."""
        return


class Unlimited(Permit):
    """A permit where nothing is counted, and there is room for everything."""

    client = ""
