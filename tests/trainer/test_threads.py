import os
import subprocess
import sys

import psutil
import pytest
import torch

from trainer.hardware import threads


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores are this process's, of eight; OpenMP is told nothing."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 4, 6})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([2, 100, 0, 100, 1, 100, 3, 100], 4),  # others' cores do not count
        ([100, 0, 5, 0, 1, 0, 3, 0], 3),
        ([100, 0, 100, 0, 70, 0, 3, 0], 1),
        ([100, 0, 100, 0, 100, 0, 100, 0], 1),
    ],
)
def test_as_many_threads_as_free_cores(
    loads: list[float], chosen: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: loads)
    with caplog.at_level("INFO"):
        assert threads.choose(None) == chosen
    said = "this machine is busy: " in caplog.text
    assert said == (chosen < 4)
    assert threads.choose(None, recorded=7) == 7
    assert threads.choose(6, recorded=7) == 6


@pytest.mark.usefixtures("cores")
def test_a_containers_quota_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: [0.0] * 8)
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)
    assert threads.choose(None) == 2


def test_openmps_own_setting_counts_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.choose(None) == torch.get_num_threads()


def test_a_busy_process_is_noticed() -> None:
    """Every core has one, so that at most a part of each is left."""
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        assert threads.free_cores() < max(1.5, 0.7 * len(busy))
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_the_number_is_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    with threads.limited(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
