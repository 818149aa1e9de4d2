"""PyTorch behind the engine's own interface, in float32: the truth; and the run's own classifier as a judge."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.arrays import Bytes, Floats
from engine.backends import Backend
from engine.proof.truth import Truth
from export.proof.judge import Judge, Trial
from export.run import Run
from trainer.evaluation.classifier import CLASSIFIER, Classifier
from trainer.hardware.device import Placement
from trainer.model import VAE

NAME = "PyTorch eager FP32"


class EagerBackend(Backend):
    """The model as it was trained, batch norm and all, with its own conversion from and to uint8.

    It is in evaluation mode, on the CPU, float32.
    """

    def __init__(self, model: VAE) -> None:
        self._model = model

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, S, S, 3], to `mu` and `log_var`, float32 [N, D] each."""
        with torch.inference_mode():
            scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            mu, log_var = self._model.encoder(scaled)
            return mu.numpy(), log_var.numpy()

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3], rounded half to even."""
        with torch.inference_mode():
            levels = torch.round(self._model.decoder(torch.from_numpy(latents)) * 255)
            images: Bytes = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
            return images


@dataclass(frozen=True)
class Reference:
    """PyTorch on a run's held-out images: what engines are held against."""

    model: EagerBackend  # the run's model
    truth: Truth  # what that answers
    trial: Trial | str  # edits for the run's classifier to judge, or why there are none
    calibration_images: Bytes  # uint8 [M, S, S, 3], none of those in `truth`; empty where INT8 takes no part

    @classmethod
    def of(cls, run: Run, *, calibrates: bool) -> "Reference":
        """Asks a run's model; `calibrates`: half of the images are for INT8."""
        model = EagerBackend(run.model)
        samples, calibration_images = run.split_samples(calibrates=calibrates)
        judge = judge_of(run.path, run.resolved.get("data_fingerprint"))
        trial = Trial.of(judge, model, samples, run.directions)
        return cls(model, answers(run, model, samples), trial, calibration_images)


def judge_of(run: Path, fingerprint: str | None) -> Judge | str:
    """The judge of a run that was trained on data with this fingerprint, or why there is none."""
    path = run / CLASSIFIER
    evaluate = "run `python -m trainer evaluate RUN --data DIR` first"
    if not path.is_file():
        return f"skipped: the run has no {CLASSIFIER}; {evaluate}"
    classifier = Classifier.load(path, fingerprint or "", Placement.of("cpu", "fp32"))
    if classifier is None:
        return f"skipped: {CLASSIFIER} is damaged or of other data than the run's; {evaluate}"
    accuracy = np.mean([classifier.accuracy[name] for name in classifier.attributes])
    what = f"the run's classifier ({accuracy:.1%} right on its test images)"
    return Judge(what, classifier.attributes, classifier.logits)


def answers(run: Run, model: EagerBackend, images: Bytes) -> Truth:
    """What a run's model answers on images, uint8 [N, S, S, 3]."""
    return Truth.of(NAME, model, images, run.directions, run.prior, model_sha256=run.model_sha256)
