"""Interrupts that come at a bad moment."""

import signal
import subprocess
import sys
import threading

import pytest
from servers import ROOT

from trainer.signals import Signals, held_back

_TWO_SIGNALS = """
import signal, sys
from trainer.signals import Signals, held_back

signum = int(sys.argv[1])
with Signals(patient=True) as outer:
    try:
        with held_back() as signals:
            signal.raise_signal(signum)
            signal.raise_signal(signum)
            print("noted", signals.received)
    except KeyboardInterrupt:
        print("raised", outer.received)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_acts_when_the_block_ends(signum: int) -> None:
    """In a process of its own: what other tests have loaded may take signals, too."""
    number = int(signum)
    command = [sys.executable, "-c", _TWO_SIGNALS, str(number)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.split() == ["noted", str(number), "raised", str(number)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(signum: int) -> None:
    """Such as SIGINT, in what a script starts in the background."""
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with Signals() as signals, held_back() as within:
            signal.raise_signal(signum)
        assert not signals.received
        assert not within.received
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)


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
