"""How fast a queue is served, for those who are told when to come again."""


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
