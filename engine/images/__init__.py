"""Images as they come and go: raw pixels, and files that are brought to the model's frame as in training."""

from engine.images.codec import Codec, EncodedFiles
from engine.images.files import (
    DEFAULT_QUALITY,
    FILE_FORMATS,
    MAX_FILE_PIXELS,
    PixelBudget,
    decode_file,
    encode_file,
    frame_picture,
    open_file,
)

__all__ = [
    "DEFAULT_QUALITY",
    "FILE_FORMATS",
    "MAX_FILE_PIXELS",
    "Codec",
    "EncodedFiles",
    "PixelBudget",
    "decode_file",
    "encode_file",
    "frame_picture",
    "open_file",
]
