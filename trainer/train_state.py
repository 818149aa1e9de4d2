"""The state of one training run: network, optimisers and step; one step of training; to disk and back."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from trainer import run_folder
from trainer.config import CHANGEABLE, TrainConfig, flag_of
from trainer.data import FaceData
from trainer.data.loader import Batch, BatchLoader
from trainer.errors import NonFiniteLossError, RunError
from trainer.hardware.conv_as_matmul import use_matmul
from trainer.hardware.device import Placement, seeded
from trainer.hardware.distributed import Processes
from trainer.loss.perceptual import PerceptualLoss
from trainer.loss.vae_loss import Terms, VAELoss
from trainer.loss.vgg import load_backbone
from trainer.model import VAE, Output, VAEWithHead, freeze_biases_before_batch_norm
from trainer.optim import Muon, Schedule

logger = logging.getLogger(__name__)

NUM_CALIBRATION = 64
"""Training images, drawn from the seed, over which `normalise_features` takes its means."""


class TrainState:
    """One training run.

    Args:
        config: what to compute.
        data: the images, packed at the model's size.
        folder: the run folder.
        place: device and arithmetic; None resolves the configuration's.
        processes: the processes that train together; None for this one alone.

    Attributes:
        model: the VAE.
        net: all that is trained: the VAE and, with an attribute term, its head.
        loader: the batches.
        schedule: the learning rates.
        step: steps that are done.
        legs: in what circumstances the steps were done, one entry from each step on at which they changed: `from_step`,
            `device`, `dtype`, `processes`, `threads`, `compiled`, `torch` and the fields that a run may change.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: FaceData,
        folder: Path,
        place: Placement | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.place = place or Placement.of(config.device, config.precision)
        self.processes = processes or Processes()
        # Data
        self.loader = BatchLoader(config, data, self.place, self.processes)
        # Network
        num_attributes = data.index.labels.shape[1] if config.attribute_weight else 0
        with seeded(config.seed):
            net = VAEWithHead(VAE(config.model), num_attributes)
        freeze_biases_before_batch_norm(net.vae)
        self.net = self.processes.synchronise_batch_norm(self.place.module(net))
        self.model = self.net.vae
        if self.place.device.type == "cpu":
            use_matmul(self.model)
        self._forward = self.processes.data_parallel(self.net)
        self._forward_whole: Callable[..., tuple[Output, Tensor | None]] = self._forward
        # Optimisers
        self.optimizers = self._optimizers()
        self.step = 0
        self.legs: list[dict[str, Any]] = []
        self.schedule = self._schedule()
        self._clipped: Tensor | None = None
        self._digests: dict[str, str] = {"data": data.fingerprint}

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.loader.num_steps

    @property
    def epoch(self) -> float:
        """Epochs that are done."""
        return self.step / self.loader.steps_per_epoch

    @property
    def epoch_done(self) -> bool:
        """Whether the last step ended an epoch."""
        return self.step % self.loader.steps_per_epoch == 0

    @property
    def learning_rates(self) -> dict[str, float]:
        """Those of the next step: `lr` of Adam or SGD and, where it is used, `muon_lr` of Muon."""
        names = ("lr",) if self.config.optimizer == "adam" else ("lr", "muon_lr")
        return {name: getattr(self.config, name) * self.schedule.factor(self.step) for name in names}

    def held(self, name: str) -> Any:
        """What held in the last steps, such as their `threads`, see `legs`; None before the first."""
        return self.legs[-1].get(name) if self.legs else None

    @property
    def progress(self) -> float:
        """Fraction of the steps that are done; of those that were planned at first, should epochs have been added."""
        epochs = self.legs[0]["epochs"] if self.legs else self.config.epochs
        return self.step / (epochs * self.loader.steps_per_epoch)

    def _schedule(self) -> Schedule:
        """The learning rates; where the number of epochs is changed, one-cycle begins a new cycle."""
        config, start = self.config, self.step
        for leg in reversed(self.legs):
            if leg["epochs"] != config.epochs:
                break
            start = leg["from_step"]
        return Schedule(config.schedule, config.lr_gamma, self.loader.steps_per_epoch, self.loader.num_steps, start)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """One for each of the `learning_rates`, in their order."""
        config = self.config
        trained = [p for p in self.net.parameters() if p.requires_grad]
        if config.optimizer == "adam":
            return [torch.optim.Adam(trained, lr=config.lr, fused=True)]
        # Adam or SGD keeps the kernel that draws pixels, as Muon's authors advise for output layers, and the log
        # variance's matrix, whose steps act through an exponential. The first convolution is Muon's.
        outer = {self.model.decoder.to_rgb.weight, self.model.encoder.log_var.weight}
        inner = [p for p in self.model.parameters() if p.ndim >= 2 and p not in outer]
        by_muon = set(inner)
        others = [p for p in trained if p not in by_muon]
        muon = Muon(inner, lr=config.muon_lr, dtype=self.place.dtype)
        if config.optimizer == "muon":
            return [torch.optim.Adam(others, lr=config.lr, fused=True), muon]
        return [torch.optim.SGD(others, lr=config.lr, momentum=config.momentum, fused=True), muon]

    def perceptual(self) -> PerceptualLoss | None:
        """The perceptual term, or None without taps; looks for VGG19's weights, which may take seconds.

        Raises:
            RunError: the run that is gone on with had other weights.
        """
        config = self.config
        if not config.taps:
            return None
        backbone = load_backbone(config.taps, config.vgg_weights, config.seed)
        digest = _digest(backbone.layers)
        if self._digests.setdefault("vgg19", digest) != digest:
            raise RunError(
                f"{self.folder} was trained with other VGG19 weights than these ({backbone.source}); resume with the "
                "same --vgg-weights, or train into a new folder"
            )
        perceptual = PerceptualLoss(backbone, self.place.device, self.place.dtype)
        if config.normalise_features:
            perceptual.normalise(self.place.images(self.data.images[self.loader.sample(NUM_CALIBRATION)]))
        return perceptual

    def resolved(self, perceptual: PerceptualLoss | None) -> dict[str, Any]:
        """What the configuration came to here; goes into config.json."""
        index = self.data.index
        return {
            "data": str(index.root.resolve()),
            "data_fingerprint": self.data.fingerprint,
            "layout": index.layout,
            "frame": asdict(self.config.frame),
            "attributes": list(index.attributes),
            "left_out": list(index.left_out),
            "images": {split: len(self.data.rows(split)) for split in ("train", "val", "test")},
            "perceptual_weights": perceptual.backbone.source if perceptual else "none: no taps",
            "perceptual_scales": perceptual.scales if perceptual else {},
            "init_from_digest": self._digests.get("init_from"),
            "steps": self.num_steps,
            "legs": self.legs,
        }

    def begin_leg(self, compiled: bool) -> None:
        """Notes the circumstances of the steps to come, unless they are those of the last ones."""
        leg = {
            "device": str(self.place.device),
            "dtype": str(self.place.dtype).removeprefix("torch."),
            "processes": self.processes.world_size,
            "threads": torch.get_num_threads(),
            "compiled": compiled,
            "torch": str(torch.__version__),
            **{name: getattr(self.config, name) for name in CHANGEABLE},
        }
        if any(self.held(name) != value for name, value in leg.items()):
            self.legs.append({"from_step": self.step, **leg})

    def train_step(self, loss: VAELoss, batch: Batch) -> Terms:
        """One step of gradient descent; gives the loss before it, on this process's images."""
        for optimizer, rate in zip(self.optimizers, self.learning_rates.values(), strict=True):
            optimizer.zero_grad(set_to_none=True)
            optimizer.param_groups[0]["lr"] = rate
        with self.place.autocast():
            # The last batch of an epoch is not worth compiling for.
            forward = self._forward_whole if len(batch.images) == self.config.batch_size else self._forward
            output, logits = forward(batch.images, batch.noise)
        terms = loss(batch.images, output, logits, batch.labels, progress=self.progress, total=batch.total)
        total = terms.total * self.processes.world_size  # gradients are averaged, and those of the terms add up
        total.backward()  # type: ignore[no-untyped-call]
        if self.config.grad_clip:
            self._clipped = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return terms

    def gradient_norm(self) -> float:
        """Length of the last step's gradient, before it was clipped."""
        gradients = (p.grad for p in self.net.parameters() if p.grad is not None)
        norm = torch.nn.utils.get_total_norm(gradients) if self._clipped is None else self._clipped
        return float(norm)

    def compile(self) -> None:
        """Has whole batches run through torch.compile."""
        self._forward_whole = torch.compile(self._forward, dynamic=False)

    def save(self) -> None:
        """Writes the weights and the checkpoint, in this order: the weights are never older than the checkpoint.

        Raises:
            NonFiniteLossError: a weight is not a number; nothing is written.
            RunError: the disk is full or broken; the last good checkpoint is kept.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in self.net.state_dict().values()):
            raise NonFiniteLossError(f"weights are not numbers after step {self.step}; {self.remedy}")
        self.processes.on_main(self._write)

    def _write(self) -> None:
        run_folder.save_model(self.folder, self.model)
        state = {
            "version": run_folder.CHECKPOINT_VERSION,
            "step": self.step,
            "legs": self.legs,
            "config": json.dumps(self.config.to_json()),
            "digests": self._digests,
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        run_folder.save_checkpoint(self.folder, state)

    @property
    def saved_bytes(self) -> int:
        """Estimate of what `save` leaves on disk: the weights twice, and their moments."""
        weights: int = sum(tensor.nbytes for tensor in self.net.state_dict().values())
        return 4 * weights

    @property
    def remedy(self) -> str:
        """What to change when the loss is no number, as a command."""
        config = self.config
        lower = " ".join(f"{flag_of(name)} {getattr(config, name) / 5:.2g}" for name in self.learning_rates)
        clip = "" if config.grad_clip else ", or with --grad-clip 1"
        kept = (self.folder / run_folder.CHECKPOINT).exists()
        start = "the last good checkpoint is kept: go on from it" if kept else "there is no checkpoint yet: start again"
        return (
            f"{start} at a lower rate (now --lr {config.lr:.4g}): python -m trainer train --resume "
            f"--data {quote(str(self.data.index.root))} --out {quote(str(self.folder))} {lower}{clip}"
        )

    def restore(self) -> None:
        """Goes on from the folder's checkpoint; without one, from the weights of `init_from`, or from nothing.

        Raises:
            RunError: it is torn, or of another configuration or other data; names what differs.
        """
        state = self.processes.on_main(self._read)
        if state is None:
            if self.config.init_from is not None:
                weights = self.processes.on_main(lambda: run_folder.initial_weights(self.config))
                self.model.load_state_dict(weights)
                self._digests["init_from"] = _digest(self.model)
            return
        self.net.load_state_dict(state["net"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.step, self._digests, self.legs = state["step"], state["digests"], state["legs"]
        self.schedule = self._schedule()
        for name in CHANGEABLE:
            before, now = self.held(name), getattr(self.config, name)
            if before not in (None, now):
                logger.info("from step %d on, %s is %s instead of %s", self.step, flag_of(name), now, before)

    def _read(self) -> dict[str, Any] | None:
        if not (self.folder / run_folder.CHECKPOINT).exists():
            return None
        state = run_folder.load_checkpoint(self.folder)
        run_folder.require_same(self.folder, self.config, json.loads(state["config"]))
        if self.data.fingerprint != state["digests"]["data"]:
            raise RunError(
                f"the data in {self.data.index.root} is not what {self.folder} was trained on; restore it, or train "
                "into a new folder"
            )
        done = state["step"] / self.loader.steps_per_epoch
        if self.config.epochs < done:
            raise RunError(f"--epochs {self.config.epochs}: {self.folder} has done {done:.4g} already; give more")
        return state


def _digest(module: nn.Module) -> str:
    """Changes with any weight of a module."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
