"""What is laid out by hand must be what protobuf reads."""

import numpy as np
import pytest

from engine.service.request_parser import latent_batch
from engine.service.response import ImageResponse, StreamResponse
from protos import dfcvae_pb2 as pb


@pytest.mark.parametrize("count", [1, 2, 127, 128, 300])
@pytest.mark.parametrize("side", [1, 8, 64, 160])
def test_pixels_are_the_field_of_the_message(count: int, side: int) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    message = pb.EditResponse(latents=latent_batch(np.ones((count, 5), np.float32)))
    data = ImageResponse(message, pixels).SerializeToString()
    raw = pb.RawImages(count=count, height=side, width=side, data=pixels.tobytes())
    expected = pb.EditResponse(images=pb.ImageBatch(raw=raw), latents=message.latents)
    assert data == expected.SerializeToString()


@pytest.mark.parametrize("number", [0, 1, 2**63])
@pytest.mark.parametrize("pixels", [None, np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)])
def test_a_stream_response_is_its_message(
    number: int, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None
) -> None:
    message = pb.EditResponse(latents=latent_batch(np.ones((2, 5), np.float32)))
    read = pb.EditStreamResponse.FromString(StreamResponse(ImageResponse(message, pixels), number).SerializeToString())
    assert (read.id, read.edited.latents) == (number, message.latents)
    assert read.edited.images.raw.data == (b"" if pixels is None else pixels.tobytes())


def test_a_slice_of_a_batch_is_laid_out_too() -> None:
    batch = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    read = pb.DecodeResponse.FromString(ImageResponse(pb.DecodeResponse(), batch[1:3, ::-1]).SerializeToString())
    assert read.images.raw.data == batch[1:3, ::-1].tobytes()
