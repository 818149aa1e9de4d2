"""The figures of a run's report: those of the seed document and the paper. Those of edits are in `edits.figures`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InvalidRequest
from engine.latents import FITTED, MIXTURE, Conditions, Gaussian, can_condition, linear, spherical
from trainer.evaluation import charts, grids, latent_space
from trainer.evaluation.charts import readable
from trainer.evaluation.edits.curves import JUDGED_ATTRIBUTES
from trainer.evaluation.edits.faces import preferred
from trainer.evaluation.encoded_run import EncodedRun, Floats, Images
from trainer.evaluation.grids import Figure
from trainer.evaluation.options import Options
from trainer.evaluation.skipped import SkippedError

NUM_RECONSTRUCTIONS, NUM_SAMPLES = 30, 60
NUM_INTERPOLATIONS, INTERPOLATION_STEPS, NUM_ARCS = 8, 11, 4


def draw(encoded: EncodedRun, metrics: dict[str, Any], folder: Path, options: Options) -> list[Figure]:
    """Draws everything but edits as PNG files; what was skipped in `metrics` (metrics.json) is not drawn."""
    seed, predicted, correlated = options.seed, metrics["attribute_prediction"], metrics["vectors"]
    return [
        *_reconstructions(encoded, folder),
        *_samples(encoded, folder, seed),
        *_conditions(encoded, folder, seed),
        *_encoding(encoded, metrics["encoding"], folder, seed),
        *_interpolations(encoded, folder, seed),
        *([] if "skipped" in predicted else _attribute_accuracy(predicted, folder)),
        *([] if "skipped" in correlated else _correlation(correlated, folder)),
        *([] if "tsne" in options.skip else _map(encoded, folder, seed)),
    ]


def training_curves(log: Path, folder: Path) -> list[Figure]:
    """Draws the loss and the PSNR of validation by step, from a run's metrics.jsonl; nothing where it has neither."""
    records: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):  # there is none, or an interruption tore its last line
        records += map(json.loads, log.read_text().splitlines())

    losses = [(record["step"], record["loss"]["total"]) for record in records if "loss" in record]
    validation, psnr = (
        [(record["step"], record[name]) for record in records if name in record] for name in ("val_loss", "val_psnr")
    )
    if not losses and not psnr:
        return []
    charts.save_training_curves(folder / "training_curves.png", losses, validation, psnr)
    look_for = (
        "The loss should fall and the PSNR rise until both are flat: where they still move at the end, longer training "
        "helps; where validation turns back, it has been too long."
    )
    return [Figure("training_curves.png", "Training", look_for)]


def _reconstructions(encoded: EncodedRun, folder: Path) -> Iterator[Figure]:
    shown = slice(0, NUM_RECONSTRUCTIONS)
    grids.save_reconstructions(folder / "reconstructions.png", encoded.images[shown], encoded.reconstructions[shown])
    look_for = (
        "Each test image above its reconstruction from mu: expression, glasses and hair should survive; the background "
        "and fine texture rarely do."
    )
    yield Figure("reconstructions.png", "Reconstructions", look_for)


def _samples(encoded: EncodedRun, folder: Path, seed: int) -> Iterator[Figure]:
    for name, prior in {**encoded.priors, STANDARD: Gaussian.standard(encoded.mu.shape[1])}.items():
        origin, look_for = SAMPLES[name]
        figure = Figure(f"samples_{name}.png", f"New faces drawn from {origin}", look_for, "faces")
        rows = np.split(encoded.decode(prior.draw(NUM_SAMPLES, seed)), NUM_SAMPLES // grids.COLUMNS)
        grids.save_grid(folder / figure.file, figure.title, rows)
        yield figure


STANDARD = "standard"
SAMPLES = {
    MIXTURE: (
        "the mixture of Gaussians that fits the encodings",
        "What the server draws unless told otherwise. Are these faces, and of as many kinds as the data?",
    ),
    FITTED: (
        "the Gaussian that fits the encodings",
        "The same decoder, on latents that are spread as the training images' are on the whole.",
    ),
    STANDARD: (
        "N(0, I)",
        "The prior of the training. Where these are much worse than those that are drawn from what fits the encodings, "
        "the encodings leave parts of N(0, I) empty: too little KL weight.",
    ),
}
"""What is drawn from, and what to look for, by name."""


def _conditions(encoded: EncodedRun, folder: Path, seed: int) -> Iterator[Figure]:
    directions = encoded.directions
    names = preferred(JUDGED_ATTRIBUTES, [name for name in directions.names if can_condition(directions, name)])
    if not names:
        return
    latents = next(iter(encoded.priors.values())).draw(grids.COLUMNS, seed)
    rows, labels = [encoded.decode(latents)], ["as drawn"]
    conditional: list[tuple[list[str], list[str]]] = (
        [([name], []) for name in names] + [([], [name]) for name in names] + [(names, [])] * (len(names) > 1)
    )
    for having, lacking in conditional:
        try:
            projected = Conditions.of(directions, having, lacking).project(latents)
        except InvalidRequest:  # they contradict each other
            continue
        rows.append(encoded.decode(projected))
        words = [f"with {readable(name)}" for name in having] + [f"no {readable(name)}" for name in lacking]
        labels.append("\n".join(words))
    grids.save_grid(folder / "conditions.png", "New faces that meet conditions", rows, down=labels)
    look_for = (
        "The same ten draws in each row: all should have, or lack, what is named beside it, and those that did so as "
        "drawn stay as they were."
    )
    yield Figure("conditions.png", "Conditions", look_for, "faces", names_rows=True)


def _encoding(encoded: EncodedRun, measured: dict[str, Any], folder: Path, seed: int) -> Iterator[Figure]:
    samples = latent_space.posterior_samples(encoded.mu, encoded.log_var, seed)
    charts.save_encoding_distribution(folder / "encoding_distribution.png", encoded.mu, samples)
    look_for = (
        "Where z (filled) follows the black curve, samples from N(0, I) land where the decoder was trained; mu (line) "
        "is narrower by the posteriors' own width."
    )
    yield Figure("encoding_distribution.png", "Encoding distribution", look_for)
    kl = measured["per_dimension"]["kl_nats"]
    if kl is not None:
        charts.save_kl_bars(folder / "kl_per_dimension.png", kl, measured["active_units"])
        look_for = "Dimensions of no height carry nothing: the model has switched them off."
        yield Figure("kl_per_dimension.png", "KL per dimension", look_for)


def _interpolations(encoded: EncodedRun, folder: Path, seed: int) -> Iterator[Figure]:
    if len(encoded.mu) < 2:
        return
    pairs = latent_space.pairs(len(encoded.mu), NUM_INTERPOLATIONS, seed)
    start, end = encoded.mu[pairs[:, 0]], encoded.mu[pairs[:, 1]]

    def strips(latents: Floats) -> list[Images]:
        """Images on the way between the faces of a pair, with those of the faces at the ends: one strip a pair."""
        ways = np.split(encoded.decode(latents), len(latents) // INTERPOLATION_STEPS)
        ends = encoded.images[pairs][: len(ways), :, None]
        return [np.concatenate([first, way, last]) for (first, last), way in zip(ends, ways, strict=True)]

    lines = strips(linear(start, end, INTERPOLATION_STEPS))
    mean = encoded.priors[FITTED].mean
    arcs = strips(spherical(start[:NUM_ARCS], end[:NUM_ARCS], INTERPOLATION_STEPS, mean))
    across = ["image", *(f"{fraction:.0%}" for fraction in np.linspace(0, 1, INTERPOLATION_STEPS)), "image"]
    title = "Straight lines in the latent space between test images"
    grids.save_grid(folder / "interpolations.png", title, lines, across=across)
    both = [strip for pair in zip(lines, arcs, strict=False) for strip in pair]
    title, down = "Lines, and arcs around the mean of the encodings", ("line", "arc") * len(arcs)
    grids.save_grid(folder / "interpolations_along_the_prior.png", title, both, across=across, down=down)
    look_for = (
        "From one face to another in equal steps of mu: every step should be a face, and none should look like two "
        "laid over each other."
    )
    yield Figure("interpolations.png", "Interpolations", look_for)
    look_for = (
        "Half-way, a straight line is nearer to the mean of all faces than faces are, and its pictures are paler; an "
        "arc stays as far from it as its ends, and should keep the contrast."
    )
    yield Figure("interpolations_along_the_prior.png", "Interpolations along the prior", look_for)


def _attribute_accuracy(measured: dict[str, Any], folder: Path) -> Iterator[Figure]:
    title = (
        f"Attributes read off mu by a linear SVM: {measured['accuracy_mean']:.1%} right on "
        f"{measured['images']['test']:,} test images\n(always the majority: {measured['majority_mean']:.1%})"
    )
    charts.save_accuracy_bars(folder / "attribute_accuracy.png", title, measured["accuracy"], measured["majority"])
    look_for = (
        "A bar that ends beyond its mark says that the latents know the attribute; at the mark, they may know nothing "
        "of it."
    )
    yield Figure("attribute_accuracy.png", "Attribute prediction", look_for)


def _correlation(measured: dict[str, Any], folder: Path) -> Iterator[Figure]:
    file, title, names = "attribute_correlation.png", "Correlation of attribute vectors", measured["attributes"]
    matrix, unit = np.array(measured["matrix"]), "Pearson's correlation"
    charts.save_heat_map(folder / file, title, matrix, rows=names, columns=names, unit=unit, limit=1.0)
    look_for = (
        "Red blocks are attributes that one vector moves together (make-up, lipstick, no beard), blue ones exclude "
        "each other; what correlates here cannot be edited alone without keeping the other."
    )
    yield Figure(file, title, look_for)


def _map(encoded: EncodedRun, folder: Path, seed: int) -> Iterator[Figure]:
    try:
        places = latent_space.tsne(encoded.mu, seed)
    except SkippedError:  # too few images
        return
    title = f"t-SNE of the posterior means of {len(places):,} test images"
    grids.save_face_map(folder / "tsne.png", title, places, encoded.images[: len(places)])
    look_for = (
        "Each test image beside those with similar latents: neighbours should share what the latents know, such as "
        "pose, background, hair, sex, smile."
    )
    yield Figure("tsne.png", "Map of the latent space", look_for)
