"""Whether a batch that could start should wait for clients that are about to come back."""

# Of the time that the last batch took, at most, and in seconds.
_LONGEST = 0.75
_LONGEST_S = 0.02
# Fewer than this share of the expected ones are a disappointment.
_ENOUGH = 0.75


class Patience:
    """How long the next batch may wait for those whom the last one answered, and those who waited beside it.

    Clients that ask again as soon as they are answered come as a crowd. One batch of all of them takes less time than
    two of half of them, and while answers and requests are on the wire, compute doesn't take their processor: on two
    cores, with 32 single images in flight, a request took 0.81 of the processor time. A lonely client never waits: it
    is all that is expected. Others might wait in vain, so patience is learned: a crowd that doesn't come back halves
    it, one that does doubles it.

    Args:
        max_batch_size: Most items that are worth waiting for.
    """

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._share = _LONGEST
        self._until = 0.0
        self.expected = 0
        """Items that are worth waiting for."""

    def computed(self, answered: int, waiting: int, seconds: float, now: float) -> None:
        """A batch was computed.

        Args:
            answered: Items of the requests that are complete with it.
            waiting: Items that wait now.
            seconds: How long it took.
            now: The time.
        """
        self.expected = min(answered + waiting, self._max_batch_size)
        self._until = now + min(self._share * seconds, _LONGEST_S)

    def until(self, waiting: int) -> float:
        """Time until which a batch of so many should wait; 0 for one that shouldn't."""
        return self._until if waiting < self.expected else 0.0

    def taken(self, items: int) -> None:
        """A batch was started with so many in the queue."""
        came = items >= _ENOUGH * self.expected
        self._share = min(_LONGEST, 2 * self._share + 0.01) if came else self._share / 2
        self.expected = 0
