"""Interrupts that come at a bad moment."""

import signal
import threading

import pytest

from trainer.signals import Signals, held_back


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_acts_when_the_block_ends(signum: int) -> None:
    seen: list[int] = []

    def work() -> None:
        with held_back() as signals:
            signal.raise_signal(signum)
            signal.raise_signal(signum)
            seen.append(signals.received)

    with Signals(patient=True) as outer, pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [signum]
    assert outer.received == signum


def test_a_block_without_an_interrupt_just_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_back() as signals:
        assert not signals.received
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_not_interrupted() -> None:
    ended: list[bool] = []

    def work() -> None:
        with held_back() as signals:
            ended.append(not signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]
