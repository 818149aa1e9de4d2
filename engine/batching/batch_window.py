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
    cores, with 32 single images in flight, a request took 0.81 of the processor time. The members of the crowd are
    requests, of whatever size; a client that has several in flight counts as several. One that is alone never waits:
    it is all that is expected. Others might wait in vain, so patience is learned: a crowd that doesn't come back halves
    it, one that does doubles it.
    """

    def __init__(self) -> None:
        self._share = _LONGEST
        self._until = 0.0
        self.expected = 0
        """Requests that are worth waiting for: 0, or a crowd of 2 or more."""

    def computed(self, answered: int, waiting: int, seconds: float, now: float) -> None:
        """A batch was computed.

        Args:
            answered: Requests that are complete with it, and whose client still wants them.
            waiting: Requests that wait now.
            seconds: How long it took.
            now: The time.
        """
        crowd = answered + waiting
        self.expected = crowd if crowd > 1 else 0
        self._until = now + min(self._share * seconds, _LONGEST_S)

    def until(self, waiting: int) -> float:
        """Time until which a batch should wait while so many requests do; 0 for one that shouldn't."""
        return self._until if waiting < self.expected else 0.0

    def taken(self, waiting: int, full: bool) -> None:
        """A batch was started of so many requests that waited; a full one had no more to wait for."""
        if self.expected:
            came = full or waiting >= _ENOUGH * self.expected
            self._share = min(_LONGEST, 2 * self._share + 0.01) if came else self._share / 2
        self.expected = 0
