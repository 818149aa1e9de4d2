from pathlib import Path

import numpy as np
import torch
from runs import ATTRIBUTES, LATENT_DIM, write_run
from safetensors.numpy import load_file

from engine.bundle import sha256_of
from export.run import Run


def test_everything_that_an_export_needs(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", samples=3)
    run = Run.load(folder)
    assert run.path == folder
    assert (run.config.preset, run.config.model.latent_dim, run.resolved["steps"]) == ("plain", LATENT_DIM, 7)
    assert run.model_sha256 == sha256_of(folder / "model.safetensors")
    assert run.directions.names == ATTRIBUTES
    assert not run.model.training
    weight = load_file(folder / "model.safetensors")["encoder.mu.weight"]
    np.testing.assert_array_equal(run.model.encoder.mu.weight.detach().numpy(), weight)
    np.testing.assert_array_equal(run.samples, load_file(folder / "samples.safetensors")["images"])
    torch.from_numpy(run.samples)[0] = 0  # memory that may be written to
