"""The figures of a run's report: those of the seed document and the paper. Those of edits are in `edits.figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.latents import Gaussian
from trainer.evaluation import charts, encoding, grids, vectors
from trainer.evaluation.encoded_run import EncodedRun
from trainer.evaluation.grids import Figure
from trainer.evaluation.options import Options
from trainer.evaluation.skipped import SkippedError

NUM_RECONSTRUCTIONS, NUM_SAMPLES, NUM_COLUMNS = 30, 60, 10
NUM_INTERPOLATIONS, INTERPOLATION_STEPS = 8, 11


def draw(encoded: EncodedRun, metrics: dict[str, Any], folder: Path, options: Options) -> list[Figure]:
    """Draws everything but edits.

    Args:
        encoded: what is judged.
        metrics: its measures, as in metrics.json; what was skipped there is not drawn.
        folder: exists; PNG files are written to it.
        options: say the seed, and whether there is a t-SNE map.
    """
    seed, linear, directions = options.seed, metrics["attribute_prediction"], metrics["vectors"]
    return [
        *_reconstructions(encoded, folder),
        *_samples(encoded, folder, seed),
        *_encoding(encoded, metrics["encoding"], folder, seed),
        *_interpolations(encoded, folder, seed),
        *([] if "skipped" in linear else _attribute_accuracy(linear, folder)),
        *([] if "skipped" in directions else _correlation(directions, folder)),
        *([] if "tsne" in options.skip else _map(encoded, folder, seed)),
    ]


def _reconstructions(encoded: EncodedRun, folder: Path) -> list[Figure]:
    shown = slice(0, NUM_RECONSTRUCTIONS)
    grids.save_reconstructions(folder / "reconstructions.png", encoded.images[shown], encoded.reconstructions[shown])
    look_for = (
        "Each test image above its reconstruction from mu: expression, glasses and hair should survive; the background "
        "and fine texture rarely do."
    )
    return [Figure("reconstructions.png", "Reconstructions", look_for)]


def _samples(encoded: EncodedRun, folder: Path, seed: int) -> list[Figure]:
    standard = Figure(
        "samples.png",
        "Generated images, decoded from N(0, I)",
        "Are these faces? Broken ones mean that the encodings leave parts of N(0, I) empty: too little KL weight.",
    )
    fitted = Figure(
        "samples_fitted.png",
        "Generated images, decoded from what fits the encodings",
        "The same decoder on latents spread as the training images' are: where these are much better than those from "
        "N(0, I), the prior is at fault, not the decoder.",
    )
    for figure, latents in (
        (standard, Gaussian.standard(encoded.mu.shape[1]).draw(NUM_SAMPLES, seed)),
        (fitted, next(iter(encoded.priors.values())).draw(NUM_SAMPLES, seed)),
    ):
        rows = np.split(encoded.decode(latents), NUM_SAMPLES // NUM_COLUMNS)
        grids.save_grid(folder / figure.file, figure.title, rows)
    return [standard, fitted]


def _encoding(encoded: EncodedRun, measured: dict[str, Any], folder: Path, seed: int) -> list[Figure]:
    samples = encoding.posterior_samples(encoded.mu, encoded.log_var, seed)
    charts.save_encoding_distribution(folder / "encoding_distribution.png", encoded.mu, samples)
    look_for = (
        "Where z (filled) follows the black curve, samples from N(0, I) land where the decoder was trained; mu (line) "
        "is narrower by the posteriors' own width."
    )
    drawn = [Figure("encoding_distribution.png", "Encoding distribution", look_for)]
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
    strips = [
        np.concatenate([encoded.images[[start]], encoded.decode(line), encoded.images[[end]]])
        for (start, end), line in zip(pairs, points, strict=True)
    ]
    fractions = [f"{fraction:.0%}" for fraction in np.linspace(0, 1, INTERPOLATION_STEPS)]
    title = "Straight lines in the latent space between test images"
    grids.save_grid(folder / "interpolations.png", title, strips, across=["image", *fractions, "image"])
    look_for = (
        "From one face to another in equal steps of mu: every step should be a face, and none should look like two "
        "laid over each other."
    )
    return [Figure("interpolations.png", "Interpolations", look_for)]


def _attribute_accuracy(measured: dict[str, Any], folder: Path) -> list[Figure]:
    title = (
        f"Attributes read off mu by a linear SVM: {measured['accuracy_mean']:.1%} right on "
        f"{measured['images']['test']:,} test images\n(always the majority: {measured['majority_mean']:.1%})"
    )
    charts.save_accuracy_bars(folder / "attribute_accuracy.png", title, measured["accuracy"], measured["majority"])
    look_for = (
        "A bar that ends beyond its mark says that the latents know the attribute; at the mark, they may know nothing "
        "of it."
    )
    return [Figure("attribute_accuracy.png", "Attribute prediction", look_for)]


def _correlation(measured: dict[str, Any], folder: Path) -> list[Figure]:
    file, title, names = "attribute_correlation.png", "Correlation of attribute vectors", measured["attributes"]
    matrix, unit = np.array(measured["matrix"]), "Pearson's correlation"
    charts.save_heat_map(folder / file, title, matrix, rows=names, columns=names, unit=unit, limit=1.0)
    look_for = (
        "Red blocks are attributes that one vector moves together (make-up, lipstick, no beard), blue ones exclude "
        "each other; what correlates here cannot be edited alone without keeping the other."
    )
    return [Figure(file, title, look_for)]


def _map(encoded: EncodedRun, folder: Path, seed: int) -> list[Figure]:
    try:
        places = vectors.tsne(encoded.mu, seed)
    except SkippedError:  # too few images
        return []
    title = f"t-SNE of the posterior means of {len(places):,} test images"
    grids.save_face_map(folder / "tsne.png", title, places, encoded.images[: len(places)])
    look_for = (
        "Each test image beside those with similar latents: neighbours should share what the latents know, such as "
        "pose, background, hair, sex, smile."
    )
    return [Figure("tsne.png", "Map of the latent space", look_for)]
