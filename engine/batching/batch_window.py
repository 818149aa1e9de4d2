"""How long a batch that could start waits for clients that are about to come back."""

# Of the time that the last batch took, at most, and in seconds.
_LONGEST = 0.75
_LONGEST_S = 0.02
# Where fewer than this share of the expected requests came, the wait was in vain.
_ENOUGH = 0.75


class BatchWindow:
    """Waits for the clients that the last batch answered, and for those that waited beside it.

    Clients that ask again as soon as they are answered come together. One batch of all of them takes less processor
    time than several of a few, and while answers and requests are on the wire, compute doesn't take their processor.
    What counts are requests of whatever size, so a client with several in flight counts as several. A client that is
    alone never waits: it is all that is expected. The window adapts: a wait in vain halves it, another doubles it.
    """

    def __init__(self) -> None:
        self._share = _LONGEST
        self._until = 0.0
        self.expected = 0
        """Requests that are worth waiting for: 0, or at least 2."""

    def computed(self, answered: int, waiting: int, seconds: float, now: float) -> None:
        """A batch was computed.

        Args:
            answered: Requests that are complete with it, and whose client still wants them.
            waiting: Requests that wait now.
            seconds: How long it took.
            now: The time.
        """
        expected = answered + waiting
        self.expected = expected if expected > 1 else 0
        self._until = now + min(self._share * seconds, _LONGEST_S)

    def until(self, waiting: int) -> float:
        """Time until which a batch should wait while so many requests do; 0 for one that shouldn't."""
        return self._until if waiting < self.expected else 0.0

    def taken(self, waiting: int, full: bool) -> None:
        """A batch was started while so many requests waited; a full one had no more to wait for."""
        if self.expected:
            came = full or waiting >= _ENOUGH * self.expected
            self._share = min(_LONGEST, 2 * self._share + 0.01) if came else self._share / 2
        self.expected = 0
