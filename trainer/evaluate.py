"""Judging a run on held-out images: reconstruction, encoding, and edits as an image classifier sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from engine.errors import DirectionsError
from engine.latents import Directions, edit
from trainer import checkpoint, figures
from trainer.classifier import Classifier, train_classifier
from trainer.dataset import FaceData
from trainer.directions import encode_rows
from trainer.errors import RunError
from trainer.loop import DIRECTIONS
from trainer.loss import kl_divergence
from trainer.placement import Placement

Images = NDArray[np.uint8]
CLASSIFIER, EVALUATION = "classifier.safetensors", "metrics.json"
JUDGED_ATTRIBUTES = ("Smiling", "Eyeglasses")
MAX_EDITED = 500
"""Faces a direction at most that edits are judged on."""


@dataclass(frozen=True)
class EditQuality:
    """What a classifier sees of one edit.

    Attributes:
        attribute: the edited attribute.
        strength: multiples of its direction; negative removes it.
        faces: held-out faces judged: those whose label and whose unedited reconstruction are on the other side.
        flipped: share of them that the classifier sees on the wanted side after the edit.
        kept: share of its predictions of all other attributes that stay as they were before the edit.
    """

    attribute: str
    strength: float
    faces: int
    flipped: float
    kept: float


def judge_edit(classifier: Classifier, attribute: str, strength: float, before: Images, after: Images) -> EditQuality:
    """Compares reconstructions with the same faces edited.

    Args:
        classifier: sees both.
        attribute: the edited one; must be among the classifier's.
        strength: of the edit; its sign says which side is wanted.
        before: (N, S, S, 3) uint8, decoded without an edit.
        after: the same faces, edited.
    """
    column = classifier.attributes.index(attribute)
    wanted = strength > 0
    seen_before, seen_after = classifier.predict(before), classifier.predict(after)
    judged = seen_before[:, column] != wanted
    others = np.arange(len(classifier.attributes)) != column
    flipped = (seen_after[judged, column] == wanted).mean() if judged.any() else np.nan
    same = (seen_before == seen_after)[judged][:, others]
    return EditQuality(
        attribute,
        strength,
        int(judged.sum()),
        float(flipped),
        float(same.mean()) if same.size else float("nan"),
    )


def rows_to_edit(data: FaceData, attribute: str, strength: float) -> NDArray[np.int64]:
    """Test rows whose label lacks what the edit adds, or has what it removes; `MAX_EDITED` at most."""
    labels = data.index.labels[:, data.index.attributes.index(attribute)]
    rows = data.rows("test")
    lacking: NDArray[np.int64] = rows[labels[rows] != (strength > 0)]
    return lacking[:MAX_EDITED]


def image_metrics(originals: Images, reconstructions: Images) -> dict[str, float]:
    """PSNR (dB, of each image, averaged) and SSIM of uint8 images (N, S, S, 3), on the scale [0, 1]."""
    truth, ours = (
        torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        for images in (originals, reconstructions)
    )
    psnr = peak_signal_noise_ratio(ours, truth, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(ours, truth, data_range=1.0)
    return {"psnr_db": float(torch.as_tensor(psnr)), "ssim": float(torch.as_tensor(ssim))}


def linear_accuracy(
    mu: NDArray[np.float32], labels: NDArray[np.bool_], test_mu: NDArray[np.float32], test_labels: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """How well attributes can be read off mu: least squares of +1 and -1 on mu and a constant, then the sign.

    Args:
        mu: (N, D) posterior means of the train split.
        labels: (N, A) which image has which attribute.
        test_mu: (M, D) posterior means of the test split.
        test_labels: (M, A).

    Returns:
        (A,) share of right predictions on the test split.
    """
    inputs, test_inputs = (np.column_stack([values, np.ones(len(values))]) for values in (mu, test_mu))
    weights, *_ = np.linalg.lstsq(inputs, np.where(labels, 1.0, -1.0), rcond=None)
    right: NDArray[np.float64] = (((test_inputs @ weights) > 0) == test_labels).mean(0)
    return right


def classifier_of(folder: Path, data: FaceData, place: Placement) -> Classifier:
    """The judge for a data set: read from `folder` if it holds one for these very data, else trained and kept there."""
    path = folder / CLASSIFIER
    classifier = Classifier.load(path, data.fingerprint, place)
    if classifier is None:
        epochs = max(4, round(60_000 / len(data.rows("train"))))
        classifier = train_classifier(data, place, min(epochs, 20))
        classifier.save(path, data.fingerprint)
    return classifier


class Evaluation:
    """A trained run, the test split, and what can be measured of the two."""

    def __init__(self, run: Path, data: FaceData) -> None:
        self.run, self.data = run, data
        self.place = Placement.of()
        self.model = self.place.module(checkpoint.load_model(run))
        try:
            self.directions = Directions.load(run / DIRECTIONS)
        except DirectionsError as error:
            raise RunError(f"{error}; finish the run with `python -m trainer train ... --resume`") from error
        self.rows = data.rows("test")
        self.mu = encode_rows(self.model, data.images, self.rows, self.place.images)

    @torch.no_grad()
    def decode(self, latents: NDArray[np.float32]) -> Images:
        """Images (N, S, S, 3) uint8 of latents (N, D)."""
        parts = [
            self.model.decoder(torch.from_numpy(part).to(self.place.device)).permute(0, 2, 3, 1).mul(255).round()
            for part in np.array_split(latents, max(1, len(latents) // 128))
        ]
        return torch.cat(parts).to(torch.uint8).cpu().numpy()

    def reconstruction(self) -> dict[str, Any]:
        """PSNR and SSIM of reconstructions from mu over the test split."""
        originals = self.data.images[self.rows]
        return {"split": "test", "images": len(originals), **image_metrics(originals, self.decode(self.mu))}

    @torch.no_grad()
    def encoding(self) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """KL and active units over the test split, and one sample of q(z|x) an image, (N, D)."""
        posteriors = [
            self.model.encoder(self.place.images(self.data.images[self.rows[start : start + 128]]))
            for start in range(0, len(self.rows), 128)
        ]
        mu = torch.cat([posterior.mu for posterior in posteriors]).cpu()
        log_var = torch.cat([posterior.log_var for posterior in posteriors]).cpu()
        noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
        summary = {
            "kl_nats": float(kl_divergence(mu, log_var).sum(1).mean()),
            "active_units": int((mu.var(0) > 0.01).sum()),  # Burda et al., arXiv 1509.00519
            "latent_dim": mu.shape[1],
        }
        return summary, (mu + (0.5 * log_var).exp() * noise).numpy()

    def attribute_prediction(self) -> dict[str, Any]:
        """Accuracy of a linear read-out of every attribute from mu, trained on the train split (paper, section 4.4)."""
        labels, train = self.data.index.labels, self.data.rows("train")
        mu = encode_rows(self.model, self.data.images, train, self.place.images)
        accuracy = linear_accuracy(mu, labels[train], self.mu, labels[self.rows])
        share = labels[self.rows].mean(0)
        return {
            "method": "least squares on mu",
            "accuracy_mean": float(accuracy.mean()),
            "majority_mean": float(np.maximum(share, 1 - share).mean()),
            "accuracy": dict(zip(self.data.index.attributes, map(float, accuracy), strict=True)),
        }

    def edits(self, classifier: Classifier, strength: float) -> list[EditQuality]:
        """Adding and removing each judged attribute that the run has a direction for."""
        results = []
        for attribute in JUDGED_ATTRIBUTES:
            if attribute not in self.directions.names or attribute not in classifier.attributes:
                continue
            for signed in (strength, -strength):
                chosen = np.isin(self.rows, rows_to_edit(self.data, attribute, signed))
                mu = self.mu[chosen]
                moved = edit(mu, [(self.directions[attribute], signed)])
                results.append(judge_edit(classifier, attribute, signed, self.decode(mu), self.decode(moved)))
        return results

    def write_figures(self, folder: Path, samples: NDArray[np.float32], seed: int = 0) -> None:
        """Writes reconstructions, images decoded from N(0, I), and the encoding distribution."""
        folder.mkdir(parents=True, exist_ok=True)
        shown = self.data.images[self.rows[:30]]
        figures.save_reconstructions(folder / "reconstructions.png", shown, self.decode(self.mu[:30]))
        noise = np.random.default_rng(seed).standard_normal((60, self.mu.shape[1]), np.float32)
        figures.save_grid(folder / "samples.png", np.split(self.decode(noise), 6))
        figures.save_encoding_distribution(folder / "encoding_distribution.png", self.mu, samples)


def evaluate(run: Path, data: FaceData, strength: float = 1.5) -> dict[str, Any]:
    """Measures a run on the test split; writes metrics.json and figures/ into its folder.

    Args:
        run: a finished run folder.
        data: the data set, packed at the model's size.
        strength: of the judged edits, in multiples of the attribute direction.

    Returns:
        What metrics.json holds.

    Raises:
        RunError: the run has no weights or no directions.
    """
    evaluation = Evaluation(run, data)
    encoding, samples = evaluation.encoding()
    classifier = classifier_of(run, data, evaluation.place)
    metrics = {
        "reconstruction": evaluation.reconstruction(),
        "encoding": encoding,
        "attribute_prediction": evaluation.attribute_prediction(),
        "classifier": {
            "accuracy_mean": float(np.mean(list(classifier.accuracy.values()))),
            "majority_mean": float(np.mean(list(classifier.majority.values()))),
            "accuracy": classifier.accuracy,
            "majority": classifier.majority,
        },
        "edits": [asdict(quality) for quality in evaluation.edits(classifier, strength)],
    }
    evaluation.write_figures(run / "figures", samples)
    checkpoint.write_json(run / EVALUATION, metrics)
    return metrics
