import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.model import VAE
from trainer.optim.ema import WeightAverage
from trainer.training import train


def test_the_average_follows_weights_and_statistics(small: TrainConfig) -> None:
    """Worked by hand: decays of steps 0 and 1 are 1/10 and 2/11, then 0.2 wins over 3/12."""
    model = VAE(small.model)
    name, expected = "encoder.blocks.0.1.running_mean", 0.0
    weight, statistic = model.encoder.mu.bias, model.get_buffer(name)
    torch.nn.init.zeros_(weight)
    average = WeightAverage(model, 0.2)
    for step, decay in enumerate((1 / 10, 2 / 11, 0.2)):
        torch.nn.init.constant_(weight, step + 1)
        statistic.fill_(step + 1)
        average.update(model, step)
        expected = decay * expected + (1 - decay) * (step + 1)
    for followed in (average.model.encoder.mu.bias, average.model.get_buffer(name)):
        assert torch.allclose(followed, torch.full_like(followed, expected))


def test_a_run_saves_and_resumes_its_average(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    config = replace(small, ema_decay=0.9)
    train(config, data, tmp_path / "run")
    state = run_folder.load_checkpoint(tmp_path / "run")
    saved = load_file(tmp_path / "run" / run_folder.MODEL)
    assert all(torch.equal(saved[name], state["average"][name]) for name in saved)
    assert not torch.equal(saved["encoder.mu.weight"], state["learner"]["vae.encoder.mu.weight"])
    assert json.loads(state["config"])["ema_decay"] == 0.9
