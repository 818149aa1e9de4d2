"""Speed of the training loop beside a straightforward one, in the same run.

    python benchmarks/training.py --preset paper-123 --data celeba --vgg-weights vgg19.pth

The straightforward loop is what the seed document writes down: a DataLoader whose workers decode and transform the
JPEGs, eager FP32, frozen VGG19 with the target's features under no_grad, Adam; same network, taps and batch. The two
are processes of their own and take turns, so that a change of clock or load meets both; the one whose turn it is not
waits. FLOPs are those that the straightforward loop needs an image, counted by PyTorch.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("train")  # before what needs it is imported

import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, product, repeat
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from script import machine, main_of, require_positive, write_json
from serving.figures import markdown
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from trainer.config import TrainConfig
from trainer.data import Index, load_data, read_index
from trainer.errors import ConfigError
from trainer.faces import write_faces
from trainer.hardware.device import Placement
from trainer.loss.vae_loss import VAELoss, kl_divergence
from trainer.loss.vgg import IMAGENET_MEAN, IMAGENET_STD, load_backbone
from trainer.model import VAE
from trainer.presets import PRESETS
from trainer.train_state import TrainState
from trainer.training import compile_run

Side = Literal["ours", "straightforward"]
SIDES: tuple[Side, ...] = ("straightforward", "ours")
WARM_STEPS = 3
GEMM_SIDES = {"cuda": 8192, "cpu": 2048}
"""Rows and columns of the matrices whose product is the machine's rate."""


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What to measure, and how long."""

    preset: str = "paper-123"
    """Preset of the trainer."""
    data: Path | None = None
    """Data set in any form that the trainer takes; none: 2,000 procedural faces."""
    crop: int | None = None
    """Side of the centre crop, pixels; None: the preset's."""
    vgg_weights: Path | None = None
    """File with VGG19 weights; they do not change the speed."""
    seconds: float = 10.0
    """Length of a turn, seconds."""
    turns: int = 5
    """Turns of each side; medians are given."""
    json: Path | None = None
    """File to write all figures to."""

    def training(self) -> TrainConfig:
        """The configuration that both sides train."""
        if self.preset not in PRESETS:
            raise ConfigError(f"--preset {self.preset}: choose one of {', '.join(PRESETS)}")
        config = PRESETS[self.preset]()
        return replace(
            config,
            crop=config.crop if self.crop is None else self.crop,
            vgg_weights=self.vgg_weights if config.taps else None,
            epochs=10_000,  # never done
        )


class _Files(Dataset[Tensor]):
    """The train split, an image file at a time, through the seed document's transforms."""

    def __init__(self, index: Index, config: TrainConfig) -> None:
        self._images = [index.image(row) for row in index.rows("train")]
        size = config.model.image_size
        crop = [transforms.CenterCrop(config.crop)] if config.crop else []
        flip = [transforms.RandomHorizontalFlip()] if config.flip else []
        self._transform = transforms.Compose([*flip, *crop, transforms.Resize(size), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Tensor:
        with self._images[row].open("rb") as file, Image.open(file) as image:
            images: Tensor = self._transform(image.convert("RGB"))
        return images


class _Straightforward:
    """The loop of the seed document, not tuned for speed."""

    def __init__(self, config: TrainConfig, data: Path) -> None:
        self.config = config
        self.device = Placement.of(config.device, "fp32").device
        torch.manual_seed(config.seed)
        self.model = VAE(config.model).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.layers, self.taps = nn.Sequential(), set[int]()
        if config.taps:
            backbone = load_backbone(config.taps, config.vgg_weights, config.seed)
            self.layers, self.taps = backbone.layers.to(self.device), set(backbone.taps.values())
        self.mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(IMAGENET_STD, device=self.device).view(1, 3, 1, 1)
        self.waited = 0.0
        loader = DataLoader(
            _Files(read_index(data), config), config.batch_size, shuffle=True, drop_last=True,
            num_workers=min(8, len(os.sched_getaffinity(0))), persistent_workers=True,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        self._batches = chain.from_iterable(repeat(loader))

    def _features(self, images: Tensor) -> list[Tensor]:
        activation, found = (images - self.mean) / self.std, []
        for position, layer in enumerate(self.layers):
            activation = layer(activation)
            if position in self.taps:
                found.append(activation)
        return found

    def learn(self, images: Tensor) -> None:
        """One step on images (B, 3, S, S)."""
        config = self.config
        noise = torch.randn(len(images), config.model.latent_dim, device=self.device)
        output = self.model(images, noise)
        reconstruction = config.pixel_weight * F.mse_loss(output.images, images)
        judged = math.ceil(config.feature_share * len(images))
        with torch.no_grad():
            wanted = self._features(images[:judged])
        for ours, theirs in zip(self._features(output.images[:judged]), wanted, strict=True):
            reconstruction = reconstruction + config.feature_weight * F.mse_loss(ours, theirs)
        kl = kl_divergence(output.mu, output.log_var).sum(1).mean()
        loss = 0.5 * config.rec_weight * reconstruction + config.kl_weight * kl
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def step(self) -> None:
        began = time.perf_counter()
        images = next(self._batches)
        self.waited += time.perf_counter() - began
        self.learn(images.to(self.device))

    def flops_per_image(self) -> float:
        """Floating-point operations that training on one image takes, forwards and backwards."""
        size, batch = self.config.model.image_size, self.config.batch_size
        with FlopCounterMode(display=False) as counter:
            self.learn(torch.rand(batch, 3, size, size, device=self.device))
        return float(counter.get_total_flops()) / batch


class _Ours:
    """The project's loop, as `python -m trainer train` runs it."""

    def __init__(self, config: TrainConfig, data: Path) -> None:
        place = Placement.of(config.device, config.precision)
        place.tune()
        faces = load_data(data, config.model.image_size, config.crop)
        self._run = TrainState(config, faces, Path(tempfile.gettempdir()), place)
        self.device = place.device
        self._loss = VAELoss(config, self._run.perceptual())
        compile_run(self._run, self._loss)
        self._batches = self._run.loader.stream(0, self._run.num_steps)

    @property
    def waited(self) -> float:
        return self._run.loader.waited_seconds

    def step(self) -> None:
        self._run.train_step(self._loss, next(self._batches))


@cache
def _loop(side: Side, config: TrainConfig, data: Path) -> _Straightforward | _Ours:
    """A side's loop, built and warmed up once, in the process that is the side's own."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loop = _Straightforward(config, data) if side == "straightforward" else _Ours(config, data)
    for _ in range(WARM_STEPS):
        loop.step()
    return loop


def _flops(config: TrainConfig, data: Path) -> float:
    loop = _loop("straightforward", config, data)
    assert isinstance(loop, _Straightforward)
    return loop.flops_per_image()


def _turn(side: Side, config: TrainConfig, data: Path, seconds: float) -> dict[str, float]:
    """Trains for so many seconds."""
    loop = _loop(side, config, data)
    finish: Callable[[], None] = torch.cuda.synchronize if loop.device.type == "cuda" else (lambda: None)
    finish()
    waited, steps, began = loop.waited, 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        loop.step()
        steps += 1
    finish()
    took = time.perf_counter() - began
    return {
        "images_per_second": steps * config.batch_size / took,
        "waiting_share": (loop.waited - waited) / took,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if loop.device.type == "cuda" else 0,
    }


def gemm_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's rate of large matrix products, FLOP/s: median of ten."""
    side = GEMM_SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * side**3 / (time.perf_counter() - began))
    return statistics.median(rates[2:])


def take_turns(config: SpeedConfig, training: TrainConfig, data: Path) -> dict[str, Any]:
    """Measures both sides; what the JSON file holds."""
    place = Placement.of(training.device, training.precision)
    rates = [gemm_flops(place.device, dtype) for dtype in (torch.float32, place.dtype)]
    turns: dict[Side, list[dict[str, float]]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        pools = {side: stack.enter_context(ProcessPoolExecutor(1, spawn)) for side in SIDES}
        try:
            flops = pools["straightforward"].submit(_flops, training, data).result()
            for _, (side, pool) in product(range(config.turns), pools.items()):
                turns[side].append(pool.submit(_turn, side, training, data, config.seconds).result())
        except BrokenProcessPool:
            raise ConfigError("the process of a side ended before its time; its own message is above") from None
    results = {}
    for side, gemm in zip(SIDES, rates, strict=True):
        middle = {key: statistics.median(turn[key] for turn in turns[side]) for key in turns[side][0]}
        rate = middle["images_per_second"] * flops
        results[side] = {**middle, "flops": rate, "gemm_flops": gemm, "gemm_share": rate / gemm}
    return {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if place.device.type == "cuda" else "cpu",
        "preset": config.preset,
        "image_size": training.model.image_size,
        "batch_size": training.batch_size,
        "dtype": str(place.dtype).removeprefix("torch."),
        "flops_per_image": flops,
        "seconds": config.seconds,
        "turns": turns,
        "results": results,
        "speed_up": results["ours"]["images_per_second"] / results["straightforward"]["images_per_second"],
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: one row a side."""
    rows = [
        {
            "": "straightforward, FP32" if side == "straightforward" else f"ours, {found['dtype']}",
            "images/s": one["images_per_second"],
            "waiting for data": f"{one['waiting_share']:.1%}",
            "GFLOP/s": round(one["flops"] / 1e9),
            "of the GEMM rate": f"{one['gemm_share']:.1%} of {one['gemm_flops'] / 1e9:.0f}",
            "peak memory, GiB: host": one["peak_host_bytes"] / 2**30,
            "GPU": one["peak_gpu_bytes"] / 2**30,
        }
        for side, one in found["results"].items()
    ]
    return (
        f"{found['preset']}, {found['image_size']} pixels, batch {found['batch_size']}, {found['machine']['cpu']}, "
        f"{found['device']}, {found['flops_per_image'] / 1e9:.2f} GFLOP an image\n\n{markdown(rows)}\n\n"
        f"ours is {found['speed_up']:.2f} times as fast"
    )


def benchmark(config: SpeedConfig) -> None:
    """Measures and prints."""
    require_positive(config, "seconds", "turns")
    training = config.training()
    with tempfile.TemporaryDirectory() as folder:
        data = config.data
        if data is None:
            data = Path(folder) / "faces"
            write_faces(data, 2_000)
        load_data(data, training.model.image_size, training.crop)  # packs, so that neither side waits for it
        found = take_turns(config, training, data)
    print(table(found))
    write_json(config.json, found)


main = main_of(SpeedConfig, benchmark, __doc__)

if __name__ == "__main__":
    sys.exit(main())
