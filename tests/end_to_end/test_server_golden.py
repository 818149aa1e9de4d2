"""Golden figures of the server: the bytes of its answers, its flags, the names of its metrics.

What other programs rely on stands in golden/server.json; a change there is a change for users. To write it anew, after
a look at what has changed: GOLDEN=write python -m pytest tests/end_to_end/test_server_golden.py.
"""

import base64
import io
import json
import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from batches import file_batch, latent_batch, raw_batch
from bundles import add_prior, write_tiny_bundle
from google.protobuf.message import Message
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from servers import ServerProcess, run_python, server_of
from tiny_model import LATENT_DIM, latents_of, random_images

from engine.images import encode_file
from engine.latents import Gaussian
from protos import dfcvae_pb2 as pb

GOLDEN = Path(__file__).with_name("golden") / "server.json"
SERVICE = pb.DESCRIPTOR.services_by_name["LatentEngine"].full_name


def png(seed: int) -> bytes:
    return encode_file(random_images(1, seed)[0], "PNG")


SMILE = pb.Edit(attribute="Smiling", strength=1.5)
ALONG = pb.Edit(direction=np.linspace(-9, 9, LATENT_DIM, dtype=np.float32).tobytes(), strength=-0.5)
FILES = file_batch([png(5), png(6)])
AS_PNG = pb.ImageOutput(format=pb.IMAGE_FORMAT_PNG)
BOTH, LATENTS = pb.EDIT_RESULT_IMAGES_AND_LATENTS, pb.EDIT_RESULT_LATENTS

REQUESTS: dict[str, tuple[str, Message | bytes]] = {
    "encode raw": ("Encode", pb.EncodeRequest(images=raw_batch(random_images(3, 1)))),
    "encode files": ("Encode", pb.EncodeRequest(images=FILES, priority=pb.PRIORITY_BACKGROUND)),
    "decode": ("Decode", pb.DecodeRequest(latents=latent_batch(latents_of(random_images(2, 2))))),
    "decode to files": (
        "Decode",
        pb.DecodeRequest(latents=latent_batch(latents_of(random_images(2, 2))), output=AS_PNG),
    ),
    "edit raw": (
        "Edit",
        pb.EditRequest(images=raw_batch(random_images(2, 3)), edits=[SMILE, ALONG], keep=["Male"], result=BOTH),
    ),
    "edit files": ("Edit", pb.EditRequest(images=FILES, edits=[SMILE], output=AS_PNG, model="golden")),
    "edit latents": ("Edit", pb.EditRequest(latents=latent_batch(latents_of(random_images(1, 4))), edits=[ALONG])),
    "edit to latents": ("Edit", pb.EditRequest(images=raw_batch(random_images(1, 3)), edits=[SMILE], result=LATENTS)),
    "walk": (
        "Interpolate",
        pb.InterpolateRequest(
            start=pb.WalkEnd(images=raw_batch(random_images(2, 7))),
            end=pb.WalkEnd(latents=latent_batch(latents_of(random_images(2, 8)))),
            steps=4,
            result=BOTH,
        ),
    ),
    "walk along an arc": (
        "Interpolate",
        pb.InterpolateRequest(
            start=pb.WalkEnd(images=raw_batch(random_images(2, 7))),
            end=pb.WalkEnd(images=FILES),
            steps=3,
            walk=pb.WALK_SPHERICAL,
        ),
    ),
    "arc of one pair": (
        "Interpolate",
        pb.InterpolateRequest(
            start=pb.WalkEnd(images=raw_batch(random_images(1, 7))),
            end=pb.WalkEnd(images=raw_batch(random_images(1, 8))),
            steps=3,
            walk=pb.WALK_SPHERICAL,
        ),
    ),
    "sample": ("Sample", pb.SampleRequest(count=3, seed=9, result=BOTH)),
    "sample many": ("Sample", pb.SampleRequest(count=20, seed=9, temperature=0.5, result=LATENTS)),
    "sample N(0, I)": ("Sample", pb.SampleRequest(count=1, seed=1, distribution=pb.DISTRIBUTION_STANDARD)),
    "sample with conditions": (
        "Sample",
        pb.SampleRequest(count=3, seed=9, having=["Smiling", "Male"], lacking=["Eyeglasses"], result=LATENTS),
    ),
    "model": ("GetModel", pb.GetModelRequest()),
    "no image": ("Encode", pb.EncodeRequest()),
    "no edits": ("Edit", pb.EditRequest(images=raw_batch(random_images(1, 1)))),
    "no such attribute": (
        "Edit",
        pb.EditRequest(images=raw_batch(random_images(1, 1)), edits=[pb.Edit(attribute="Bald")]),
    ),
    "no such model": ("Decode", pb.DecodeRequest(latents=latent_batch(latents_of(random_images(1, 1))), model="none")),
    "no picture": ("Encode", pb.EncodeRequest(images=file_batch([b"no picture"]))),
    "latents of another size": ("Decode", pb.DecodeRequest(latents=pb.LatentBatch(count=1, dim=3, data=b"0" * 12))),
    "too many samples": ("Sample", pb.SampleRequest(count=10**6)),
    "no message": ("Edit", b"\xff\xff"),
}
STREAM = [
    pb.EditStreamRequest(edits=[SMILE], id=1),
    pb.EditStreamRequest(images=raw_batch(random_images(1, 1)), edits=[SMILE], id=2),
    pb.EditStreamRequest(edits=[ALONG], result=BOTH, id=3),
    pb.EditStreamRequest(images=file_batch([b"no picture"]), id=4),
    pb.EditStreamRequest(edits=[SMILE], id=5),
    pb.EditStreamRequest(
        latents=latent_batch(latents_of(random_images(2, 2))), edits=[pb.Edit(attribute="Bald")], id=6
    ),
    pb.EditStreamRequest(result=LATENTS, id=7),
]


@pytest.fixture(scope="module")
def golden_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("golden")
    bundle = write_tiny_bundle(folder / "bundle")
    levels = np.random.default_rng(0).uniform(0, 255, LATENT_DIM).astype(np.float32)
    add_prior(bundle, Gaussian(levels, np.diag(levels / 4)))
    with server_of(f"golden={bundle}", folder, "--metrics-port", "0") as server:
        yield server


def answers(target: str) -> dict[str, str]:
    """Bytes in base64, or status and sentence."""
    found = {}
    with grpc.insecure_channel(target) as channel:
        for name, (method, request) in REQUESTS.items():
            call = channel.unary_unary(f"/{SERVICE}/{method}")
            try:
                data = call(request if isinstance(request, bytes) else request.SerializeToString(), timeout=60)
                found[name] = text_of(method, data)
            except grpc.RpcError as error:
                found[name] = f"{error.code().name}: {error.details()}"
        stream = channel.stream_stream(f"/{SERVICE}/EditStream")
        requests = (request.SerializeToString() for request in STREAM)
        for number, data in enumerate(stream(requests, timeout=60), start=1):
            found[f"stream {number}"] = text_of("EditStream", data)
    return found


def text_of(method: str, data: bytes) -> str:
    """The bytes of an answer in base64, of a long one their hash, without what the versions of libraries change."""
    message: Any = getattr(pb, f"{method}Response").FromString(data)
    if method == "GetModel":
        message.versions.clear()
        message.fingerprint = ""
        data = message.SerializeToString(deterministic=True)
    elif method != "EditStream" and "images" in message.DESCRIPTOR.fields_by_name and message.images.files.files:
        files = message.images.files.files
        files[:] = [np.asarray(Image.open(io.BytesIO(file))).tobytes() for file in files]
        data = message.SerializeToString(deterministic=True)
    return (
        base64.b64encode(data).decode() if len(data) < 200 else f"{len(data)} bytes, SHA-256 {sha256(data).hexdigest()}"
    )


def flags(folder: Path) -> list[str]:
    shown = run_python(["-m", "engine", "--help"], folder)
    assert shown.returncode == 0
    return sorted(set(re.findall(r"--[a-z][a-z-]*", shown.stdout)))


def metrics(server: ServerProcess) -> list[str]:
    families = text_string_to_metric_families(server.scrape())
    return sorted(
        " ".join([family.type, family.name, *sorted({label for sample in family.samples for label in sample.labels})])
        for family in families
        if family.name.startswith(("dfcvae", "rpc"))
    )


def test_answers_flags_and_metrics_stay_as_they_are(golden_server: ServerProcess, tmp_path: Path) -> None:
    found = {
        "answers": answers(golden_server.target),
        "flags": flags(tmp_path),
        "defaults": json.loads(run_python(["-m", "engine", "--bundle", "B", "--dry-run"], tmp_path).stdout),
        "metrics": metrics(golden_server),
    }
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())
