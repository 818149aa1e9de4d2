"""The training loop. All randomness is a function of (seed, step), so a resumed run goes on exactly."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer import checkpoint, figures
from trainer.config import TrainConfig
from trainer.dataset import FaceData
from trainer.directions import encode_rows, mean_differences, save_directions
from trainer.errors import InterruptedRunError, NonFiniteLossError, RunError
from trainer.loss import Loss, Terms
from trainer.model import VAE
from trainer.muon import Muon, is_matrix
from trainer.perceptual import PerceptualLoss, load_backbone
from trainer.placement import Placement

logger = logging.getLogger(__name__)

METRICS, SAMPLES, DIRECTIONS = "metrics.jsonl", "samples.safetensors", "directions.safetensors"
NUM_SAMPLES = 512
"""Held-out images kept in the run folder: what export's parity gate compares on, wherever it runs."""
NUM_CALIBRATION = 64
"""Training images over which `normalise_features` takes its means."""


class Run:
    """One training run: its model, optimiser and step, and how they go to disk and back."""

    def __init__(self, config: TrainConfig, data: FaceData, folder: Path) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.place = Placement.of(config.device, config.precision)
        torch.manual_seed(config.seed)
        self.model = self.place.module(VAE(config.model))
        self.optimizers = self._optimizers()
        self.train_rows = data.rows("train")
        self.steps_per_epoch = math.ceil(len(self.train_rows) / config.batch_size)
        self.num_steps = config.epochs * self.steps_per_epoch
        self.step = 0

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Each group of parameters keeps the peak of its learning rate as `peak_lr`."""
        config, model = self.config, self.model
        # The layers that touch pixels, and the log variance, are no matrices between hidden features.
        outer = {id(model.decoder.to_rgb.weight), id(model.encoder.log_var.weight)}
        inner = [p for p in model.parameters() if config.optimizer == "muon" and is_matrix(p) and id(p) not in outer]
        rest = [p for p in model.parameters() if not any(p is other for other in inner)]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam([{"params": rest, "peak_lr": config.lr}])]
        if inner:
            optimizers.append(Muon([{"params": inner, "peak_lr": config.muon_lr}], dtype=self.place.dtype))
        return optimizers

    def perceptual(self) -> PerceptualLoss | None:
        """The perceptual term, or None without taps; looks for VGG19's weights, which may take seconds."""
        config = self.config
        if not config.taps:
            return None
        backbone = load_backbone(config.taps, config.vgg_weights, config.seed)
        perceptual = PerceptualLoss(backbone, self.place.device, self.place.dtype)
        if config.normalise_features:
            perceptual.normalise(self.place.images(self.data.images[self.train_rows[:NUM_CALIBRATION]]))
        return perceptual

    def resolved(self, perceptual: PerceptualLoss | None) -> dict[str, Any]:
        """What the configuration came to here; goes into config.json."""
        index = self.data.index
        return {
            "data": str(index.root.resolve()),
            "data_fingerprint": self.data.fingerprint,
            "attributes": list(index.attributes),
            "images": {split: len(self.data.rows(split)) for split in ("train", "val", "test")},
            "perceptual_weights": perceptual.backbone.source if perceptual else "none: no taps",
            "perceptual_scales": perceptual.scales if perceptual else {},
            "device": str(self.place.device),
            "dtype": str(self.place.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "steps": self.num_steps,
        }

    def lr_share(self) -> float:
        """Learning rate of the next step, as a share of its peak."""
        config = self.config
        if config.schedule == "step":
            return float(config.lr_gamma ** (self.step // self.steps_per_epoch))
        if config.schedule == "one-cycle":
            warm = max(1, round(0.1 * self.num_steps))
            if self.step < warm:
                return (self.step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (self.step - warm) / max(1, self.num_steps - warm)))
        return 1.0

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images and latent noise of the next step: (B, 3, S, S) in [0, 1] and (B, D)."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train_rows)
        rows = order[position * self.config.batch_size :][: self.config.batch_size]
        random = np.random.default_rng([self.config.seed, 1, self.step])
        images = self.place.images(self.data.images[rows])
        if self.config.flip:
            flipped = torch.from_numpy(random.random(len(rows)) < 0.5).to(images.device)
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        noise = random.standard_normal((len(rows), self.config.model.latent_dim), np.float32)
        return images, torch.from_numpy(noise).to(images.device)

    def advance(self, loss: Loss) -> Terms:
        """One step of gradient descent."""
        images, noise = self.batch()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.lr_share()
        with self.place.autocast():
            output = self.model(images, noise)
        terms = loss(images, output, self.step / self.num_steps)
        terms.total.backward()  # type: ignore[no-untyped-call]
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return terms

    def save(self) -> None:
        """Writes the weights and the checkpoint, in this order: the weights are never older than the checkpoint."""
        checkpoint.save_model(self.folder, self.model)
        state = {
            "step": self.step,
            "config": json.dumps(self.config.to_json()),
            "data_fingerprint": self.data.fingerprint,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        checkpoint.save_checkpoint(self.folder, state)

    def restore(self) -> None:
        """Goes on from the folder's checkpoint.

        Raises:
            RunError: it is of another configuration or other data; names what differs.
        """
        state = checkpoint.load_checkpoint(self.folder)
        ours, theirs = self.config.to_json(), json.loads(state["config"])
        differing = [f"{key}: {theirs.get(key)} -> {ours[key]}" for key in ours if ours[key] != theirs.get(key)]
        if differing:
            raise RunError(
                f"{self.folder} was trained with another configuration ({'; '.join(differing)}); resume with the same "
                "one, or train into a new folder"
            )
        if state["data_fingerprint"] != self.data.fingerprint:
            raise RunError(
                f"the data in {self.data.index.root} is not what {self.folder} was trained on; restore it, or train "
                "into a new folder"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.step = state["step"]


class _Signals:
    """Turns SIGINT and SIGTERM into a flag that the loop looks at between two steps; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, self._previous[signum])

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


def train(config: TrainConfig, data: FaceData, folder: Path, resume: bool = False) -> None:
    """Trains a VAE, then computes its attribute directions.

    Leaves the run folder of the design: config.json, model.safetensors, checkpoint.pt, metrics.jsonl, TensorBoard
    events, directions.safetensors and samples.safetensors (`images`, held-out ones, (N, S, S, 3) uint8).

    Args:
        config: what to compute.
        data: the images, packed at the model's size.
        folder: the run folder; new, or with `resume` one of the same configuration and data.
        resume: go on from the checkpoint; a folder without one starts from nothing.

    Raises:
        RunError: the folder is in use, or its checkpoint does not fit.
        NonFiniteLossError: the loss is not a number.
        InterruptedRunError: SIGINT or SIGTERM came; the checkpoint holds all steps that were done.
    """
    started = (folder / checkpoint.CONFIG).exists()
    if started and not resume:
        raise RunError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
    run = Run(config, data, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / checkpoint.CHECKPOINT).exists():
        run.restore()
    if run.step < run.num_steps:
        perceptual = run.perceptual()
        checkpoint.save_config(folder, config, run.resolved(perceptual))
        _fit(run, Loss(config, perceptual))
    elif (folder / DIRECTIONS).exists():
        logger.info("%s is complete: nothing left to train", folder)
        return
    _finish(run)


def _fit(run: Run, loss: Loss) -> None:
    _cut_metrics(run.folder / METRICS, run.step)
    config, first, began = run.config, run.step, time.monotonic()
    val = run.data.images[run.data.rows("val")[:NUM_SAMPLES]]
    with (
        _Signals() as signals,
        SummaryWriter(str(run.folder), purge_step=run.step) as board,
        (run.folder / METRICS).open("a", buffering=1) as metrics,
        tqdm(desc="training", total=run.num_steps * config.batch_size, unit="image", unit_scale=True) as bar,
    ):
        bar.update(run.step * config.batch_size)
        bar.unpause()
        while run.step < run.num_steps:
            lr = config.lr * run.lr_share()
            terms = run.advance(loss)
            bar.update(config.batch_size)
            epoch_done = run.step % run.steps_per_epoch == 0
            if run.step % config.log_every == 0 or epoch_done or signals.received:
                values = terms.named()
                _refuse_non_finite(run, values)
                rate = (run.step - first) * config.batch_size / (time.monotonic() - began)
                record = {"step": run.step, "epoch": run.step / run.steps_per_epoch, "lr": lr, "loss": values}
                metrics.write(json.dumps(record | {"images_per_second": round(rate, 1)}) + "\n")
                for name, value in values.items():
                    board.add_scalar(f"loss/{name}", value, run.step)
                board.add_scalar("lr", lr, run.step)
                bar.set_postfix(pixel=f"{values['pixel']:.4f}", kl=f"{values['kl']:.0f}", refresh=False)
            if epoch_done:
                psnr = _validate(run, val, board)
                metrics.write(json.dumps({"step": run.step, "val_psnr": psnr}) + "\n")
                tqdm.write(f"epoch {run.step // run.steps_per_epoch}/{config.epochs}: validation PSNR {psnr:.2f} dB")
            if epoch_done or signals.received:
                run.save()
            if signals.received:
                name = signal.Signals(signals.received).name
                raise InterruptedRunError(
                    signals.received,
                    f"stopped by {name} after step {run.step} of {run.num_steps}; the checkpoint is written, go on "
                    "with --resume",
                )


def _refuse_non_finite(run: Run, values: dict[str, float]) -> None:
    if not math.isfinite(values["total"]):
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise NonFiniteLossError(
            f"the loss is not a number at step {run.step} ({terms}); lower --lr (now {run.config.lr:.4g}) or set "
            "--grad-clip, then train again; the checkpoint of the last epoch is kept"
        )


@torch.no_grad()
def _validate(run: Run, images: NDArray[np.uint8], board: SummaryWriter) -> float:
    """Mean PSNR of reconstructions from mu, dB, and a picture of them in TensorBoard."""
    run.model.eval()
    errors = []
    for start in range(0, len(images), 64):
        batch = run.place.images(images[start : start + 64])
        with run.place.autocast():
            output = run.model(batch)
        errors.append((output.images - batch).square().mean((1, 2, 3)))
        if start == 0:
            shown = (output.images[:8].permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
            board.add_image("reconstructions", figures.grid([images[:8], shown]), run.step, dataformats="HWC")
    run.model.train()
    return float((-10 * torch.cat(errors).log10()).mean())


def _cut_metrics(path: Path, step: int) -> None:
    """Drops the records of steps that a resumed run does again."""
    if path.exists():
        kept = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        checkpoint.write_atomically(path, lambda file: file.write_text("".join(f"{line}\n" for line in kept)))


def _finish(run: Run) -> None:
    rows = np.concatenate([run.data.rows("val"), run.data.rows("test")])[:NUM_SAMPLES]
    samples = {"images": torch.from_numpy(run.data.images[rows])}
    checkpoint.write_atomically(run.folder / SAMPLES, lambda file: save_file(samples, file))
    mu = encode_rows(run.model, run.data.images, run.data.rows("train"), run.place.images)
    directions = mean_differences(mu, run.data.index.labels[run.data.rows("train")], run.data.index.attributes)
    checkpoint.write_atomically(
        run.folder / DIRECTIONS, lambda file: save_directions(file, directions, mu.shape[1], "train")
    )
