"""Image files on their way to a server: as they are, or with their faces aligned first."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm
from tyro.conf import arg

from engine.client.synchronous import Client
from framing import Aligner, FramingError, to_rgb, upright

Read = Callable[[Path], bytes]
Align = Annotated[
    bool,
    arg(
        help="Find the face in each picture and bring its eyes and mouth to where the model expects them, before it is "
        "sent; of several the largest, which is said. Needs pip install 'dfc-vae[align,cpu]'."
    ),
]


def reader(client: Client, align: bool) -> Read:
    """What reads the files to send; several threads may use it.

    Args:
        client: asked which frame its model has, where faces are to be aligned.
        align: whether they are.

    Raises:
        FramingError: The model's frame, or this environment, doesn't allow it.
    """
    if not align:
        return Path.read_bytes
    aligner = Aligner(client.model().frame)

    def read(path: Path) -> bytes:
        try:
            with Image.open(path) as image:
                upright(image)
                aligned = aligner.align(to_rgb(image))
        except UnidentifiedImageError:
            raise FramingError(f"{path} is no image that can be read") from None
        except FramingError as error:
            raise FramingError(f"{path} {error}") from None
        if aligned.faces > 1:
            tqdm.write(f"note: {path} shows {aligned.faces} faces; the largest is taken", file=sys.stderr)
        file = io.BytesIO()
        aligned.image.save(file, "PNG")
        return file.getvalue()

    return read
