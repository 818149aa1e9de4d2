"""How batches follow one another: how long one waits for clients, and which needn't."""

# Of the time that the last batch took, at most, and in seconds.
_LONGEST = 0.75
_LONGEST_S = 0.02
# Where fewer than this share of the expected requests came, the wait was in vain.
_ENOUGH = 0.75
# Half batches have this many items at least; smaller ones take too long an item.
_LEAST_HALF = 12
# As many times the largest batch must be under way for the next batch to fill while one is computed.
_ENOUGH_TO_FILL = 1.5


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

        `answered` requests are complete with it, whose client still wants them, and `waiting` ones wait now; it took
        `seconds`.
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


class HalfBatches:
    """Batches that have nothing to wait for: full ones, and where batches overlap halves.

    Of a crowd that is too small to fill a batch while another is computed, one half is computed while the other is on
    the wire, and no core is idle. Not of large requests, which would be cut in two.
    """

    def __init__(self, largest: int, overlaps: int) -> None:
        self._largest = largest
        self._half = largest // 2 if overlaps and largest // 2 >= _LEAST_HALF else 0  # items; 0: there are no halves
        self._computing = 0  # items of batches that are being computed
        self._crowd = 0.0  # items under way, of late

    def ready(self, waiting: int, requests: int) -> int:
        """Items of the next batch of so many that wait, in so many requests; 0 where it should wait for others."""
        if waiting >= self._largest:
            return self._largest
        halves = self._half and self._crowd < _ENOUGH_TO_FILL * self._largest
        small = waiting <= requests * self._half // 4
        return self._half if halves and small and waiting >= self._half else 0

    def taken(self, items: int) -> None:
        """A batch was started."""
        self._computing += items

    def computed(self, items: int, waiting: int) -> None:
        """It was computed, while so many wait now."""
        self._crowd = max(self._computing + waiting, 0.9 * self._crowd)
        self._computing -= items
