import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.latents import load_priors
from export.errors import InputError
from export.run import Run
from trainer.artifacts.prior import save_priors

ANEW = r"; make it anew with `python -m trainer directions \S+ --data DIR`"


def save(latent_dim: int, model_sha256: str) -> Callable[[Path], None]:
    mean, root = np.zeros(latent_dim, np.float32), np.eye(latent_dim, dtype=np.float32)
    return lambda path: save_priors(path, {"mean": mean, "factor": root}, 9, model_sha256)


def test_the_prior_is_the_trainers(shared_run: Path) -> None:
    run = Run.load(shared_run)
    assert run.prior.latent_dim == run.config.model.latent_dim
    expected = next(iter(load_priors(shared_run / "prior.safetensors").values()))
    np.testing.assert_array_equal(run.prior.draw(3, 5), expected.draw(3, 5))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"has no prior\.safetensors, which new faces are drawn from"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), r"prior\.safetensors can't be read as a prior"),
        (save(16, "ab" * 32), r"prior\.safetensors is of other weights than those of the run"),
        (save(5, ""), r"prior\.safetensors is of other weights than those of the run"),
    ],
)
def test_runs_without_one_of_their_own_are_refused(
    shared_run: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = Path(shutil.copytree(shared_run, tmp_path / "run"))
    spoil(folder / "prior.safetensors")
    with pytest.raises(InputError, match=message + ".*" + ANEW):
        Run.load(folder)
