import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from machine import as_nobody
from runs import ATTRIBUTES, LATENT_DIM, write_run
from safetensors.numpy import load_file, save_file

from engine.bundle import sha256_of
from export.errors import InputError
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


@pytest.mark.parametrize("value", [None, [], "cpu"])
def test_torn_results_of_the_resolution(tmp_path: Path, value: object) -> None:
    folder = write_run(tmp_path / "run", samples=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "resolved": value}))
    with pytest.raises(InputError, match=r"config\.json: `resolved` is .*, must be an object; copy the run again"):
        Run.load(folder)


def test_samples_must_fit_the_model(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", samples=2)
    save_file({"images": np.zeros((2, 32, 32, 3), np.uint8)}, folder / "samples.safetensors")
    with pytest.raises(InputError, match=r"`images` is uint8 \[2, 32, 32, 3\], must be uint8 \[2 or more, 64, 64, 3\]"):
        Run.load(folder)


def test_a_file_without_permission_is_not_called_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", samples=2)
    (folder / "config.json").chmod(0o000)
    code = """
from pathlib import Path
from export.errors import InputError
from export.run import Run
try:
    Run.load(Path("run"))
except InputError as error:
    print(error)
"""
    result = as_nobody(tmp_path, [sys.executable, "-c", code])
    assert result.stdout == (
        "run/config.json cannot be read (Permission denied); have its owner run `chmod a+r run/config.json`\n"
    ), result.stderr
