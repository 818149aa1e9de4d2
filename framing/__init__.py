"""The frame around a face: what models are trained on, and how pictures are brought to it.

Trainer, server and client share this package, so that a picture becomes the same pixels wherever it goes in; it stands
beside them because they must not import each other. It needs NumPy and Pillow, and `Aligner` the extra `align`.
"""

from framing.aligner import Aligner
from framing.frame import CELEBA_LANDMARKS, CELEBA_SOURCE, Frame, FramingError, Landmarks, TooLongError, TooSmallError
from framing.picture import prepare, to_rgb, upright

__all__ = [
    "CELEBA_LANDMARKS",
    "CELEBA_SOURCE",
    "Aligner",
    "Frame",
    "FramingError",
    "Landmarks",
    "TooLongError",
    "TooSmallError",
    "prepare",
    "to_rgb",
    "upright",
]
