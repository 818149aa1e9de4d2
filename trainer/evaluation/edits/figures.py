"""The figures of edits: strips, walks, re-scoring matrices, and what is flipped against what is kept."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trainer.evaluation import charts, grids
from trainer.evaluation.charts import readable
from trainer.evaluation.edits.faces import SIDES, preferred
from trainer.evaluation.encoded_run import EncodedRun, Images
from trainer.evaluation.grids import Figure

UNIT = "strength in lengths of the mean difference"
STRIP_FACES = 8
STRIP_STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
WALKED = ("Smiling", "Eyeglasses", "Male", "Young", "Bangs", "Blond_Hair", "Pale_Skin", "Wearing_Hat")
"""Attributes that are walked along; where a run has none of them, its first ones."""
WALK_STRENGTHS = np.linspace(-2, 2, 9)
KINDS = {
    "mean": ("mean difference", charts.BLUE),
    "adjusted": ("adjusted", charts.ORANGE),
    "svm": ("SVM normal", charts.GREY),
    "served": ("as served", "black"),
}
MATRIX_LIMIT = 2.0  # change in sigmas from which on the matrix shows the strongest colour


def draw(encoded: EncodedRun, measured: dict[str, Any], unsure: list[str], folder: Path) -> list[Figure]:
    """Draws every figure of edits, of what `curves.measure` gave, as PNG files.

    The names of attributes in which the judge is no better than the majority (`unsure`) get an asterisk.
    """
    rescoring = measured["rescoring"]
    return [
        *_strips(encoded, measured["curves"]["attributes"], folder),
        _walks(encoded, folder),
        *([_curves(measured["curves"], folder)] if measured["curves"]["attributes"] else []),
        *([] if "skipped" in rescoring else _matrices(rescoring, measured["strength"], unsure, folder)),
    ]


def _edited(encoded: EncodedRun, rows: list[int], name: str, strengths: Iterable[float]) -> list[Images]:
    """One strip a test face: (strengths, S, S, 3)."""
    return list(np.stack([encoded.edit(encoded.mu[rows], name, strength) for strength in strengths], axis=1))


def _strips(encoded: EncodedRun, names: Iterable[str], folder: Path) -> Iterator[Figure]:
    for name in names:
        has = encoded.labels[:, encoded.attributes.index(name)]
        for side, sign in SIDES.items():
            rows = np.flatnonzero(has != (sign > 0))[:STRIP_FACES].tolist()
            if not rows:
                continue
            strengths = [sign * strength for strength in STRIP_STRENGTHS]
            strips = _edited(encoded, rows, name, strengths)
            strips = [np.concatenate([encoded.images[[row]], strip]) for row, strip in zip(rows, strips, strict=True)]
            labels = ["image", "unedited", *(f"{strength:+.1f}" for strength in strengths[1:])]
            file, title = f"edit_{side}_{name.replace('/', '_')}.png", f"{side.capitalize()} {readable(name)}"
            grids.save_grid(folder / file, f"{title}: {UNIT}", strips, across=labels)
            look_for = "The attribute should change from left to right, and the person should stay who they are."
            yield Figure(file, title, look_for, "edits")


def _walks(encoded: EncodedRun, folder: Path) -> Figure:
    names = preferred(WALKED, encoded.directions.names)
    rows = [_edited(encoded, [0], name, WALK_STRENGTHS)[0] for name in names]
    file, title = "edit_walks.png", "Walks along attribute vectors"
    across = [f"{strength:+.1f}" if strength else "unedited" for strength in WALK_STRENGTHS]
    grids.save_grid(folder / file, f"{title}: {UNIT}", rows, down=[readable(name) for name in names], across=across)
    look_for = "One face, the unedited one in the middle: each row should change in one way only."
    return Figure(file, title, look_for, "edits", names_rows=True)


def _curves(measured: dict[str, Any], folder: Path) -> Figure:
    attributes, share, file = measured["attributes"], measured["kept_share"], "edit_curves.png"
    width, height = 4.2 * len(SIDES), 3.4 * len(attributes) + 0.5
    with charts.canvas(folder / file, width, height, len(attributes), len(SIDES), squeeze=False) as (figure, axes):
        for row, (name, sides) in zip(axes, attributes.items(), strict=True):
            for axis, (side, kinds) in zip(row, sides.items(), strict=True):
                _curve(axis, kinds, measured["served"], share)
                faces = next(iter(kinds.values()))["points"][0]["faces"]
                axis.set_title(f"{side.capitalize()} {readable(name)} ({faces} faces)", loc="left")
        for axis in axes[-1]:
            axis.set_xlabel(UNIT)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(handles) // 2), frameon=False)
    look_for = (
        "Faces that the classifier sees flipped rise with the strength, its other predictions that stay fall: the "
        f"later and the less, the better. The star is the strength that flips most val faces at {share:.0%} kept."
    )
    return Figure(file, "What edits flip, and what they keep", look_for)


def _curve(axis: Axes, kinds: dict[str, Any], served: str, share: float) -> None:
    """One attribute and side: two lines a kind, faces flipped and other predictions kept by strength."""
    axis.axhline(share, color="#bbbbbb", lw=1)
    axis.text(0.02, share, f"{share:.0%}", transform=axis.get_yaxis_transform(), va="bottom", color="#777777")
    for kind, found in kinds.items():
        points = [point for point in found["points"] if point["kept"] is not None]
        strengths = [abs(point["strength"]) for point in points]
        label, color = KINDS[kind]
        label, width = (f"{label}, served", 2.0) if kind == served else (label, 1.2)
        for what, words, style in (("flipped", "faces flipped", "o-"), ("kept", "others kept", "o:")):
            shares = [point[what] for point in points]
            axis.plot(strengths, shares, style, color=color, ms=3, lw=width, label=f"{label}: {words}")
        best = found["best"]
        if kind == served and best:  # the strength that was chosen on val faces
            axis.plot([abs(best["strength"])], [best["flipped"]], "*", color=color, ms=12, mec="white", zorder=3)
    axis.set(ylim=(-0.03, 1.05))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


MATRICES = {
    "plain": (
        "What edits change",
        "The diagonal is what was asked for; everything else is a side effect, or part of the same thing (cheeks rise "
        "in a smile).",
    ),
    "keep": (
        "What edits change, the worst side effects projected out",
        "The same when the attributes that each plain edit moves most are kept: the rest should fade, and the diagonal "
        "stay, less what the edit shares with them.",
    ),
}
"""Title and what to look for, by mode."""


def _matrices(measured: dict[str, Any], strength: float, unsure: list[str], folder: Path) -> Iterator[Figure]:
    rows, columns = (
        [f"{name} *" if name in unsure else name for name in measured[names]] for names in ("edited", "judged")
    )
    note = "\n* the classifier is no better than the majority" if unsure else ""
    empty = ", ".join(map(readable, measured["nothing_left"]))
    nothing = f" Rows without colour: with the others kept, nothing is left of {empty}."
    for mode, (title, look_for) in MATRICES.items():
        found, file = measured[mode], f"edit_matrix_{mode}.png"
        if found["target"] is None:
            continue
        charts.save_heat_map(
            folder / file,
            f"{title}, strength {strength:g}: {found['target']:.2f} sigma on the diagonal, {found['others']:.2f} off "
            f"it{note}",
            np.array(found["matrix"]),
            rows=rows,
            columns=columns,
            unit="change of the logit, sigmas",
            limit=MATRIX_LIMIT,
            across="what the classifier sees",
            down="what is edited",
        )
        yield Figure(file, title, look_for + nothing if mode == "keep" and empty else look_for)
