"""Pictures that a person looks at: grids of faces with labels, a map of faces. Charts are in `charts`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.contact_sheet import grid
from trainer.evaluation.charts import DPI, canvas

Images = NDArray[np.uint8]  # (N, S, S, 3) uint8 RGB
COLUMNS = 10
CELL = 110  # pixels across a face in a grid's drawing
TITLE_SIZE, LABEL_SIZE = 14, 12
"""Points, so large that a drawing that is a phone's width across can still be read."""


@dataclass(frozen=True)
class Figure:
    """A figure in a run's report."""

    file: str  # its name in the run's figures folder
    title: str  # a few words
    look_for: str  # one sentence: what to look for
    section: Literal["edits", "faces", "figures"] = "figures"  # of the report that it stands in
    names_rows: bool = False  # in words beside them, too small at the width of a phone


def save_grid(
    path: Path, title: str, rows: Sequence[Images], *, down: Sequence[str] = (), across: Sequence[str] = ()
) -> None:
    """Writes rows of images as PNG, with labels `down` the rows and `across` the columns, or none."""
    sheet = grid(rows)
    zoom = CELL / rows[0].shape[1]
    width, height = (zoom * pixels / DPI for pixels in (sheet.shape[1], sheet.shape[0]))
    with canvas(path, width + (1.5 if down else 0.1), height + (0.75 if across else 0.45), trim=True) as (_, axis):
        axis.imshow(sheet, interpolation="bicubic")
        pitch = sheet.shape[0] / len(rows)
        axis.set_yticks([pitch * (row + 0.5) for row in range(len(down))], down, fontsize=LABEL_SIZE)
        axis.set_xticks([pitch * (column + 0.5) for column in range(len(across))], across, fontsize=LABEL_SIZE)
        axis.tick_params(length=0, pad=2, labeltop=True, labelbottom=False)
        axis.spines[:].set_visible(False)
        axis.set_title(title, loc="left", fontsize=TITLE_SIZE)


def save_reconstructions(path: Path, originals: Images, reconstructions: Images) -> None:
    """Writes pairs of rows of `COLUMNS` at most: originals above, their reconstructions below."""
    starts = range(0, max(1, len(originals) - COLUMNS + 1), COLUMNS)
    rows = [images[start : start + COLUMNS] for start in starts for images in (originals, reconstructions)]
    labels = ("original", "reconstruction") * (len(rows) // 2)
    save_grid(path, "Held-out images and their reconstructions", rows, down=labels)


def face_map(places: NDArray[np.float32], images: Images, cells: int, thumbnail: int) -> Images:
    """Draws N faces at their places (N, 2) on a plane, of any scale: (cells * thumbnail, cells * thumbnail, 3) uint8.

    The plane is laid out in `cells` squares across and down, `thumbnail` pixels wide; a face (N, S, S, 3) goes to the
    free one that is nearest to its place, so that none covers another. It is white where there is no face.
    """
    low, high = places.min(0), places.max(0)
    wanted = (places - low) / np.maximum(high - low, 1e-12) * (cells - 1)  # (N, 2): column, row
    free = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), axis=-1).reshape(-1, 2)
    sheet = Image.new("RGB", (cells * thumbnail, cells * thumbnail), "white")
    for place, image in zip(wanted, images, strict=True):
        nearest = int(np.square(free - place).sum(1).argmin())
        left, top = (free[nearest] * thumbnail).tolist()
        sheet.paste(Image.fromarray(image).resize((thumbnail, thumbnail), Image.Resampling.BICUBIC), (left, top))
        free = np.delete(free, nearest, axis=0)
    return np.asarray(sheet)


def save_face_map(path: Path, title: str, places: NDArray[np.float32], images: Images) -> None:
    """Writes a `face_map` as PNG."""
    cells = max(8, min(50, int(np.ceil(np.sqrt(1.5 * len(places))))))
    sheet = face_map(places, images, cells, 1800 // cells)
    with canvas(path, 1800 / DPI, 1800 / DPI + 0.6) as (_, axis):
        axis.imshow(sheet, interpolation="none")
        axis.axis("off")
        axis.set_title(title, loc="left", fontsize=2 * TITLE_SIZE)
