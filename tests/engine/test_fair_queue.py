"""The order of service, one batch after the other. What is asserted is what `engine.batching.fair_queue` promises."""

import asyncio
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batching.fair_queue import FairQueue, Request

MAX_BATCH_SIZE = 32


class Scene:
    """A queue whose requests are known by name."""

    def __init__(self) -> None:
        self.queue = FairQueue(MAX_BATCH_SIZE)
        self._loop = asyncio.new_event_loop()

    def push(
        self, name: str, size: int = 1, *, client: str = "", priority: int = 0, deadline: float | None = None
    ) -> Request:
        items = np.zeros((size, 1), np.uint8)
        request = Request(items, deadline, 0.0, self._loop.create_future(), tag=name)
        self.queue.push(request, client, priority)
        return request

    def batch(self, now: float = 0.0) -> Counter[str]:
        """Takes a batch; items by the name of their request."""
        pieces, _ = self.queue.take(MAX_BATCH_SIZE, now)
        served: Counter[str] = Counter()
        for request, start, stop in pieces:
            served[request.tag] += stop - start
        return served

    def batches(self, number: int) -> list[Counter[str]]:
        return [self.batch() for _ in range(number)]

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_one_image_passes_a_large_request(scene: Scene) -> None:
    scene.push("large", 1000, client="a")
    scene.batch()
    scene.push("one", client="b")
    assert scene.batch() == {"one": 1, "large": 31}


def test_one_image_passes_a_thousand_single_ones_of_another(scene: Scene) -> None:
    for _ in range(1000):
        scene.push("many", client="a")
    scene.batch()
    scene.push("one", client="b")
    assert scene.batch()["one"] == 1


def test_one_image_passes_many_clients_with_full_batches(scene: Scene) -> None:
    for client in range(31):
        scene.push("full", 32, client=str(client))
    for _ in range(31):
        scene.push("one", client="z")
        assert scene.batch()["one"] == 1


def test_clients_get_equal_shares_whatever_the_size_of_their_requests(scene: Scene) -> None:
    scene.push("large", 2000, client="a")
    for _ in range(2000):
        scene.push("single", client="b")
    for _ in range(100):
        scene.push("medium", 20, client="c")
    served = sum(scene.batches(60), Counter())
    assert sum(served.values()) == 60 * MAX_BATCH_SIZE
    for share in served.values():
        assert abs(share - 20 * MAX_BATCH_SIZE) <= 2 * MAX_BATCH_SIZE


def test_requests_of_a_batch_are_served_whole_in_the_order_of_arrival(scene: Scene) -> None:
    for client in "abc":
        scene.push(client, 32, client=client)
    assert scene.batches(3) == [{"a": 32}, {"b": 32}, {"c": 32}]


def test_a_small_request_passes_a_large_one_of_its_own_client(scene: Scene) -> None:
    scene.push("large", 1000)
    scene.push("one")
    assert scene.batch() == {"large": 32}
    assert scene.batch() == {"one": 1, "large": 31}


def test_a_large_request_goes_on_among_small_ones_of_its_own_client(scene: Scene) -> None:
    scene.push("large", 128)
    served: Counter[str] = Counter()
    for _ in range(12):
        for _ in range(20):
            scene.push("one")
        served += scene.batch()
    assert served["large"] == 128


def test_a_request_that_a_batch_cut_is_finished_next(scene: Scene) -> None:
    for client in "abcd":
        scene.push(client, 20, client=client)
    assert scene.batches(3) == [{"a": 20, "b": 12}, {"b": 8, "c": 20, "d": 4}, {"d": 16}]


def test_priorities_weigh_eight_to_one(scene: Scene) -> None:
    for priority in (-1, 0, 1):
        scene.push(str(priority), 10_000, client="same", priority=priority)
    served = sum(scene.batches(146), Counter())  # 2 * (64 + 8 + 1)
    for name, share in {"1": 128, "0": 16, "-1": 2}.items():
        assert abs(served[name] - share * MAX_BATCH_SIZE) <= 2 * MAX_BATCH_SIZE


def test_an_interactive_request_goes_first(scene: Scene) -> None:
    for client in range(40):
        scene.push("normal", client=str(client))
    scene.push("interactive", client="z", priority=1)
    pieces, _ = scene.queue.take(MAX_BATCH_SIZE, 0.0)
    assert pieces[0].request.tag == "interactive"


@pytest.mark.parametrize(("priority", "size", "patience"), [(0, 32, 34), (0, 1000, 34), (-1, 32, 258)])
def test_an_endless_stream_of_new_clients_starves_nobody(scene: Scene, priority: int, size: int, patience: int) -> None:
    names = map(str, count())
    for _ in range(MAX_BATCH_SIZE):
        scene.push("new", client=next(names))
    scene.push("patient", size, client="patient", priority=priority)
    batches = 0
    while not scene.batch()["patient"]:
        batches += 1
        assert batches < patience
        while scene.queue.waiting < 2 * MAX_BATCH_SIZE:
            scene.push("new", client=next(names))


@pytest.mark.parametrize(("clients", "most"), [(3, 0), (31, 0), (64, 64), (300, 300)])
def test_one_image_waits_for_one_turn_of_each_at_most(scene: Scene, clients: int, most: int) -> None:
    for client in range(clients):
        scene.push("large", 1000, client=str(client))
    for _ in range(5):
        scene.batches(2 * clients + 1)
        scene.push("one", client="z")
        waited = 0
        while not scene.batch()["one"]:
            waited += 1
        assert waited <= most


def test_a_pause_saves_nothing_up(scene: Scene) -> None:
    scene.push("a", 5000, client="a")
    scene.batches(100)
    for _ in range(200):
        scene.push("b", client="b")
    served = sum(scene.batches(6), Counter())
    assert abs(served["b"] - served["a"]) <= 2 * MAX_BATCH_SIZE


def test_what_is_past_its_deadline_is_not_taken(scene: Scene) -> None:
    late = scene.push("late", 40, deadline=1.0)
    scene.push("in time", 3, deadline=2.0)
    assert scene.batch(now=0.5) == {"late": 32}
    pieces, expired = scene.queue.take(MAX_BATCH_SIZE, 1.5)
    assert [piece.request.tag for piece in pieces] == ["in time"]
    assert expired == [late]
    assert scene.queue.waiting == 0


def test_dropped_requests_leave_at_once(scene: Scene) -> None:
    requests = [scene.push("one", 2, client=str(index % 3)) for index in range(30)]
    random.Random(0).shuffle(requests)
    for index, request in enumerate(requests[:29]):
        scene.queue.drop(request)
        scene.queue.drop(request)
        assert scene.queue.waiting == 2 * (29 - index)
    assert scene.batch() == {"one": 2}
    assert not scene.batch()


@pytest.mark.parametrize("expires", [False, True])
@pytest.mark.parametrize("priority", [-1, 0, 1])
def test_what_was_cancelled_or_expired_delays_nothing_behind_it(scene: Scene, priority: int, expires: bool) -> None:
    def others() -> None:
        for client in range(20):
            while scene.queue.waiting_of(str(client)) < 4:
                scene.push("other", client=str(client))

    def batches_until_one() -> int:
        for number in count(1):
            others()
            if scene.batch(now=1.0)["one"]:
                return number
        raise AssertionError

    others()
    scene.push("one", client="me", priority=priority)
    alone = batches_until_one()
    scene.batches(300)  # what the client owes is forgotten
    large = scene.push("large", 32, client="me", priority=priority, deadline=0.5 if expires else None)
    scene.push("one", client="me", priority=priority)
    if not expires:
        scene.queue.drop(large)
        assert batches_until_one() <= alone
    else:  # found out when it is its turn
        assert batches_until_one() <= {-1: 256, 0: 32, 1: 4}[priority] + alone


def test_a_large_request_does_not_inherit_the_place_of_a_small_one(scene: Scene) -> None:
    small = scene.push("small", client="me")
    scene.push("large", 32, client="me")
    scene.push("other", 16, client="other")
    scene.queue.drop(small)
    pieces, _ = scene.queue.take(MAX_BATCH_SIZE, 0.0)
    assert [piece.request.tag for piece in pieces] == ["other", "large"]


def test_a_request_that_waited_in_vain_leaves_its_client_no_credit(scene: Scene) -> None:
    scene.push("other", 10_000, client="other")
    large = scene.push("large", 32, client="me", priority=-1)
    scene.batches(7)  # at the eighth it would be its turn
    for _ in range(32):
        scene.push("one", client="me", priority=-1)
    scene.queue.drop(large)
    assert scene.batch()["one"] <= 8


def test_requests_that_are_cancelled_again_and_again_leave_nothing_behind(scene: Scene) -> None:
    scene.push("always there", 100, client="z", priority=-1)
    tracemalloc.start()
    try:
        for number in range(20_000):
            for client in ("same", f"client {number}"):
                requests = [scene.push("one", size, client=client, priority=-1) for size in (9, 1)]
                for request in requests:
                    scene.queue.drop(request)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000  # bytes; all of them would hold millions
    assert scene.queue.requests == 1
    assert scene.batch() == {"always there": 32}


def test_clients_of_the_past_are_forgotten(scene: Scene) -> None:
    scene.push("always there", 10**6, client="z", priority=-1)
    tracemalloc.start()
    try:
        for client in range(20_000):
            scene.push("one", client=f"client {client}")
            if client % 10 == 0:
                scene.batch()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scene.queue.waiting > 0
    assert held < 200_000  # bytes; all of them would hold millions


_push = st.tuples(st.just("push"), st.integers(1, 100), st.integers(0, 4), st.integers(-1, 1), st.booleans())
_take = st.tuples(st.just("take"), st.integers(1, 32))
_drop = st.tuples(st.just("drop"), st.integers(0, 50))


@settings(deadline=None)
@given(st.lists(_push | _take | _drop, max_size=60))
def test_every_item_is_taken_once_and_in_order(steps: list[tuple[object, ...]]) -> None:
    scene = Scene()
    requests: list[Request] = []
    expected: dict[Request, int] = {}  # the next item of each request that waits
    try:
        for step in [*steps, *[("take", 32)] * 200]:
            match step:
                case ("push", int(size), int(client), int(priority), bool(late)):
                    deadline = 0.0 if late else None
                    request = scene.push("", size, client=str(client), priority=priority, deadline=deadline)
                    requests.append(request)
                    expected[request] = 0
                case ("drop", int(index)) if requests:
                    request = requests[index % len(requests)]
                    scene.queue.drop(request)
                    expected.pop(request, None)
                case ("take", int(room)):
                    pieces, expired = scene.queue.take(room, now=1.0)
                    for request in expired:
                        assert expected.pop(request) == 0
                        assert request.deadline == 0.0
                    for request, start, stop in pieces:
                        assert request.deadline is None
                        assert start == expected[request] < stop
                        expected[request] = stop
                        if stop == request.size:
                            del expected[request]
                    taken = sum(stop - start for _, start, stop in pieces)
                    assert taken == room or not scene.queue.waiting
            assert scene.queue.waiting == sum(request.size - start for request, start in expected.items())
            assert scene.queue.waiting == sum(scene.queue.waiting_of(str(client)) for client in range(5))
            assert scene.queue.requests == len(expected)
        assert not expected
    finally:
        scene.close()
