"""The figures of a run's report: those of the seed document and the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluation import charts, encoding, figures, generation, vectors
from trainer.evaluation.plate import Plate
from trainer.evaluation.skipped import SkippedError
from trainer.evaluation.subject import Floats, Subject

NUM_RECONSTRUCTIONS, NUM_SAMPLES, NUM_COLUMNS = 30, 60, 10
NUM_INTERPOLATIONS, INTERPOLATION_STEPS = 8, 11


def draw(subject: Subject, metrics: dict[str, Any], folder: Path, seed: int) -> list[Plate]:
    """Draws everything but edits.

    Args:
        subject: what is judged.
        metrics: its measures, as in metrics.json; what was skipped there is not drawn.
        folder: exists; PNG files are written to it.
        seed: of the images that are generated and of the pairs that are chosen.
    """
    plates = [
        _reconstructions(subject, folder),
        *_samples(subject, folder, seed),
        *_encoding(subject, metrics["encoding"], folder, seed),
        *_interpolations(subject, folder, seed),
    ]
    if "skipped" not in metrics["attribute_prediction"]:
        plates.append(_attribute_accuracy(metrics["attribute_prediction"], folder))
    if "skipped" not in metrics["vectors"]:
        plates.append(_correlation(metrics["vectors"], folder))
    return plates


def draw_map(subject: Subject, folder: Path, seed: int) -> list[Plate]:
    """Draws the t-SNE map; apart, as it takes a while. Returns no plate where there are too few images."""
    try:
        places = vectors.tsne(subject.mu, seed)
    except SkippedError:
        return []
    title = f"t-SNE of the posterior means of {len(places):,} test images"
    figures.save_face_map(folder / "tsne.png", title, places, subject.images[: len(places)])
    return [
        Plate(
            "tsne.png",
            "Map of the latent space",
            "Each test image beside those with similar latents: neighbours should share what the latents know, such as "
            "pose, background, hair, sex, smile.",
        )
    ]


def _reconstructions(subject: Subject, folder: Path) -> Plate:
    shown = slice(0, NUM_RECONSTRUCTIONS)
    figures.save_reconstructions(folder / "reconstructions.png", subject.images[shown], subject.reconstructions[shown])
    return Plate(
        "reconstructions.png",
        "Reconstructions",
        "Each test image above its reconstruction from mu: expression, glasses and hair should survive; the background "
        "and fine texture rarely do.",
    )


def _samples(subject: Subject, folder: Path, seed: int) -> list[Plate]:
    latent_dim = subject.mu.shape[1]
    drawn: tuple[tuple[str, str, Floats, str], ...] = (
        (
            "samples.png",
            "Generated images, decoded from N(0, I)",
            generation.prior_latents(NUM_SAMPLES, latent_dim, seed),
            "Are these faces? Broken ones mean that the encodings leave parts of N(0, I) empty: too little KL weight.",
        ),
        (
            "samples_fitted.png",
            "Generated images, decoded from the Gaussian that fits the encodings",
            subject.prior.draw(NUM_SAMPLES, seed),
            "The same decoder on latents spread as the training images' are: where these are much better than those "
            "from N(0, I), the prior is at fault, not the decoder.",
        ),
    )
    plates = []
    for file, title, latents, look_for in drawn:
        rows = np.split(subject.decode(latents), NUM_SAMPLES // NUM_COLUMNS)
        figures.save_grid(folder / file, title, rows)
        plates.append(Plate(file, title, look_for))
    return plates


def _encoding(subject: Subject, measured: dict[str, Any], folder: Path, seed: int) -> list[Plate]:
    samples = encoding.posterior_samples(subject.mu, subject.log_var, seed)
    charts.save_encoding_distribution(folder / "encoding_distribution.png", subject.mu, samples)
    plates = [
        Plate(
            "encoding_distribution.png",
            "Encoding distribution",
            "Where z (filled) follows the black curve, samples from N(0, I) land where the decoder was trained; mu "
            "(line) is narrower by the posteriors' own width.",
        )
    ]
    kl = measured["per_dimension"]["kl_nats"]
    if kl is not None:
        charts.save_kl_bars(folder / "kl_per_dimension.png", kl, measured["active_units"])
        look_for = "Dimensions of no height carry nothing: the model has switched them off."
        plates.append(Plate("kl_per_dimension.png", "KL per dimension", look_for))
    return plates


def _interpolations(subject: Subject, folder: Path, seed: int) -> list[Plate]:
    if len(subject.mu) < 2:
        return []
    pairs, points = vectors.interpolations(subject.mu, NUM_INTERPOLATIONS, INTERPOLATION_STEPS, seed)
    decoded = subject.decode(points.reshape(-1, points.shape[-1]))
    lines = decoded.reshape(*points.shape[:2], *decoded.shape[1:])
    strips = [
        np.concatenate([subject.images[[start]], line, subject.images[[end]]])
        for (start, end), line in zip(pairs, lines, strict=True)
    ]
    shares = [f"{share:.0%}" for share in np.linspace(0, 1, INTERPOLATION_STEPS)]
    title = "Straight lines in the latent space between test images"
    figures.save_strips(folder / "interpolations.png", title, ["image", *shares, "image"], strips)
    return [
        Plate(
            "interpolations.png",
            "Interpolations",
            "From one face to another in equal steps of mu: every step should be a face, and none should look like two "
            "laid over each other.",
        )
    ]


def _attribute_accuracy(measured: dict[str, Any], folder: Path) -> Plate:
    title = (
        f"Attributes read off mu by a linear SVM: {measured['accuracy_mean']:.1%} right on "
        f"{measured['images']['test']:,} test images\n(always the majority: {measured['majority_mean']:.1%})"
    )
    charts.save_accuracy_bars(folder / "attribute_accuracy.png", title, measured["accuracy"], measured["majority"])
    return Plate(
        "attribute_accuracy.png",
        "Attribute prediction",
        "A bar that ends beyond its mark says that the latents know the attribute; at the mark, they may know nothing "
        "of it.",
    )


def _correlation(measured: dict[str, Any], folder: Path) -> Plate:
    names = measured["attributes"]
    charts.save_heat_map(
        folder / "attribute_correlation.png",
        "Correlation of attribute vectors",
        np.array(measured["matrix"]),
        rows=names,
        columns=names,
        unit="Pearson's correlation",
        limit=1.0,
    )
    return Plate(
        "attribute_correlation.png",
        "Correlation of attribute vectors",
        "Red blocks are attributes that one vector moves together (make-up, lipstick, no beard), blue ones exclude "
        "each other; what correlates here cannot be edited alone without keeping the other.",
    )
