"""Finds the face in a picture and brings it to the frame by a similarity transform."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framing.centerface import CenterFace
from framing.frame import Frame, FramingError

MIN_SHARE = 0.5
"""Pixels that a face needs, of the pixels that the model gives it, along one side; below, enlarging would invent it."""


class Aligned(NamedTuple):
    """A picture in the frame."""

    image: Image.Image  # RGB, of the frame's source size; or the picture as it was, if it was framed already
    faces: int  # how many faces were found; the largest is the one in the frame. 0: none was looked for


class Aligner:
    """Aligns faces with a frame; several threads may use one.

    Raises:
        FramingError: the frame has no landmarks, or a package of the extra `align` is missing.
    """

    def __init__(self, frame: Frame) -> None:
        if frame.landmarks is None or frame.source is None or frame.crop is None:
            raise FramingError(
                "--align: where eyes and mouth lie in this model's pictures is not known; it takes a model that was "
                "trained with a crop out of CelebA's 178x218 pixels"
            )
        self._frame, self._source, self._crop = frame, frame.source, frame.crop
        self._targets = _complex(np.array(frame.landmarks))
        self._detector = CenterFace()

    def align(self, image: Image.Image) -> Aligned:
        """Brings the largest face of a picture, RGB, upright and of any size, to the frame.

        A picture that is framed already is left as it is. What lies beyond the picture's edge repeats the edge.

        Raises:
            FramingError: no face is found, or it is too small.
        """
        if self._frame.is_framed(*image.size):
            return Aligned(image, 0)
        found = self._detector.find(image)
        if not len(found):
            raise FramingError("shows no face that can be found; cut the face out, or leave the picture out")
        move = self._fit(found[0])
        side, needed = self._crop / abs(move[0]), MIN_SHARE * min(self._frame.size, self._crop)
        if side < needed:
            raise FramingError(
                f"shows a face that is too small: its frame is {side:.0f} pixels wide, at least {needed:.0f} are needed"
            )
        aligned = self._warp(image, *move)
        # Once more, at the scale at which the frame's landmarks were measured; there the detector is most exact.
        again = self._detector.find(aligned)
        if len(again):
            factor, shift = self._fit(again[0])
            aligned = self._warp(image, factor * move[0], factor * move[1] + shift)
        return Aligned(aligned, len(found))

    def _fit(self, landmarks: NDArray[np.float32]) -> tuple[complex, complex]:
        """The similarity transform, z -> factor * z + shift, that is closest to the frame's landmarks.

        With points as complex numbers that is a linear least squares problem of one unknown, around the means.
        """
        points = _complex(landmarks)
        centred, wanted = points - points.mean(), self._targets - self._targets.mean()
        factor = complex(np.vdot(centred, wanted) / np.vdot(centred, centred))
        return factor, complex(self._targets.mean() - factor * points.mean())

    def _warp(self, image: Image.Image, factor: complex, shift: complex) -> Image.Image:
        reduction = max(1, int(1 / abs(factor)))
        if reduction > 1:  # the warp itself doesn't average over pixels
            image = image.reduce(reduction)
            factor *= reduction
        width, height = self._source
        corners = (np.array([0, width, 1j * height, width + 1j * height]) - shift) / factor
        left, top = (max(0, int(-part.min()) + 2) for part in (corners.real, corners.imag))
        right = max(0, int(corners.real.max() - image.width) + 2)
        bottom = max(0, int(corners.imag.max() - image.height) + 2)
        padded = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), "edge")
        inverse, origin = 1 / factor, -shift / factor + complex(left, top)
        matrix = (inverse.real, -inverse.imag, origin.real, inverse.imag, inverse.real, origin.imag)
        return Image.fromarray(padded).transform(self._source, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _complex(points: NDArray[np.floating]) -> NDArray[np.complex128]:
    return points[:, 0] + 1j * points[:, 1].astype(np.float64)
