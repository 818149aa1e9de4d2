"""Figures that a person looks at: picture grids, labelled strips, the encoding distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]
"""(N, S, S, 3) uint8 RGB."""


def grid(rows: Sequence[Images], gap: int = 2) -> Images:
    """Lays rows of images out on white: (R rows of N images of side S) to (R*(S+gap)+gap, N*(S+gap)+gap, 3)."""
    count, size = max(len(row) for row in rows), rows[0].shape[1]
    pitch = size + gap
    sheet = np.full((len(rows) * pitch + gap, count * pitch + gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = gap + y * pitch, gap + x * pitch
            sheet[top : top + size, left : left + size] = image
    return sheet


def save_grid(path: Path, rows: Sequence[Images], zoom: int = 2) -> None:
    """Writes a grid as PNG, enlarged `zoom` times."""
    sheet = Image.fromarray(grid(rows))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.BICUBIC).save(path)


def save_reconstructions(path: Path, originals: Images, reconstructions: Images, columns: int = 10) -> None:
    """Writes pairs of rows: originals above, their reconstructions below."""
    rows = []
    for start in range(0, len(originals) - columns + 1, columns):
        rows += [originals[start : start + columns], reconstructions[start : start + columns]]
    save_grid(path, rows or [originals, reconstructions])


def save_strips(path: Path, title: str, columns: Sequence[str], strips: Sequence[Images]) -> None:
    """Writes one strip a face, each column headed by its label (a strength, say).

    Args:
        path: the PNG file.
        title: stands above everything.
        columns: C labels.
        strips: one (C, S, S, 3) array a face.
    """
    cell = 1.1
    size = (cell * len(columns), cell * len(strips) + 0.7)
    figure, axes = plt.subplots(len(strips), len(columns), figsize=size, squeeze=False, layout="constrained")
    for strip, row in zip(strips, axes, strict=True):
        for image, axis in zip(strip, row, strict=True):
            axis.imshow(image, interpolation="bicubic")
            axis.axis("off")
    for label, axis in zip(columns, axes[0], strict=True):
        axis.set_title(label, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_encoding_distribution(path: Path, mu: NDArray[np.float32], latents: NDArray[np.float32]) -> None:
    """Writes histograms of latent dimensions against N(0, 1): the seed's encoding distribution.

    The 20 dimensions whose mu varies most are shown; those are the ones that the model uses.

    Args:
        path: the PNG file.
        mu: (N, D) posterior means.
        latents: (N, D) one sample each of q(z|x), whose mixture over images the KL term pulls towards N(0, 1).
    """
    shown = np.sort(np.argsort(mu.var(0))[::-1][:20])
    figure, axes = plt.subplots(4, 5, figsize=(12, 8), sharex=True, sharey=True)
    x = np.linspace(-4, 4, 200)
    for axis, dimension in zip(axes.flat, shown, strict=False):
        axis.hist(
            latents[:, dimension],
            bins=40,
            range=(-4, 4),
            density=True,
            color="tab:blue",
            alpha=0.6,
            label="z",
        )
        axis.hist(
            mu[:, dimension],
            bins=40,
            range=(-4, 4),
            density=True,
            histtype="step",
            color="tab:orange",
            label="mu",
        )
        axis.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), "k-", lw=1, label="N(0, 1)")
        axis.set_title(f"dimension {dimension}", fontsize=9)
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(f"Encoding distribution of {len(mu)} held-out images")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
