"""How much each client may ask for: images a second."""

import time
from collections import OrderedDict
from collections.abc import Callable

from engine.errors import RateLimited

_MAX_CLIENTS = 10_000


class RateLimit:
    """A token bucket for each client: `rate` images a second, at most `burst` at once.

    A request of more than `burst` images passes when the bucket is full, and is paid off afterwards. The clients that
    were not heard of for longest are forgotten first, so that memory stays bounded.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str, images: int) -> None:
        """Takes a request's images out of the client's bucket.

        Raises:
            RateLimited: When it holds too few, with the time when it will hold enough; nothing is taken.
        """
        now = self._clock()
        level, then = self._buckets.get(client, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        missing = min(images, self._burst) - level
        if missing > 0:
            wait = missing / self._rate
            raise RateLimited(
                f"{client} may send {self._rate:g} images a second and has used them up; "
                f"send {images} more in {wait:.3g} s",
                retry_after_s=wait,
            )
        self._buckets[client] = (level - images, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)

    def give_back(self, client: str, images: int) -> None:
        """Puts back what a request has spent."""
        if client in self._buckets:
            level, then = self._buckets[client]
            self._buckets[client] = (min(self._burst, level + images), then)
