"""Distances of sets of images, and the libraries' own numbers of them, through networks with random weights."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric

from engine.latents import Gaussian, load_priors
from trainer.data import FaceData
from trainer.errors import ConfigError
from trainer.evaluation import generation
from trainer.evaluation.encoded_run import EncodedRun
from trainer.evaluation.generation import Comparison, image_sets, measure
from trainer.evaluation.networks import MetricNetwork, MetricNetworks, inception
from trainer.evaluation.options import Options
from trainer.hardware.device import Placement
from trainer.run_folder import sha256_of

CPU = Placement.of("cpu", "fp32")
Images = npt.NDArray[np.uint8]
NONE: MetricNetwork[Any] = MetricNetwork(None, "none")


def flat_images(levels: npt.NDArray[Any]) -> Images:
    """(N, 3) levels of red, green and blue to images of one colour each, (N, 8, 8, 3)."""
    return np.tile(levels[:, None, None, :].astype(np.uint8), (1, 8, 8, 1))


class MeanColour:
    """A network whose features are known: the mean colour, in levels."""

    def describe(self, images: Images) -> npt.NDArray[np.float32]:
        colours: npt.NDArray[np.float32] = images.mean((1, 2)).astype(np.float32)
        return colours


@pytest.fixture(scope="module")
def encoded(trained: Path, data: FaceData) -> EncodedRun:
    return EncodedRun.of(trained, data, CPU)


def test_samples_are_drawn_from_the_runs_prior_as_the_server_draws(encoded: EncodedRun, trained: Path) -> None:
    priors = {**load_priors(trained / "prior.safetensors"), "prior": Gaussian.standard(encoded.mu.shape[1])}
    for options, count in ((Options(seed=3), len(encoded.data.rows("test"))), (Options(seed=3, samples=33), 33)):
        sets = image_sets(encoded, options)
        for name, prior in priors.items():
            assert np.array_equal(sets[name](), encoded.decode(prior.draw(count, 3)))
        assert len(sets["train"]()) == count
        assert np.array_equal(sets["reconstructions"](), encoded.reconstructions[:count])


def test_frechet_distance_of_known_gaussians() -> None:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)): a shift by 10 of one channel alone is 100."""
    random = np.random.default_rng(0)
    levels = random.integers(60, 160, (400, 3))
    half = levels.copy()
    half[:, 1] = 110 + (levels[:, 1] - 110) // 2
    comparison = Comparison(MeanColour(), "test", flat_images(levels))
    for name, made in (("same", levels), ("shifted", levels + np.array([10, 0, 0])), ("narrower", half)):
        comparison.add(name, flat_images(made))
    found = comparison.found
    assert found["distance"]["same"] == pytest.approx(0, abs=1e-2)
    assert found["distance"]["shifted"] == pytest.approx(100, rel=1e-3)
    expected = (levels[:, 1].std() - half[:, 1].std()) ** 2 + (levels[:, 1].mean() - half[:, 1].mean()) ** 2
    assert found["distance"]["narrower"] == pytest.approx(expected, rel=0.05)
    assert found["images"] == {"test": 400, "same": 400, "shifted": 400, "narrower": 400}
    assert found["precision"]["same"] == found["recall"]["same"] == 1
    assert found["precision"]["narrower"] > 0.9 > found["recall"]["narrower"]
    assert Comparison(MeanColour(), "test", flat_images(levels), 3).add("few", flat_images(levels[:2])) is None


class Tint(MeanColour):
    """Stands in for Inception where images are many: twenty classes made of the mean colour."""

    def logits(self, features: Tensor) -> Tensor:
        return features @ torch.linspace(-0.1, 0.1, 60).reshape(3, 20)


def networks_with(inception: object, vgg: MetricNetwork[Any] = NONE) -> MetricNetworks:
    seen: MetricNetwork[Any] = MetricNetwork(inception, "colours", "1234")
    return MetricNetworks(vgg, NONE, seen, NONE)


def test_as_many_images_are_compared_as_are_asked_for_of_the_split_that_is_named(
    encoded: EncodedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MIN_FID_IMAGES", 30)
    found = measure(encoded, networks_with(Tint()), Options(samples=40, reference="train"))
    fid = found["fid"]
    assert fid["images"] == {"train": 40, **dict.fromkeys(("prior", *encoded.priors), 40)}  # of 20 test images none
    assert (fid["network"], fid["network_sha256"]) == ("colours", "1234")
    assert found["split"] == "train"
    drawn = torch.from_numpy(Tint().describe(image_sets(encoded, Options(samples=40))["prior"]()))
    score = isc_features_to_metric(Tint().logits(drawn))["inception_score_mean"]
    assert fid["inception_score"]["prior"]["mean"] == pytest.approx(score)


def test_fid_of_few_images_is_refused_whatever_else_is_measured(encoded: EncodedRun) -> None:
    colours: MetricNetwork[Any] = MetricNetwork(MeanColour(), "colours")
    for options in (Options(), Options(samples=50_000), Options(samples=2_047, reference="train")):
        found = measure(encoded, networks_with(Tint(), colours if options.samples is None else NONE), options)
        assert "needs 2,048 images on both sides" in found["fid"]["skipped"]
        assert "--samples 50000 and --reference train" in found["fid"]["skipped"]
    assert measure(encoded, networks_with(Tint(), colours), Options())["frechet_vgg19"]["distance"]["prior"] > 0
    with pytest.raises(ConfigError, match="--samples 1: must be at least 2"):
        Options(samples=1)


class Blank(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's Inception as it is before its weights are loaded."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> FeatureExtractorInceptionV3:
    """Random weights under which images look different."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    network = Blank("inception-v3-compat", ["2048", "logits_unbiased"], str(folder / "empty.pth"))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


@pytest.fixture(scope="module")
def state_file(blank: FeatureExtractorInceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in torch-fidelity's layout."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(blank.state_dict(), path)
    return path


class TorchScriptInception(nn.Module):
    """NVIDIA's Inception as far as clean-fid looks into it."""

    def __init__(self, network: FeatureExtractorInceptionV3) -> None:
        super().__init__()
        *layers, self.output = network.children()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers((images - 128) / 128)
        return features


@pytest.fixture(scope="module")
def torchscript_file(blank: FeatureExtractorInceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in clean-fid's layout, under the name that clean-fid looks for."""
    path = tmp_path_factory.mktemp("torchscript") / "inception-2015-12-05.pt"
    some = torch.zeros(1, 3, 75, 75)
    traced: Any = torch.jit.trace(TorchScriptInception(blank), some, check_trace=False)  # type: ignore[no-untyped-call]
    traced.save(path)
    return path


def random_images(count: int, size: int, seed: int) -> Images:
    """Soft patches of colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size))) for one in coarse])


class Levels(Dataset[Tensor]):
    """Images as torch-fidelity takes them, (3, S, S) uint8 each."""

    def __init__(self, images: Images) -> None:
        self.levels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: int) -> Tensor:
        return self.levels[index]


def test_features_and_scores_are_torch_fidelitys_own(blank: FeatureExtractorInceptionV3, state_file: Path) -> None:
    images = random_images(4, 64, 0)
    network, description, path = inception(state_file, "tensorflow", CPU)
    assert (path, "torch-fidelity's weights weights.pth, tensorflow resizing" in description) == (state_file, True)
    features = torch.from_numpy(network.describe(images))
    theirs, logits = blank(Levels(images).levels)
    torch.testing.assert_close(features, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.logits(features), logits, rtol=1e-4, atol=1e-3)
    how: dict[str, Any] = {"isc_splits": 2, "samples_shuffle": False, "cuda": False, "cache": False, "verbose": False}
    how["save_cpu_ram"] = True  # no processes that load
    own = calculate_metrics(
        input1=Levels(images), isc=True, feature_extractor_weights_path=str(state_file), batch_size=4, **how
    )
    score = isc_features_to_metric(network.logits(features), splits=2, shuffle=False)
    assert score["inception_score_mean"] == pytest.approx(own["inception_score_mean"], rel=1e-4)


def test_features_are_clean_fids_own(torchscript_file: Path, state_file: Path, tmp_path: Path) -> None:
    images, folder = random_images(3, 64, 0), tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    theirs = importlib.import_module("cleanfid.inception_torchscript").InceptionV3W(torchscript_file.parent, False)
    how: dict[str, Any] = {"num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    expected = importlib.import_module("cleanfid.fid").get_folder_features(
        str(folder), model=theirs, mode="clean", **how
    )
    assert expected.std(axis=0).max() > 0.01
    for file in (torchscript_file, state_file):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            network, description, _ = inception(file, "clean", CPU)
        np.testing.assert_allclose(network.describe(images), expected, rtol=1e-3, atol=1e-3)
        assert "clean resizing" in description


def test_the_distance_is_that_of_both_libraries() -> None:
    """On features that are few, as a distance of 2048 takes half a minute."""
    real, made = (np.random.default_rng(seed).normal(seed, 1 + seed, (300, 24)).astype(np.float32) for seed in (0, 1))

    class Rows:
        def describe(self, images: Images) -> npt.NDArray[np.float32]:
            return real if images[0, 0, 0, 0] == 0 else made

    comparison = Comparison(Rows(), "test", np.zeros((300, 1, 1, 3), np.uint8))
    comparison.add("made", np.ones((300, 1, 1, 3), np.uint8))
    theirs = importlib.import_module("cleanfid.fid").fid_from_feats(real, made)
    assert comparison.found["distance"]["made"] == pytest.approx(theirs, rel=1e-4)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    script: Any = torch.jit.script(nn.Linear(2, 2))
    script.save(other)
    with pytest.raises(ConfigError, match=r"--inception-weights .*other.pt: is no TorchScript of clean-fid's"):
        inception(other, "clean", CPU)


def test_the_weights_are_known_by_their_hash(state_file: Path) -> None:
    options = Options(inception_weights=state_file, skip=("vgg", "lpips"))
    found = MetricNetworks.of(options, None, CPU).inception
    assert found.about["network_sha256"] == sha256_of(state_file)
