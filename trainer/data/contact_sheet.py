"""A contact sheet: some images of a data set in one picture, as the network will see them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from trainer.data.packed import Pack
from trainer.errors import DataError, RunError
from trainer.run_folder import write_atomically

logger = logging.getLogger(__name__)

COLUMNS = 8
IMAGES = COLUMNS**2
_MARK = ("Software", "dfc-vae contact sheet")  # by which a sheet of ours is known, and may be replaced


def write(path: Path, pack: Pack) -> None:
    """Writes a PNG file with up to 64 images of the train split, spread over it evenly, in their order.

    They need not be packed yet. Images that cannot be used are left out and named in the log. A file that is there is
    replaced only if it is such a sheet.

    Raises:
        DataError: none of the images can be used.
        RunError: another file is there, or the place cannot be written to.
    """
    if path.exists() and not _is_sheet(path):
        raise RunError(f"{path} is no contact sheet and would be replaced by one; move it, or choose another --out")
    train = pack.index.rows("train")
    chosen = train[np.unique(np.linspace(0, len(train) - 1, IMAGES).round().astype(int))]
    results = list(pack.decode(chosen))
    images = [result.image for result in results if not isinstance(result, DataError)]
    unusable = [result for result in results if isinstance(result, DataError)]
    if not images:
        raise DataError(f"none of {len(chosen)} training images can be used; the first: {unusable[0]}")
    for fault in unusable:
        logger.warning("not on the contact sheet: %s", fault)
    rows = [np.stack(images[start : start + COLUMNS]) for start in range(0, len(images), COLUMNS)]
    info = PngImagePlugin.PngInfo()
    info.add_text(*_MARK)
    sheet = Image.fromarray(grid(rows, gap=4))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: sheet.save(file, "PNG", pnginfo=info))


def _is_sheet(path: Path) -> bool:
    key, value = _MARK
    try:
        with Image.open(path) as image:
            return image.info.get(key) == value
    except OSError:
        return False


def grid(rows: Sequence[NDArray[np.uint8]], gap: int = 2) -> NDArray[np.uint8]:
    """Lays rows of images out on white: (R rows of N images of side S) to (R*(S+gap)+gap, N*(S+gap)+gap, 3)."""
    from torchvision.utils import make_grid  # noqa: PLC0415  (start-up: seconds)

    images = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)
    sheet: NDArray[np.uint8] = make_grid(images, len(rows[0]), gap, pad_value=255).permute(1, 2, 0).numpy()
    return sheet
