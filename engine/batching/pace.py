"""How fast batches follow one another: how long one waits for clients, and when those who are refused come again."""

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


class Rate:
    """How fast a queue was served of late; batches of the past count less and less."""

    def __init__(self) -> None:
        self._items = 0.0
        self._seconds = 0.0
        self._ended = 0.0

    def add(self, items: int, arrived: float, ended: float) -> None:
        """Counts a batch whose first request arrived at one time, and that was computed at another."""
        self._items = 0.8 * self._items + items
        self._seconds = 0.8 * self._seconds + ended - max(arrived, self._ended)
        self._ended = ended

    def seconds(self, items: int) -> float:
        """Time that this many items may take, 0.01 to 60 s; 1 s as long as there is no experience."""
        if not self._items:
            return 1.0
        return min(max(items * self._seconds / self._items, 0.01), 60.0)
