import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import alexnet, vgg19

from trainer.config import RANDOM
from trainer.errors import ConfigError
from trainer.evaluation import networks
from trainer.evaluation.networks import MetricNetwork, MetricNetworks, inception
from trainer.evaluation.options import Options
from trainer.evaluation.reconstruction import feature_distance, lpips_distance, pixel_metrics
from trainer.evaluation.skipped import SkippedError
from trainer.hardware.device import Placement

CPU = Placement.of("cpu", "fp32")


def images(count: int = 4, seed: int = 0) -> np.ndarray:
    """Smooth ones, such as a photograph is."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    return (fine * 200).byte().permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's convolutions, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    state = alexnet(weights=None).features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG19 up to relu3_1, with random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layers = vgg19(weights=None).features[:12]
    layers.to_empty(device="cpu")
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    torch.save({f"features.{name}": tensor for name, tensor in layers.state_dict().items()}, path)
    return path


def test_psnr_of_known_differences_is_averaged_over_images_not_over_errors() -> None:
    truth = np.full((3, 32, 32, 3), 100, np.uint8)
    ours = truth.copy()
    ours[0] += 1
    ours[1] += 10
    ours[2] += 50
    each = [20 * np.log10(255 / error) for error in (1, 10, 50)]
    metrics = pixel_metrics(truth, ours, CPU)
    assert metrics["psnr_db"] == pytest.approx(np.mean(each), abs=1e-3)
    assert metrics["psnr_db_quantiles"]["median"] == pytest.approx(each[1], abs=1e-3)
    assert metrics["psnr_db_quantiles"]["p5"] == pytest.approx(np.percentile(each, 5), abs=1e-3)


def test_images_that_are_the_same_have_finite_metrics() -> None:
    metrics = pixel_metrics(images(), images(), CPU)
    assert metrics["psnr_db"] == 99
    assert metrics["ssim"] == pytest.approx(1)


def test_ssim_falls_when_structure_is_lost() -> None:
    noise = np.random.default_rng(0).integers(0, 50, images().shape, np.uint8)
    assert 0 < pixel_metrics(images(), images() + noise, CPU)["ssim"] < 0.9


def test_lpips_through_a_file_of_weights(alexnet_file: Path) -> None:
    network, description, path = networks.lpips(alexnet_file)
    same = lpips_distance(network, images(), images(), CPU)
    near = lpips_distance(network, images(), images() + 5, CPU)
    far = lpips_distance(network, images(), images(seed=1), CPU)
    assert same["lpips"] == 0
    assert 0 < near["lpips"] < far["lpips"]
    assert (description, path) == ("LPIPS v0.1, AlexNet weights from the file alexnet.pth", alexnet_file)
    assert far["images"] == 4


def test_lpips_is_that_of_its_authors(alexnet_file: Path) -> None:
    state = torch.load(alexnet_file, weights_only=True)
    theirs = importlib.import_module("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False)
    theirs.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in theirs.net.state_dict()})
    truth, ours = images(6).repeat(2, 1).repeat(2, 2), images(6, seed=1).repeat(2, 1).repeat(2, 2)  # 64 pixels
    pair = (torch.from_numpy(one.transpose(0, 3, 1, 2) / np.float32(255)) for one in (ours, truth))
    expected = theirs(*pair, normalize=True).mean().item()
    measured = lpips_distance(networks.lpips(alexnet_file)[0], truth, ours, CPU)
    assert measured["lpips"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


def test_lpips_uses_the_weights_of_the_file(alexnet_file: Path, tmp_path: Path) -> None:
    state = torch.load(alexnet_file, weights_only=True)
    torch.save({name: -tensor for name, tensor in state.items()}, tmp_path / "other.pth")
    distances = [
        lpips_distance(networks.lpips(path)[0], images(), images(seed=1), CPU)["lpips"]
        for path in (alexnet_file, tmp_path / "other.pth")
    ]
    assert distances[0] != pytest.approx(distances[1])


def test_weights_of_another_network_are_refused(vgg_file: Path, tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "torn.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, said in (("torn.pth", "does not fit AlexNet"), ("other.pth", "neither AlexNet nor VGG16")):
        with pytest.raises(ConfigError, match=f"--lpips-weights .*{name}: .*{said}"):
            networks.lpips(tmp_path / name)
    with pytest.raises(ConfigError, match=r"--lpips-weights .*none\.pth: no such file"):
        networks.lpips(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match=r"--inception-weights .*vgg19\.pth: does not fit") as refused:
        inception(vgg_file, "clean", CPU)
    assert len(str(refused.value)) < 400  # not a line for each of its layers
    assert "\n" not in str(refused.value)


def test_feature_distances_are_zero_for_the_same_images_only(vgg_file: Path) -> None:
    features, description, path = networks.vgg19(vgg_file, CPU)
    same = feature_distance(features, images(), images(), CPU)
    near = feature_distance(features, images(), images() + 5, CPU)
    far = feature_distance(features, images(), images(seed=1), CPU)
    for tap in networks.VGG_TAPS:
        assert same["mse"][tap] == 0
        assert 0 < near["mse"][tap] < far["mse"][tap]
    assert "vgg19.pth" in description
    assert path == vgg_file


def test_relative_feature_distances_do_not_depend_on_the_scale_of_the_weights(vgg_file: Path, tmp_path: Path) -> None:
    """Ten times the first layer is ten times every activation, as ReLUs and poolings are homogeneous, biases aside."""
    state = torch.load(vgg_file, weights_only=True)
    state |= {name: torch.zeros_like(tensor) for name, tensor in state.items() if name.endswith("bias")}
    distances = []
    for factor in (1, 10):
        torch.save(state | {"features.0.weight": factor * state["features.0.weight"]}, tmp_path / "vgg.pth")
        features, *_ = networks.vgg19(tmp_path / "vgg.pth", CPU)
        distances.append(feature_distance(features, images(), images(seed=1), CPU))
    small, large = distances
    for tap in networks.VGG_TAPS:
        assert large["mse"][tap] == pytest.approx(100 * small["mse"][tap], rel=1e-3)
        assert large["relative"][tap] == pytest.approx(small["relative"][tap], rel=1e-3)


@pytest.mark.usefixtures("offline")
def test_without_weights_and_network_the_reason_and_the_mend_are_given() -> None:
    found = MetricNetworks.of(Options(), None, CPU)
    networks_of: dict[str, MetricNetwork[Any]] = {
        "--vgg-weights": found.vgg,
        "--lpips-weights": found.lpips,
        "--inception-weights": found.inception,
    }
    for flag, metric_network in networks_of.items():
        assert metric_network.network is None
        with pytest.raises(SkippedError, match=f"does not exist and .* does not answer; .*{flag}"):
            metric_network.get()


@pytest.mark.usefixtures("offline")
def test_a_damaged_file_in_the_cache_is_the_reason_why_a_measure_is_skipped() -> None:
    names = ("vgg19-dcbb9e9d.pth", "alexnet-owt-7be5be79.pth", "weights-inception-2015-12-05-6726825d.pth")
    paths = [Path(torch.hub.get_dir()) / "checkpoints" / name for name in names]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.write_bytes(b"torn")
    looked = MetricNetworks.of(Options(), None, CPU)
    networks_found: list[MetricNetwork[Any]] = [looked.vgg, looked.lpips, looked.inception]
    for path, found in zip(paths, networks_found, strict=True):
        assert found.network is None
        assert f"{path} is damaged" in found.description
        assert "delete it" in found.description


def test_random_weights_measure_nothing() -> None:
    with pytest.raises(ConfigError, match="--vgg-weights random: measures nothing"):
        networks.vgg19(RANDOM, CPU)
