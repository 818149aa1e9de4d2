"""Networks of other projects in the table. Tiny ones with the same interfaces stand in for them."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peer_networks
import pytest
import quality_peers
import torch

from trainer.data import load_data
from trainer.evaluation.classifier import Classifier, Network
from trainer.faces import write_faces
from trainer.hardware.device import Placement
from trainer.run_folder import EVALUATION

VANILLA = """
import torch
from torch import nn
from torch.nn import functional as F

class VanillaVAE(nn.Module):
    def __init__(self, in_channels, latent_dim):
        super().__init__()
        self.inner, self.outer = nn.Linear(16 * in_channels, 2 * latent_dim), nn.Linear(latent_dim, 48)

    def encode(self, x):
        return [*self.inner(F.adaptive_avg_pool2d(x, 4).flatten(1)).chunk(2, 1)]

    def decode(self, z):
        return F.interpolate(torch.tanh(self.outer(z)).view(-1, 3, 4, 4), size=64)

    def forward(self, x):
        mu, log_var = self.encode(x)
        return [self.decode(mu + torch.exp(log_var / 2) * torch.randn_like(mu)), x, mu, log_var]

    def loss_function(self, decoded, x, mu, log_var, M_N):
        divergence = 0.5 * (mu**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        return {"loss": F.mse_loss(decoded, x) + M_N * divergence}
"""
DFC = """
from torchvision.models import vgg19_bn
from .vanilla_vae import VanillaVAE

class DFCVAE(VanillaVAE):
    def __init__(self, in_channels, latent_dim):
        super().__init__(in_channels, latent_dim)
        self.feature_network = vgg19_bn(pretrained=True).requires_grad_(False)

    def loss_function(self, decoded, x, mu, log_var, M_N):
        first = self.feature_network.features[:2]
        return {"loss": (first(decoded) - first(x)).square().mean()}
"""
PYTHAE = """
from types import SimpleNamespace
import torch
from torch import nn

def VAEConfig(**settings):
    assert settings["reconstruction_loss"] == "mse"
    return SimpleNamespace(**settings)

def RAE_L2_Config(**settings):
    return SimpleNamespace(**settings)

class _Model(nn.Module):
    def __init__(self, made, encoder, decoder):
        super().__init__()
        self.model_name, self.encoder, self.decoder = type(self).__name__, encoder, decoder

    def forward(self, inputs):
        decoded = self.decoder(self.encoder(inputs["data"])["embedding"])["reconstruction"]
        return SimpleNamespace(loss=(decoded - inputs["data"]).square().sum((1, 2, 3)).mean())

class VAE(_Model):
    pass

class RAE_L2(_Model):
    pass
"""
CELEBA = """
import torch
from torch import nn
from torch.nn import functional as F

class Encoder_Conv_AE_CELEBA(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.layer = nn.Linear(48, made.latent_dim)

    def forward(self, x):
        return {"embedding": self.layer(F.adaptive_avg_pool2d(x, 4).flatten(1))}

class Encoder_Conv_VAE_CELEBA(Encoder_Conv_AE_CELEBA):
    def forward(self, x):
        mu = super().forward(x)["embedding"]
        return {"embedding": mu, "log_covariance": -torch.ones_like(mu)}

class Decoder_Conv_AE_CELEBA(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.layer = nn.Linear(made.latent_dim, 48)

    def forward(self, z):
        return {"reconstruction": F.interpolate(self.layer(z).sigmoid().view(-1, 3, 4, 4), size=64)}
"""
FILES = {
    "models/__init__.py": "from .vanilla_vae import *\nfrom .dfcvae import *\n",
    "models/vanilla_vae.py": VANILLA,
    "models/dfcvae.py": DFC,
    "src/pythae/__init__.py": "",
    "src/pythae/models/__init__.py": PYTHAE,
    "src/pythae/models/nn/__init__.py": "",
    "src/pythae/models/nn/benchmarks/__init__.py": "",
    "src/pythae/models/nn/benchmarks/celeba/__init__.py": CELEBA,
}
QUICK = ("--skip", "vgg", "lpips", "fid", "tsne", "kinds", "rescoring", "edits")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_faces(folder, 60, seed=3, workers=1)
    return folder


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout of both projects; what is imported from it is forgotten again."""
    for name, text in FILES.items():
        file = tmp_path / "theirs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "theirs"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("models", "pythae")]:
        del sys.modules[name]


def row_of(printed: str, peer: str) -> dict[str, str]:
    heads, _, line = (line.strip("|").split("|") for line in printed.split("\n\n", maxsplit=1)[0].splitlines())
    row = {head.strip(): cell.strip() for head, cell in zip(heads, line, strict=True)}
    assert row[""] == f"`{peer}`"
    return row


def test_a_peer_becomes_a_row(faces: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--peer", "pythae-rae", "--source", str(source), "--data", str(faces), "--out", str(tmp_path)]
    assert quality_peers.main([*command, "--images", "2400", *QUICK]) == 0
    printed = capsys.readouterr().out
    row = row_of(printed, "pythae-rae")
    assert (row["images"], row["epochs"], row["KL, nats"]) == ("2,400", "50", "-")
    assert float(row["PSNR, dB"]) > 13  # that of one grey is 10
    assert "`pythae-rae`: pythae's RAE_L2, examples/scripts/configs/celeba/rae_l2_config.json" in printed

    metrics = tmp_path / "pythae-rae" / EVALUATION
    first = json.loads(metrics.read_text())
    metrics.unlink()  # as if judging had been interrupted
    assert quality_peers.main([*command, "--images", "2400", *QUICK]) == 0
    again = json.loads(metrics.read_text())
    assert again["training"] == first["training"]
    assert again["reconstruction"] == first["reconstruction"]


def test_a_peer_is_judged_by_the_classifier_of_the_table(
    faces: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data(faces, 64, 148)
    folder = tmp_path / f"judge-64px-{data.fingerprint[:8]}"
    folder.mkdir()
    names = data.index.attributes
    judge = Classifier(Network(len(names)), names, dict.fromkeys(names, 0.7), dict.fromkeys(names, 0.6), Placement.of())
    judge.save(folder / "classifier.safetensors", data.fingerprint)
    command = ["--peer", "antixk-vanilla", "--source", str(source), "--data", str(faces), "--out", str(tmp_path)]
    assert quality_peers.main([*command, "--images", "48", "--precision", "bf16", *QUICK[:-1]]) == 0
    printed = capsys.readouterr().out
    assert "PyTorch-VAE's VanillaVAE, configs/vae.yaml; trained in bf16" in printed
    row = row_of(printed, "antixk-vanilla")
    assert (row["images"], row["epochs"]) == ("48", "1")
    assert float(row["KL, nats"]) > 0
    metrics = json.loads((tmp_path / "antixk-vanilla" / EVALUATION).read_text())
    assert metrics["classifier"]["accuracy"] == dict.fromkeys(names, 0.7)
    assert "curves" in metrics["edits"]


def test_a_vae_of_pythae_gives_log_variances(source: Path) -> None:
    mu, log_var = peer_networks.load("pythae-vae", source, None).encode(torch.rand(5, 3, 64, 64))
    assert mu.shape == log_var.shape == (5, 64)


def test_a_dfcvae_gets_the_vgg19_that_is_given(source: Path, tmp_path: Path) -> None:
    weights = tmp_path / "vgg19.pth"
    plain = {f"features.{index}.weight": torch.randn(64, 3 if index == 0 else 64, 3, 3) for index in (0, 2)}
    torch.save({**plain, "features.0.bias": torch.ones(64), "features.2.bias": torch.zeros(64)}, weights)
    peer = peer_networks.load("antixk-dfc", source, weights)
    assert peer.note.endswith("VGG19-BN with 2 of its 16 convolutions from vgg19.pth, the rest random")
    module: Any = peer.module
    features = module.feature_network.features
    assert torch.equal(features[0].weight, plain["features.0.weight"])
    assert torch.equal(features[3].weight, plain["features.2.weight"])
    trained = {id(parameter) for parameter in peer.parameters[0]["params"]}
    assert not trained & {id(parameter) for parameter in features.parameters()}
    assert peer.loss(torch.rand(2, 3, 64, 64)) > 0


def test_an_epoch_shows_every_image_once_and_half_of_them_mirrored(faces: Path, source: Path) -> None:
    data = load_data(faces, 64, 148)
    peer, random = peer_networks.load("antixk-vanilla", source, None), np.random.default_rng(0)
    epochs = [np.concatenate([*quality_peers.batches(peer, data, 1000, random)]) for _ in range(2)]
    known = {image.tobytes(): row for row, image in enumerate(data.images)}
    mirrored = {image[:, ::-1].tobytes(): row for row, image in enumerate(data.images)}
    orders = [[{**known, **mirrored}[image.tobytes()] for image in epoch] for epoch in epochs]
    assert [sorted(order) for order in orders] == [[*data.rows("train")]] * 2
    assert orders[0] != orders[1]
    assert 12 <= sum(image.tobytes() in mirrored for image in epochs[0]) <= 36
    sizes = [
        len(batch) for batch in quality_peers.batches(replace(peer, batch_size=47, flip=False), data, 1000, random)
    ]
    assert sizes == [47]  # of 48: one is no batch
    assert sum(map(len, quality_peers.batches(peer, data, 20, random))) == 20


def test_bad_input_is_refused_in_a_sentence(
    faces: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pythae", None)
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3), "features.0.bias": torch.zeros(8)}, other)
    theirs = ["--source", str(source)]
    for flags, said in (
        (["--peer", "antixk-vanilla"], "--source: is missing; give a checkout of PyTorch-VAE"),
        (
            ["--peer", "antixk-vanilla", "--source", str(tmp_path)],
            f"--source {tmp_path}: has no {tmp_path / 'models'};",
        ),
        (["--peer", "pythae-vae"], "pip install pythae"),
        (
            ["--peer", "antixk-dfc", *theirs, "--vgg-bn-weights", str(other)],
            f"--vgg-bn-weights {other}: not a state dict",
        ),
        (["--peer", "antixk-vanilla", *theirs, "--images", "1"], "--images 1: must be at least 2"),
        (["--peer", "antixk-vanilla", *theirs, "--vgg-weights", "none.pth"], "none.pth"),
    ):
        assert (
            quality_peers.main([*flags, "--data", str(faces), "--out", str(tmp_path / "out"), "--skip", *QUICK[2:]])
            == 2
        )
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("error: ")
        assert said in error
    assert not (tmp_path / "out").exists()


def test_training_that_diverges_is_said(
    faces: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = source / "models" / "vanilla_vae.py"
    file.write_text(file.read_text().replace("F.mse_loss(decoded, x)", "float('nan')"))
    command = ["--peer", "antixk-vanilla", "--source", str(source), "--data", str(faces), "--out", str(tmp_path)]
    assert quality_peers.main([*command, *QUICK]) == 1
    assert "error: antixk-vanilla: the loss is not a number after 0 images" in capsys.readouterr().err
