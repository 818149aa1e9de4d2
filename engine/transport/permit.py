"""What a call holds of the server's room: the transport asks for it, and tells what has come."""

from collections.abc import Callable
from typing import Protocol


class Ticket(Protocol):
    """Of a call that was let in; `engine.calls.admission.Ticket` counts. Methods are called on any thread.

    Attributes:
        client: The name that its client goes by.
    """

    client: str

    def ask(self, receive: Callable[[], None]) -> None:
        """Calls `receive`, which asks core for the call's next message, as soon as there is room for one."""

    def came(self, size: int) -> None:
        """The message has come, of `size` bytes; or none will."""

    def begin(self) -> None:
        """The event loop begins to answer the call."""

    def give_up(self) -> bool:
        """Ends the call if it still waits for room for its message; whether it did."""

    def leave(self) -> None:
        """The call is over; it may be told so twice."""


class FreeTicket:
    """Where nothing is counted, and there is room for everything."""

    client = ""

    def ask(self, receive: Callable[[], None]) -> None:
        """As `Ticket.ask` says."""
        receive()

    def came(self, size: int) -> None:
        """As `Ticket.came` says."""

    def begin(self) -> None:
        """As `Ticket.begin` says."""

    def give_up(self) -> bool:
        """As `Ticket.give_up` says."""
        return False

    def leave(self) -> None:
        """As `Ticket.leave` says."""
