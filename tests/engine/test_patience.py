"""Waiting for a crowd that comes back, and not for one that doesn't."""

from itertools import pairwise

import pytest

from engine.batching.patience import Patience


def wait_after(patience: Patience, answered: int, waiting: int, now_waiting: int, *, ms: float = 10.0) -> float:
    """How long a batch waits, ms, after one that took 10 ms."""
    patience.computed(answered, waiting, seconds=ms / 1e3, now=100.0)
    return max(0.0, patience.until(now_waiting) - 100.0) * 1e3


def test_a_lonely_client_never_waits() -> None:
    patience = Patience(32)
    assert patience.until(1) == 0
    for _ in range(3):
        patience.taken(1)
        assert wait_after(patience, 1, 0, 1) == 0


def test_who_was_there_is_waited_for_and_nobody_else() -> None:
    patience = Patience(32)
    patience.taken(5)
    assert wait_after(patience, 5, 3, 7) > 0
    assert wait_after(patience, 5, 3, 8) == 0


def test_nobody_waits_for_more_than_a_batch() -> None:
    patience = Patience(32)
    patience.taken(32)
    assert wait_after(patience, 32, 32, 31) > 0
    assert wait_after(patience, 32, 32, 32) == 0


def test_it_ends_before_the_last_batch_would_have() -> None:
    patience = Patience(32)
    for _ in range(10):
        patience.taken(8)
        assert 0 < wait_after(patience, 8, 0, 1) < 10
    assert wait_after(patience, 8, 0, 1, ms=60_000) < 100


def test_who_does_not_come_back_is_waited_for_less_and_less() -> None:
    patience = Patience(32)
    waits = []
    for _ in range(8):
        waits.append(wait_after(patience, 8, 0, 1))
        patience.taken(1)  # time is up, and seven are missing
    assert all(later <= earlier / 2 + 1e-6 for earlier, later in pairwise(waits))
    assert waits[-1] < 0.1
    for _ in range(10):  # they do come back
        patience.computed(8, 0, 0.01, 100.0)
        patience.taken(8)
    assert wait_after(patience, 8, 0, 1) == pytest.approx(waits[0])
