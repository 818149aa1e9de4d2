"""Charts that a person looks at: the encoding distribution, KL and accuracy bars, heat maps, curves."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

NUM_HISTOGRAMS = 20
DPI = 110
CHARACTERS_AN_INCH = 11  # of a title
BLUE, ORANGE, GREY = "#3b6ea5", "#d9822b", "#8a8f98"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "figure.dpi": DPI,
    "text.parse_math": False,  # a dollar in an attribute's name is a dollar
}


def readable(name: str) -> str:
    """An attribute's name as a person writes it: CelebA's have underscores for spaces."""
    return name.replace("_", " ")


@contextmanager
def canvas(
    path: Path, width: float, height: float, rows: int = 1, columns: int = 1, *, trim: bool = False, **kwargs: Any
) -> Iterator[Any]:
    """A figure of `width` x `height` inches and its axes, written to `path` (PNG) and closed at the end.

    `trim` fits the picture to what was drawn, whatever its size, and takes twice as long; `kwargs` are for
    `matplotlib.pyplot.subplots`.
    """
    with plt.rc_context(_STYLE):
        kwargs.setdefault("layout", "constrained")
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), **kwargs)
        try:
            yield figure, axes
            figure.savefig(path, bbox_inches="tight" if trim else None, pad_inches=0.08)
        finally:
            plt.close(figure)


def save_encoding_distribution(path: Path, mu: NDArray[np.float32], latents: NDArray[np.float32]) -> None:
    """Writes histograms of latent dimensions against N(0, 1): the seed's encoding distribution.

    The 20 dimensions whose mu (N, D) varies most are shown; those are the ones that the model uses. `latents` (N, D)
    are one sample each of q(z|x), whose mixture over images the KL term pulls towards N(0, 1).
    """
    shown = np.sort(np.argsort(mu.var(0))[::-1][:NUM_HISTOGRAMS])
    x = np.linspace(-5, 5, 200)
    options: dict[str, Any] = {"bins": 40, "range": (-5, 5), "density": True}
    title = (
        f"Encoding distribution of {len(mu):,} held-out images: the {len(shown)} most used of {mu.shape[1]} dimensions"
    )
    with canvas(path, 12, 8, 4, 5, sharex=True, sharey=True, layout="none") as (figure, axes):
        for axis, dimension in zip(axes.flat, shown, strict=False):
            axis.hist(latents[:, dimension], histtype="stepfilled", color=BLUE, alpha=0.55, label="z", **options)
            axis.hist(mu[:, dimension], histtype="step", color=ORANGE, lw=1.3, label="mu", **options)
            axis.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), "k-", lw=1, label="N(0, 1)")
            axis.set_title(f"dimension {dimension}", fontsize=9)
            axis.set_yticks([])
        for axis in axes.flat[len(shown) :]:
            axis.axis("off")
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="upper right", ncols=3, frameon=False)
        figure.suptitle(title, x=0.01, ha="left")
        figure.supxlabel("value", fontsize=8)
        figure.supylabel("density", fontsize=8)
        figure.subplots_adjust(left=0.03, right=0.99, bottom=0.06, top=0.92, wspace=0.04, hspace=0.22)


def save_kl_bars(path: Path, kl: Sequence[float], active: int) -> None:
    """Writes the KL of each dimension (D,), in nats, the largest first; `active` of them are active units."""
    values = np.sort(np.asarray(kl))[::-1]
    with canvas(path, 10, 3.2) as (_, axis):
        axis.bar(np.arange(len(values)), values, width=0.85 if len(values) < 200 else 1.0, color=BLUE)
        axis.set(xlabel="dimension, the most informative first", ylabel="KL, nats an image", xlim=(-1, len(values)))
        axis.set_title(
            f"KL per latent dimension: {values.sum():.1f} nats in all, {active} of {len(values)} dimensions active",
            loc="left",
        )


def save_heat_map(
    path: Path,
    title: str,
    values: NDArray[np.floating[Any]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    unit: str,
    limit: float,
    across: str = "",
    down: str = "",
) -> None:
    """Writes a matrix (R, C) as colours, blue below zero and red above, with R and C names at its sides.

    `limit` is the absolute value of the strongest colour; `across` and `down` say what columns and rows are.
    """
    width, height = (max(3.5, 0.215 * len(names)) for names in (columns, rows))
    with canvas(path, width + 3.0, height + 2.3, trim=True) as (figure, axis):
        image = axis.pcolormesh(values, cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolors="white", lw=0.6)
        axis.set_xticks(np.arange(len(columns)) + 0.5, [readable(name) for name in columns], rotation=90, fontsize=8)
        axis.set_yticks(np.arange(len(rows)) + 0.5, [readable(name) for name in rows], fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel=across, ylabel=down, aspect="equal", ylim=(len(rows), 0))
        lines = [textwrap.fill(line, int(CHARACTERS_AN_INCH * width)) for line in title.splitlines()]
        axis.set_title("\n".join(lines), loc="left", pad=8)
        figure.colorbar(image, ax=axis, label=unit, shrink=min(1.0, 4 / height), pad=0.02, aspect=25)


def save_accuracy_bars(path: Path, title: str, accuracy: Mapping[str, float], majority: Mapping[str, float]) -> None:
    """Writes one bar an attribute, the best first, with a mark where always predicting the majority would end."""
    names = sorted(accuracy, key=lambda name: accuracy[name])
    places = np.arange(len(names))
    floor = min(0.5, *accuracy.values(), *majority.values())
    with canvas(path, 7.5, 1.4 + 0.2 * len(names)) as (_, axis):
        axis.barh(places, [accuracy[name] - floor for name in names], left=floor, height=0.7, color=BLUE)
        axis.plot(
            [majority[name] for name in names], places, "|", color=ORANGE, ms=9, mew=2.2, label="always the majority"
        )
        for place, name in zip(places, names, strict=True):
            axis.text(1.003, float(place), f"{accuracy[name]:.1%}", va="center", fontsize=8)
        axis.set_yticks(places, [readable(name) for name in names])
        axis.set(xlim=(floor, 1.0), ylim=(-0.7, len(names) - 0.3))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.tick_params(axis="y", length=0)
        axis.set_title(title, loc="left")
        axis.legend(loc="lower right", framealpha=0.9)


Points = Sequence[tuple[int, float]]  # steps and values


def save_training_curves(path: Path, losses: Points, validation: Points, psnr: Points) -> None:
    """Writes the loss of training and of validation, and the PSNR of validation in dB, by step."""
    losses_xy, validation_xy, psnr_xy = (np.reshape(points, (-1, 2)).T for points in (losses, validation, psnr))
    with canvas(path, 10, 3.2, 1, 2) as (_, (left, right)):
        left.plot(*losses_xy, color=BLUE, lw=1.2, label="training")
        left.plot(*validation_xy, "o-", color=ORANGE, ms=3.5, label="validation, at mu, without the attribute term")
        left.set(xlabel="step", ylabel="loss", yscale="log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")  # by default they are formulas, which `_STYLE` leaves unparsed
        left.yaxis.set_minor_formatter("")
        left.set_title("Loss", loc="left")
        left.legend(frameon=False)
        right.plot(*psnr_xy, "o-", color=ORANGE, ms=3.5)
        right.set(xlabel="step", ylabel="PSNR of val images, dB")
        right.set_title("Reconstruction", loc="left")
