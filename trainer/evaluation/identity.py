"""Whether a face stays the same person: cosine similarity of a face recognition network's descriptors.

The network is given by the user as an ONNX file, and told apart by the shape of its input. Two layouts are known; both
take float32 RGB, (N, 3, side, side), levels 0 to 255, and hold whatever scaling they need themselves:

dlib       150x150 in, 128 out: dlib's face recognition ResNet (`dlib_face_recognition_resnet_model_v1`), converted, its
           subtraction of the mean colour and its division by 256 as first layers.
SFace      112x112 in, 128 out: OpenCV Zoo's `face_recognition_sface`, as it is; ArcFace's alignment.

Each was trained on faces cut out in a way of its own. Images are taken to be framed as CelebA's are after the trainer's
crop (its aligned pictures, the middle 148 pixels), from which the same piece is cut for all.

Shapes: N images, S image side.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.artifacts.encode import batches
from trainer.errors import ConfigError
from trainer.evaluation.encoded_run import Floats, Images
from trainer.evaluation.skipped import SkippedError

BATCH_IMAGES = 32


class Layout(NamedTuple):
    """How a network wants its faces: the side of its input, and the piece of the image that it sees.

    That is given as fractions of the image's side; beyond the edge the outermost pixels go on.
    """

    name: str
    side: int
    left: float
    top: float
    right: float
    bottom: float


# Where CelebA's eyes lie, (70.1, 112.4) and (108.6, 111.5) of 178x218, brought to where each network has its own.
LAYOUTS = (
    Layout("dlib's face recognition ResNet", 150, 0.137, 0.287, 0.878, 1.029),
    Layout("SFace", 112, 0.090, 0.139, 0.917, 0.966),
)


class Recogniser:
    """A face recognition network: a session of ONNX Runtime, and the layout of its input."""

    def __init__(self, session: Any, layout: Layout) -> None:
        self._session, self.layout = session, layout
        (described,) = session.get_inputs()
        self._name, count = described.name, described.shape[0]
        self._batch = count if isinstance(count, int) else BATCH_IMAGES

    def describe(self, images: Images) -> Floats:
        """Descriptors (N, 128) of length 1 of images (N, S, S, 3)."""
        parts = []
        for some in batches(len(images), "recognising faces", self._batch):
            chips = self._chips(images[some])
            filled = np.zeros((self._batch, *chips.shape[1:]), np.float32)  # as some networks take one size of batch
            filled[: len(chips)] = chips
            parts.append(self._session.run(None, {self._name: filled})[0][: len(chips)])
        descriptors = np.concatenate(parts).reshape(len(images), -1).astype(np.float32)
        unit: Floats = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)
        return unit

    def _chips(self, images: Images) -> Floats:
        """The piece that the network sees, at its size: (N, 3, side, side)."""
        _, side, left, top, right, bottom = self.layout
        whole = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
        theta = torch.tensor([[[right - left, 0.0, left + right - 1], [0.0, bottom - top, top + bottom - 1]]])
        places = F.affine_grid(theta.expand(len(images), -1, -1), [len(images), 3, side, side], align_corners=False)
        return F.grid_sample(whole, places, padding_mode="border", align_corners=False).numpy()


def recogniser(weights: Path | None) -> tuple[Recogniser, str, Path]:
    """The network of a file, a description of it, and the file.

    Raises:
        SkippedError: no file is given, or ONNX Runtime is not installed.
        ConfigError: the file is missing, or is no network of a known layout.
    """
    if weights is None:
        raise SkippedError(
            "needs a face recognition network; give dlib's or SFace's as an ONNX file with --identity-weights"
        )
    if not weights.is_file():
        raise ConfigError(f"--identity-weights {weights}: no such file")
    try:
        import onnxruntime  # noqa: PLC0415  (an extra of its own)
    except ImportError:
        raise SkippedError('needs ONNX Runtime; pip install "dfc-vae[cpu]"') from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ConfigError(f"--identity-weights {weights}: not a network that ONNX Runtime reads ({error})") from error
    shapes = [tuple(described.shape) for described in session.get_inputs()]
    outputs = [tuple(described.shape) for described in session.get_outputs()]
    for layout in LAYOUTS:
        if len(shapes) == 1 and shapes[0][1:] == (3, layout.side, layout.side) and outputs[0][1:] == (128,):
            return Recogniser(session, layout), f"{layout.name}, {weights.name}", weights
    raise ConfigError(
        f"--identity-weights {weights}: takes {shapes} and gives {outputs}; give a network in dlib's layout, "
        "(N, 3, 150, 150) to (N, 128), or SFace's, (N, 3, 112, 112) to (N, 128)"
    )


def similarity(network: Recogniser, some: Images, others: Images) -> NDArray[np.float32]:
    """Cosine similarity of the descriptors of each pair of images: (N,)."""
    pairs: NDArray[np.float32] = (network.describe(some) * network.describe(others)).sum(1)
    return pairs
