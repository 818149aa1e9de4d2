from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance

from engine.latents import Gaussian, load_priors
from trainer.data import FaceData
from trainer.evaluation import networks
from trainer.evaluation.encoded_run import EncodedRun
from trainer.evaluation.generation import fid, frechet_on_features, image_sets
from trainer.hardware.device import Placement

CPU = Placement.of("cpu", "fp32")


def flat_images(levels: np.ndarray) -> np.ndarray:
    """(N, 3) levels of red, green and blue to images of one colour each, (N, 8, 8, 3)."""
    return np.tile(levels[:, None, None, :].astype(np.uint8), (1, 8, 8, 1))


class MeanColour(nn.Module):
    """A stand-in for VGG19 whose features are known: the mean colour, in levels."""

    taps = ("colour",)
    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * 255


def test_samples_are_drawn_from_the_runs_prior_as_the_server_draws(trained: Path, data: FaceData) -> None:
    encoded = EncodedRun.of(trained, data, CPU)
    sets = image_sets(encoded, seed=3)
    count = len(encoded.rows)
    priors = load_priors(trained / "prior.safetensors")
    for name, prior in {**priors, "prior": Gaussian.standard(encoded.mu.shape[1])}.items():
        assert np.array_equal(sets[name], encoded.decode(prior.draw(count, 3)))


def test_frechet_distance_of_known_gaussians() -> None:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)): a shift by 10 of one channel alone is 100."""
    random = np.random.default_rng(0)
    levels = random.integers(60, 160, (400, 3))
    shifted = levels + np.array([10, 0, 0])
    half = levels.copy()
    half[:, 1] = 110 + (levels[:, 1] - 110) // 2
    sets = {"same": flat_images(levels), "shifted": flat_images(shifted), "narrower": flat_images(half)}
    measured = frechet_on_features(MeanColour(), "made up", flat_images(levels), sets, CPU)  # type: ignore[arg-type]
    assert measured["distance"]["same"] == pytest.approx(0, abs=1e-3)
    assert measured["distance"]["shifted"] == pytest.approx(100, rel=1e-3)
    expected = (levels[:, 1].std() - half[:, 1].std()) ** 2 + (levels[:, 1].mean() - half[:, 1].mean()) ** 2
    assert measured["distance"]["narrower"] == pytest.approx(expected, rel=0.05)
    assert measured["images"] == {"test": 400, "same": 400, "shifted": 400, "narrower": 400}
    assert measured["precision"]["same"] == measured["recall"]["same"] == 1
    assert measured["precision"]["narrower"] > 0.9 > measured["recall"]["narrower"]
    assert "not comparable with FID" in measured["network"]


class Blank(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's Inception as it is before its weights are loaded."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in torch-fidelity's layout, with random weights."""
    folder = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    torch.save({}, folder / "empty.pth")
    blank = Blank("inception-v3-compat", ["64"], str(folder / "empty.pth"))
    torch.save(blank.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


def test_fid_through_a_file_of_weights(inception_file: Path) -> None:
    metric, description = networks.inception(inception_file)
    assert isinstance(metric, FrechetInceptionDistance)
    assert metric.inception.features_list == ["2048"]
    assert "inception.pth" in description
    # The first 64 features, for the sake of time.
    quick = FrechetInceptionDistance(64, feature_extractor_weights_path=str(inception_file), reset_real_features=False)
    random = np.random.default_rng(0)
    real = flat_images(random.integers(0, 200, (6, 3)))
    sets = {"same": real, "brighter": real + 20, "much brighter": real + 55}
    distance = fid(quick, description, real, sets, CPU)["distance"]
    assert distance["same"] == pytest.approx(0, abs=1e-4)
    assert distance["same"] < distance["brighter"] < distance["much brighter"]
