"""The figures of a run's report: those of the seed document and the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluation import charts, encoding, generation, grids, vectors
from trainer.evaluation.encoded_run import EncodedRun, Floats
from trainer.evaluation.figure import Figure
from trainer.evaluation.skipped import SkippedError

NUM_RECONSTRUCTIONS, NUM_SAMPLES, NUM_COLUMNS = 30, 60, 10
NUM_INTERPOLATIONS, INTERPOLATION_STEPS = 8, 11


def draw(encoded: EncodedRun, metrics: dict[str, Any], folder: Path, seed: int) -> list[Figure]:
    """Draws everything but edits.

    Args:
        encoded: what is judged.
        metrics: its measures, as in metrics.json; what was skipped there is not drawn.
        folder: exists; PNG files are written to it.
        seed: of the images that are generated and of the pairs that are chosen.
    """
    drawn = [
        _reconstructions(encoded, folder),
        *_samples(encoded, folder, seed),
        *_encoding(encoded, metrics["encoding"], folder, seed),
        *_interpolations(encoded, folder, seed),
    ]
    if "skipped" not in metrics["attribute_prediction"]:
        drawn.append(_attribute_accuracy(metrics["attribute_prediction"], folder))
    if "skipped" not in metrics["vectors"]:
        drawn.append(_correlation(metrics["vectors"], folder))
    return drawn


def draw_map(encoded: EncodedRun, folder: Path, seed: int) -> list[Figure]:
    """Draws the t-SNE map; apart, as it takes a while. Returns no figure where there are too few images."""
    try:
        places = vectors.tsne(encoded.mu, seed)
    except SkippedError:
        return []
    title = f"t-SNE of the posterior means of {len(places):,} test images"
    grids.save_face_map(folder / "tsne.png", title, places, encoded.images[: len(places)])
    return [
        Figure(
            "tsne.png",
            "Map of the latent space",
            "Each test image beside those with similar latents: neighbours should share what the latents know, such as "
            "pose, background, hair, sex, smile.",
        )
    ]


def _reconstructions(encoded: EncodedRun, folder: Path) -> Figure:
    shown = slice(0, NUM_RECONSTRUCTIONS)
    grids.save_reconstructions(folder / "reconstructions.png", encoded.images[shown], encoded.reconstructions[shown])
    return Figure(
        "reconstructions.png",
        "Reconstructions",
        "Each test image above its reconstruction from mu: expression, glasses and hair should survive; the background "
        "and fine texture rarely do.",
    )


def _samples(encoded: EncodedRun, folder: Path, seed: int) -> list[Figure]:
    latent_dim = encoded.mu.shape[1]
    sets: tuple[tuple[str, str, Floats, str], ...] = (
        (
            "samples.png",
            "Generated images, decoded from N(0, I)",
            generation.prior_latents(NUM_SAMPLES, latent_dim, seed),
            "Are these faces? Broken ones mean that the encodings leave parts of N(0, I) empty: too little KL weight.",
        ),
        (
            "samples_fitted.png",
            "Generated images, decoded from the Gaussian that fits the encodings",
            encoded.prior.draw(NUM_SAMPLES, seed),
            "The same decoder on latents spread as the training images' are: where these are much better than those "
            "from N(0, I), the prior is at fault, not the decoder.",
        ),
    )
    drawn = []
    for file, title, latents, look_for in sets:
        rows = np.split(encoded.decode(latents), NUM_SAMPLES // NUM_COLUMNS)
        grids.save_grid(folder / file, title, rows)
        drawn.append(Figure(file, title, look_for))
    return drawn


def _encoding(encoded: EncodedRun, measured: dict[str, Any], folder: Path, seed: int) -> list[Figure]:
    samples = encoding.posterior_samples(encoded.mu, encoded.log_var, seed)
    charts.save_encoding_distribution(folder / "encoding_distribution.png", encoded.mu, samples)
    drawn = [
        Figure(
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
        drawn.append(Figure("kl_per_dimension.png", "KL per dimension", look_for))
    return drawn


def _interpolations(encoded: EncodedRun, folder: Path, seed: int) -> list[Figure]:
    if len(encoded.mu) < 2:
        return []
    pairs, points = vectors.interpolations(encoded.mu, NUM_INTERPOLATIONS, INTERPOLATION_STEPS, seed)
    decoded = encoded.decode(points.reshape(-1, points.shape[-1]))
    lines = decoded.reshape(*points.shape[:2], *decoded.shape[1:])
    strips = [
        np.concatenate([encoded.images[[start]], line, encoded.images[[end]]])
        for (start, end), line in zip(pairs, lines, strict=True)
    ]
    shares = [f"{share:.0%}" for share in np.linspace(0, 1, INTERPOLATION_STEPS)]
    title = "Straight lines in the latent space between test images"
    grids.save_strips(folder / "interpolations.png", title, ["image", *shares, "image"], strips)
    return [
        Figure(
            "interpolations.png",
            "Interpolations",
            "From one face to another in equal steps of mu: every step should be a face, and none should look like two "
            "laid over each other.",
        )
    ]


def _attribute_accuracy(measured: dict[str, Any], folder: Path) -> Figure:
    title = (
        f"Attributes read off mu by a linear SVM: {measured['accuracy_mean']:.1%} right on "
        f"{measured['images']['test']:,} test images\n(always the majority: {measured['majority_mean']:.1%})"
    )
    charts.save_accuracy_bars(folder / "attribute_accuracy.png", title, measured["accuracy"], measured["majority"])
    return Figure(
        "attribute_accuracy.png",
        "Attribute prediction",
        "A bar that ends beyond its mark says that the latents know the attribute; at the mark, they may know nothing "
        "of it.",
    )


def _correlation(measured: dict[str, Any], folder: Path) -> Figure:
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
    return Figure(
        "attribute_correlation.png",
        "Correlation of attribute vectors",
        "Red blocks are attributes that one vector moves together (make-up, lipstick, no beard), blue ones exclude "
        "each other; what correlates here cannot be edited alone without keeping the other.",
    )
