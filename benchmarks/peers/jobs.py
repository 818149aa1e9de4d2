"""The job: one image, one attribute by 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine.bundle import DECODER, ENCODER, Bundle

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """What is asked."""

    image: Bytes  # uint8 [S, S, 3]
    attribute: str  # what is edited by 1
    expected: Bytes  # ONNX Runtime's answer, uint8 [S, S, 3]

    @classmethod
    def of(cls, bundle: Bundle) -> Job:
        """The job for a bundle."""
        size, attribute = bundle.manifest.image_size, bundle.directions.names[0]
        image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        encoder, decoder = (onnxruntime.InferenceSession(bundle.path / name) for name in (ENCODER, DECODER))
        (mu,) = encoder.run(["mu"], {encoder.get_inputs()[0].name: image[None]})
        moved = mu + bundle.directions.move([(attribute, 1.0)]).step
        return cls(image, attribute, np.asarray(decoder.run(None, {decoder.get_inputs()[0].name: moved})[0])[0])
