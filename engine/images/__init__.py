"""Images as they come and go: raw pixels, and files that are brought to the model's frame as in training."""

from engine.images.files import (
    DEFAULT_QUALITY,
    FILE_FORMATS,
    MAX_FILE_PIXELS,
    Codec,
    EncodedFiles,
    PixelBudget,
    decode_file,
    encode_file,
    from_raw,
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
    "from_raw",
]
