"""Networks of other projects in the table of `quality.py`: each is trained as its authors do, and judged as ours are.

    git clone https://github.com/AntixK/PyTorch-VAE
    git clone https://github.com/clementchadebec/benchmark_VAE  # or `pip install pythae`, and no --source
    python benchmarks/quality_peers.py --peer antixk-vanilla --source PyTorch-VAE --data celeba --out out/quality
    python benchmarks/quality_peers.py --peer pythae-vae --source benchmark_VAE --data celeba --out out/quality

A command trains a network and judges it; from then on it is a row of the table in --out. The other flags are those of
quality.py: the same faces, as many of them, the same judge.

Networks, and by which settings each is trained, are in `peer_networks`. Different from their own projects are: a plain
loop, in FP32 unless --precision says otherwise, fewer epochs, our crop, one seed, the last weights instead of those of
the best epoch. What is decoded is clipped to [0, 1], and a batch of a single image is left out.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("train")  # before what needs it is imported

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import peer_networks
import quality
import torch
import tyro
from peer_networks import IMAGE_SIZE, SEED, Peer
from tqdm import tqdm

from trainer.data import FaceData, load_data
from trainer.errors import ConfigError, NonFiniteLossError, TrainerError
from trainer.evaluation.encoded_run import Autoencoder, Images
from trainer.evaluation.evaluate import evaluate_autoencoder
from trainer.evaluation.networks import MetricNetworks
from trainer.evaluation.options import Measure, Options
from trainer.hardware.device import Placement
from trainer.loss import pretrained
from trainer.run_folder import EVALUATION, write_atomically

WEIGHTS = "weights.pt"


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Which network to train, on what, for how long."""

    peer: peer_networks.Name
    """The network; the name of its row."""
    data: Path
    """Data set in CelebA's layout."""
    out: Path
    """Folder of the table."""
    source: Path | None = None
    """Checkout of the network's project; not needed where pythae is installed."""
    images: int = 112_000
    """Images that it sees in training; rounded to whole epochs where they make more than one."""
    crop: int = 148
    """Side of the centre crop, pixels; 0 for images that are cropped already."""
    vgg_weights: Path | None = None
    """File with VGG19 weights to measure features with."""
    identity_weights: Path | None = None
    """ONNX file with a face recognition network, for the column of identity."""
    vgg_bn_weights: Path | None = None
    """For antixk-dfc: state dict of VGG19 with batch norm; or of VGG19 without, which gives its convolutions. What it
    lacks is random."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of training: fp32 as in their own projects, or bf16, for the sake of time."""
    skip: tuple[Measure, ...] = quality.SKIPPED
    """Measures to leave out, as for `python -m trainer evaluate`."""


def batches(peer: Peer, data: FaceData, images: int, random: np.random.Generator) -> Iterator[Images]:
    """One epoch, of `images` training images at most: (B, S, S, 3) each."""
    order = random.permutation(data.rows("train"))[:images]
    for start in range(0, len(order), peer.batch_size):
        batch: Images = data.images[order[start : start + peer.batch_size]]
        if peer.flip:
            mirrored = random.random(len(batch)) < 0.5
            batch[mirrored] = batch[mirrored, :, ::-1]
        if len(batch) > 1:
            yield batch


def train(peer: Peer, config: PeerConfig, data: FaceData) -> dict[str, Any]:
    """Trains the network.

    Returns:
        `images` seen, `epochs` and `images_per_second`.

    Raises:
        NonFiniteLossError: it diverged.
    """
    place = Placement.of(precision=config.precision)
    optimizer = torch.optim.Adam(peer.parameters, peer.lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, peer.decay)
    count, random = len(data.rows("train")), np.random.default_rng(SEED)
    epochs = max(1, round(config.images / count))
    peer.module.train()
    with tqdm(total=epochs * min(config.images, count), desc=config.peer, unit="image") as progress:
        for _ in range(epochs):
            for batch in batches(peer, data, config.images, random):
                with place.autocast():
                    loss = peer.loss(place.images(batch).contiguous())
                if not math.isfinite(loss.item()):
                    raise NonFiniteLossError(f"{config.peer}: the loss is not a number after {progress.n:,} images")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                progress.update(len(batch))
            schedule.step()
        rate = progress.n / progress.format_dict["elapsed"]
    return {"images": progress.n, "epochs": epochs, "images_per_second": rate}


def trained(peer: Peer, config: PeerConfig, data: FaceData) -> dict[str, Any]:
    """Trains and keeps the weights, or takes those that the same command left; what `train` gives, and a `note`."""
    path, note = config.out / config.peer / WEIGHTS, f"{peer.note}; trained in {config.precision}"
    asked = {"images": config.images, "data": data.fingerprint, "note": note}
    kept = pretrained.read(path, "weights") if path.exists() else {}
    if kept.get("asked") != asked:
        training = {**train(peer, config, data), "note": note}
        own = {
            name: value for name, value in peer.module.state_dict().items() if "feature_network" not in name
        }  # no VGG19
        kept = {"asked": asked, "training": training, "module": own}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(kept, file))
    peer.module.load_state_dict(kept["module"], strict=False)
    return dict(kept["training"])


def train_and_judge(config: PeerConfig) -> None:
    """Makes the row, unless it is there.

    Raises:
        TrainerError: something is missing, or training diverged.
    """
    folder, place = config.out / config.peer, Placement.of()
    if config.images < 2:
        raise ConfigError(f"--images {config.images}: must be at least 2")
    if (folder / EVALUATION).exists():
        return
    peer = peer_networks.load(config.peer, config.source, config.vgg_bn_weights)
    data = load_data(config.data, IMAGE_SIZE, config.crop)
    weights: dict[str, Any] = {"vgg_weights": config.vgg_weights, "identity_weights": config.identity_weights}
    options = Options(**weights, skip=config.skip)
    MetricNetworks.of(options, None, place)  # refuses a file now rather than after hours of training
    judge = None if "edits" in config.skip else quality.judge(config.out, data)
    peer.module.to(place.device)
    training = trained(peer, config, data)
    peer.module.eval()
    judged = Autoencoder.of(peer.encode, lambda latents: peer.decode(latents).float().clamp(0, 1), place)
    evaluate_autoencoder(judged, data, folder, replace(options, judge=judge), name=config.peer, training=training)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0, or that of the error."""
    config = tyro.cli(PeerConfig, args=arguments, prog="python benchmarks/quality_peers.py", description=__doc__)
    try:
        train_and_judge(config)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return quality.main(["--out", str(config.out), "--variants"])


if __name__ == "__main__":
    sys.exit(main())
