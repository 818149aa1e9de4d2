"""Training that is killed without warning, and gone on with."""

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data import load_data
from trainer.training import train

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["trainer.training"])  # loads PyTorch once for all processes


def work(config: TrainConfig, faces: Path, run: Path) -> None:
    torch.set_num_threads(1)
    train(config, load_data(faces, 32, 148), run, resume=True)


def start(config: TrainConfig, faces: Path, run: Path) -> multiprocessing.process.BaseProcess:
    process = FRESH.Process(target=work, args=(config, faces, run))
    process.start()
    return process


def written(run: Path) -> int:
    """Changes with every checkpoint."""
    path = run / run_folder.CHECKPOINT
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_after(process: multiprocessing.process.BaseProcess, run: Path, checkpoints: int, seconds: float) -> None:
    """Kills a process some time after it has written some checkpoints."""
    last = written(run)
    while checkpoints and process.is_alive():
        if written(run) != last:
            last, checkpoints = written(run), checkpoints - 1
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.join(250)


def contents(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / run_folder.MODEL) | load_file(run / run_folder.DIRECTIONS)


def test_killed_at_any_moment_it_ends_at_the_very_same_weights(small: TrainConfig, faces: Path, tmp_path: Path) -> None:
    """With a checkpoint after every step, much of the time is spent in writing: some kills hit that."""
    config = replace(small, epochs=12, optimizer="muon", save_minutes=1e-9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(config, faces, whole)
    process.join(250)
    assert process.exitcode == 0
    random = np.random.default_rng(0)
    steps = []
    for _ in range(6):
        kill_after(start(config, faces, parts), parts, int(random.integers(1, 4)), random.uniform(0, 0.01))
        steps.append(run_folder.load_checkpoint(parts)["step"])  # never torn
    assert steps == sorted(set(steps))  # each went on from where the one before had come to
    process = start(config, faces, parts)
    process.join(250)
    assert process.exitcode == 0
    expected, found = contents(whole), contents(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not list(parts.glob(".*.tmp"))
    records = [(run / run_folder.METRICS).read_text().splitlines() for run in (whole, parts)]
    assert [json.loads(line)["step"] for line in records[1]] == [json.loads(line)["step"] for line in records[0]]
