"""What one client has of the server, and what it may have more."""

from collections.abc import Callable

KEPT = 8
"""The last part of this number is for clients that have less than such a part themselves."""


class Share:
    """What one client has of the server.

    Attributes:
        calls: That are inside, streams among them.
        streams: That are inside.
        held: Bytes for its calls.
        expecting: Calls that hold room for a message to come.
        windows: Bytes that may have come of messages that it has no room for yet, or that its streams wait for.
        unbegun: Calls whose message has come, and which the event loop has not begun.
        overloaded: By method, what raises as long as the queue that last refused its call has no room for another.
    """

    __slots__ = ("calls", "expecting", "held", "overloaded", "streams", "unbegun", "windows")

    def __init__(self) -> None:
        self.overloaded: dict[str, Callable[[], None]] = {}
        self.calls = self.streams = self.held = self.windows = self.expecting = self.unbegun = 0


def fits(total: int, own: int, more: int, most: int) -> bool:
    """Whether a client that has `own` of the `total` may have `more`, where there are `most`."""
    kept = most // KEPT
    return total + more <= most - kept or (total + more <= most and own + more <= kept) or not total
