"""Images and latents as parts of messages, written and read without this project's client."""

import io

import numpy as np
from PIL import Image

from engine.arrays import Bytes, Floats
from protos import dfcvae_pb2 as pb


def raw_batch(images: Bytes) -> pb.ImageBatch:
    """Images, uint8 [N, S, S, 3], as pixels in a message."""
    count, height, width, _ = images.shape
    return pb.ImageBatch(raw=pb.RawImages(count=count, height=height, width=width, data=images.tobytes()))


def file_batch(files: list[bytes]) -> pb.ImageBatch:
    """Image files in a message."""
    return pb.ImageBatch(files=pb.EncodedImages(files=files))


def latent_batch(latents: Floats) -> pb.LatentBatch:
    """Latents, float32 [N, D], in a message."""
    return pb.LatentBatch(count=latents.shape[0], dim=latents.shape[1], data=latents.astype("<f4").tobytes())


def floats_of(batch: pb.LatentBatch) -> Floats:
    """Latents of a message, float32 [N, D]."""
    return np.frombuffer(batch.data, "<f4").reshape(batch.count, batch.dim)


def pixels_of(batch: pb.ImageBatch) -> Bytes:
    """Images of a message, uint8 [N, S, S, 3], pixels or files."""
    if batch.WhichOneof("images") == "files":
        return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in batch.files.files])
    raw = batch.raw
    return np.frombuffer(raw.data, np.uint8).reshape(raw.count, raw.height, raw.width, 3)
