"""How many pixels of encoded images are decoded at one time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Pixels that are decoded at one time, on all threads of all models; where they don't fit, a thread waits.

    One file is decoded in any case, however large it is. None: any number of pixels.
    """

    def __init__(self, pixels: int | None = None) -> None:
        self._most = pixels
        self._taken = 0
        self._changed = threading.Condition()
        self._line = threading.Lock()  # or small files would overtake a large one again and again

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Takes so many for the time of a context, as soon as there are so many."""
        with self._line, self._changed:
            self._changed.wait_for(lambda: not self._taken or self._most is None or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()
