"""Waiting for a crowd that comes back, and not for one that doesn't."""

from itertools import pairwise

import pytest

from engine.batching.scheduler import BatchWindow


def wait_after(window: BatchWindow, answered: int, waiting: int, now_waiting: int, *, ms: float = 4.0) -> float:
    """How long a batch waits after one that took `ms`; milliseconds, too."""
    window.computed(answered, waiting, seconds=ms / 1e3, now=100.0)
    return max(0.0, window.until(now_waiting) - 100.0) * 1e3


def disappoint(window: BatchWindow, times: int) -> list[float]:
    """Lets one of eight come back, again and again; how long a batch waited, ms."""
    waits = []
    for _ in range(times):
        waits.append(wait_after(window, 8, 0, 1))
        window.taken(1, full=False)  # time is up, and seven are missing
    return waits


@pytest.mark.parametrize(("answered", "waiting"), [(1, 0), (0, 1)])
def test_a_lonely_client_never_waits(answered: int, waiting: int) -> None:
    window = BatchWindow()
    assert window.until(1) == 0
    for full in (False, True, False):
        window.taken(1, full)
        assert wait_after(window, answered, waiting, 1) == 0


def test_who_was_there_is_waited_for_and_nobody_else() -> None:
    window = BatchWindow()
    window.taken(5, full=False)
    assert wait_after(window, 5, 3, 7) > 0
    assert wait_after(window, 5, 3, 8) == 0


def test_it_does_not_grow_without_end() -> None:
    window = BatchWindow()
    for _ in range(10):
        window.taken(8, full=False)
        assert wait_after(window, 8, 0, 1, ms=2.0) == pytest.approx(2.5 * 2)
    assert wait_after(window, 8, 0, 1, ms=60_000) < 100


def test_who_does_not_come_back_is_waited_for_less_and_less() -> None:
    window = BatchWindow()
    waits = disappoint(window, 9)
    assert all(later <= earlier / 2 + 1e-6 for earlier, later in pairwise(waits))
    assert waits[-1] < 0.1
    for _ in range(10):  # they do come back
        window.computed(8, 0, 0.004, 100.0)
        window.taken(8, full=False)
    assert wait_after(window, 8, 0, 1) == pytest.approx(waits[0])


def test_a_full_batch_is_no_disappointment_however_few_fill_it() -> None:
    window = BatchWindow()
    first = wait_after(window, 8, 0, 1)
    for _ in range(5):
        window.computed(8, 8, 0.01, 100.0)
        window.taken(8, full=True)
    assert wait_after(window, 8, 0, 1) == first


def test_what_starts_while_nobody_is_expected_teaches_nothing() -> None:
    window = BatchWindow()
    disappoint(window, 6)
    for full in (False, True) * 5:
        window.taken(8, full)  # beside a batch that is being computed
        window.computed(1, 0, 0.01, 100.0)  # by somebody who is alone
        window.taken(1, full)
    assert wait_after(window, 8, 0, 1) == pytest.approx(2.5 * 4 / 2**6)
