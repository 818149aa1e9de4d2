"""Every bad request gets its status and a message that helps, and the server goes on serving."""

from typing import Any

import grpc
import numpy as np
import pytest
from batches import file_batch
from fuzzing.files import file_of
from PIL import Image
from servers import ServerProcess
from tiny_model import IMAGE_SIZE, LATENT_DIM, latents_of, random_images

from engine.client import Client
from engine.config import ServerConfig
from protos import dfcvae_pb2 as pb

IMAGE_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3


def raw(count: int = 1, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE, size: int | None = None) -> pb.ImageBatch:
    data = bytes(count * height * width * 3 if size is None else size)
    return pb.ImageBatch(raw=pb.RawImages(count=count, height=height, width=width, data=data))


def picture(file_format: str, side: int = 20) -> bytes:
    return file_of(Image.new("RGB", (side, side), "red"), file_format)


def latents(value: float = 0.0, count: int = 1, dim: int = LATENT_DIM, size: int | None = None) -> pb.LatentBatch:
    data = np.full(count * dim, value, "<f4").tobytes()
    return pb.LatentBatch(count=count, dim=dim, data=data if size is None else data[:size])


def edit(*edits: pb.Edit, **fields: Any) -> pb.EditRequest:
    return pb.EditRequest(**{"latents": latents(), "edits": edits, **fields})


SMILE = pb.Edit(attribute="Smiling", strength=1)
NAN, INFINITE = float("nan"), float("inf")
JPEG, PNG = pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_PNG
UNKNOWN: Any = 9  # a value of some later version

CASES = {
    "no images": (pb.EncodeRequest(), "has no images; set images.raw or images.files"),
    "empty batch": (pb.EncodeRequest(images=pb.ImageBatch()), "has no images"),
    "zero raw images": (pb.EncodeRequest(images=raw(0)), "images.raw.count: 0 images or latents; send at least one"),
    "zero files": (pb.EncodeRequest(images=file_batch([])), "images.files is empty"),
    "wrong height": (pb.EncodeRequest(images=raw(height=9)), "must be 8x8 for this model, not 9x8"),
    "wrong size": (pb.EncodeRequest(images=raw(height=64, width=64)), "must be 8x8 for this model, not 64x64"),
    "truncated pixels": (pb.EncodeRequest(images=raw(2, size=383)), "has 383 bytes; 2 images of 8x8 RGB are 384"),
    "too many pixels": (pb.EncodeRequest(images=raw(2, size=385)), "has 385 bytes"),
    "huge count": (pb.EncodeRequest(images=raw(2**32 - 1, size=0)), "a request may send at most 1024: send several"),
    "too many images": (pb.EncodeRequest(images=raw(1025)), ": 1025 images or latents; a request may send at most"),
    "too many files": (
        pb.EncodeRequest(images=file_batch([b""] * 1025)),
        ": 1025 images or latents; a request may send at most",
    ),
    "unknown file format": (
        pb.EncodeRequest(images=file_batch([picture("PNG"), picture("GIF")])),
        "images.files[1] is a GIF file, not a JPEG, PNG or WebP",
    ),
    "garbage file": (pb.EncodeRequest(images=file_batch([b"garbage"])), "images.files[0] is not a JPEG, PNG or WebP"),
    "empty file": (pb.EncodeRequest(images=file_batch([b""])), "is empty; send a picture"),
    "truncated file": (
        pb.EncodeRequest(images=file_batch([picture("PNG")[:60]])),
        "images.files[0] is damaged or truncated",
    ),
    "small file": (
        pb.EncodeRequest(images=file_batch([picture("PNG", 11)])),
        "11x11 pixels, smaller than the crop of 12",
    ),
    "no latents": (pb.DecodeRequest(), "latents.count: 0 images or latents; send at least one"),
    "wrong latent dim": (
        pb.DecodeRequest(latents=latents(dim=128)),
        "latents.dim is 128; this model's latents have 192",
    ),
    "truncated latents": (pb.DecodeRequest(latents=latents(size=767)), "latents.data has 767 bytes"),
    "too many latents": (
        pb.DecodeRequest(latents=latents(count=1025)),
        "a request may send at most 1024: send several",
    ),
    "NaN latents": (
        pb.DecodeRequest(latents=latents(NAN)),
        "latents.data: latent 0 has values that are NaN or infinite",
    ),
    "infinite latents": (pb.DecodeRequest(latents=latents(-INFINITE)), "NaN or infinite"),
    "unknown output": (
        pb.DecodeRequest(latents=latents(), output=pb.ImageOutput(format=UNKNOWN)),
        "output.format is 9",
    ),
    "quality of raw": (pb.DecodeRequest(latents=latents(), output=pb.ImageOutput(quality=9)), "is for JPEG and WebP"),
    "quality of PNG": (edit(SMILE, output=pb.ImageOutput(format=PNG, quality=9)), "is for JPEG and WebP"),
    "quality beyond": (edit(SMILE, output=pb.ImageOutput(format=JPEG, quality=101)), "output.quality is 101"),
    "no source": (pb.EditRequest(edits=[SMILE]), "has no source; set images or latents"),
    "no edits": (edit(), "edits is empty, and so are having and lacking"),
    "no target": (edit(SMILE, pb.Edit(strength=1)), "edits[1] has no target; set attribute or direction"),
    "NaN strength": (edit(pb.Edit(attribute="Smiling", strength=NAN)), "edits[0].strength is nan"),
    "infinite strength": (edit(pb.Edit(attribute="Smiling", strength=INFINITE)), "edits[0].strength is inf"),
    "strength beyond": (
        edit(pb.Edit(attribute="Smiling", strength=3e38)),
        "the edits add up to a step of inf; at most",
    ),
    "short direction": (edit(pb.Edit(direction=b"1234", strength=1)), "direction has 4 bytes; 192 float32 are 768"),
    "NaN direction": (edit(pb.Edit(direction=latents(NAN).data, strength=1)), "edits[0].direction has values"),
    "edited and kept": (edit(SMILE, keep=["Male", "Smiling"]), "'Smiling' is both edited and kept"),
    "too many edits": (edit(*[SMILE] * 1025), "edits has 1025 entries; at most 1024"),
    "unknown result": (edit(SMILE, result=UNKNOWN), "result is 9"),
    "output of latents": (edit(SMILE, result=pb.EDIT_RESULT_LATENTS, output=pb.ImageOutput()), "output is set"),
    "edit of bad images": (pb.EditRequest(edits=[SMILE], images=raw(height=7)), "not 7x8"),
    "unknown attribute": (edit(pb.Edit(attribute="Bald", strength=1)), "'Bald'; this model has: Smiling, Eyeglasses"),
    "nameless attribute": (edit(pb.Edit(attribute="", strength=1)), "unknown attribute ''"),
    "unknown kept attribute": (edit(SMILE, keep=["Bald"]), "unknown attribute 'Bald'"),
}


def check_refusal(call: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as refusal:
        call(request, timeout=60)
    return refusal.value.code().name, refusal.value.details()


def check_it_still_serves(server: ServerProcess) -> None:
    images = random_images(3, seed=5)
    with Client(server.target) as client:
        np.testing.assert_array_equal(client.edit_latents(images, {"Male": 0}), latents_of(images))
        np.testing.assert_array_equal(client.edit(images, {"Male": 0}), images)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_gets_a_status_and_a_message(server: ServerProcess, stub: Any, name: str) -> None:
    request, message = CASES[name]
    call = {pb.EncodeRequest: stub.Encode, pb.DecodeRequest: stub.Decode, pb.EditRequest: stub.Edit}[type(request)]
    status, details = check_refusal(call, request)
    assert status == ("NOT_FOUND" if "attribute" in name else "INVALID_ARGUMENT")
    assert message in details
    check_it_still_serves(server)


def test_bytes_that_are_no_message(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        status, details = check_refusal(channel.unary_unary("/dfcvae.v1.LatentEngine/Edit"), b"\xff\xff\xff")
    assert (status, "use the service's own .proto" in details) == ("INVALID_ARGUMENT", True)
    check_it_still_serves(server)


def test_a_method_that_does_not_exist(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        status, _ = check_refusal(channel.unary_unary("/dfcvae.v1.LatentEngine/Fly"), b"")
    assert status == "UNIMPLEMENTED"
    check_it_still_serves(server)


def test_a_message_beyond_the_limit(server: ServerProcess, stub: Any) -> None:
    request = pb.EncodeRequest(images=file_batch([bytes(ServerConfig.max_message_bytes)]))
    status, details = check_refusal(stub.Encode, request)
    assert status == "RESOURCE_EXHAUSTED"
    assert str(ServerConfig.max_message_bytes) in details
    check_it_still_serves(server)


def test_the_log_has_no_trace_of_what_clients_did_wrong(server: ServerProcess, stub: Any) -> None:
    check_refusal(stub.Decode, pb.DecodeRequest())
    assert "Traceback" not in server.log
