"""The servers that are compared: how each is started, and how it is asked."""

from __future__ import annotations

import base64
import http.client
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from script import ROOT, cores

from peers.jobs import Bytes, Job
from protos import dfcvae_pb2 as pb

SERVERS = Path(__file__).resolve().parent / "servers"
OURS = "ours"
NOT_YET = (OSError, http.client.HTTPException, grpc.RpcError, ValueError, KeyError)
"""What asking raises while a server isn't ready."""


@dataclass(frozen=True)
class Protocol:
    """How a server is asked."""

    path: str  # of the request
    flags: tuple[str, ...]  # for h2load
    message: Callable[[Job], bytes]  # the request of a job
    image: Callable[[bytes], bytes]  # the image of an answer, uint8 [S * S * 3]
    grpc: bool = False  # whether it is gRPC

    def body(self, job: Job) -> bytes:
        """What h2load sends: with gRPC's frame around it where it is gRPC."""
        message = self.message(job)
        return struct.pack(">BI", 0, len(message)) + message if self.grpc else message

    def ask(self, port: int, job: Job) -> Bytes:
        """One request's answer."""
        if self.grpc:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                data = channel.unary_unary(self.path)(self.message(job), timeout=30)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            headers = dict(flag.split(": ", 1) for flag in self.flags if ": " in flag)
            connection.request("POST", self.path, self.message(job), headers)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}: {data[:300]!r}")
        return np.frombuffer(self.image(data), np.uint8).reshape(job.image.shape)


def _edit(job: Job) -> bytes:
    size = len(job.image)
    raw = pb.RawImages(count=1, height=size, width=size, data=job.image.tobytes())
    edits = [pb.Edit(attribute=job.attribute, strength=1.0)]
    return pb.EditRequest(images=pb.ImageBatch(raw=raw), edits=edits).SerializeToString()


def _infer(job: Job) -> bytes:
    from tritonclient.grpc import service_pb2  # noqa: PLC0415

    request = service_pb2.ModelInferRequest(model_name="edit", raw_input_contents=[job.image.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, *job.image.shape])
    return bytes(request.SerializeToString())


def _inferred(data: bytes) -> bytes:
    from tritonclient.grpc import service_pb2  # noqa: PLC0415

    return bytes(service_pb2.ModelInferResponse.FromString(data).raw_output_contents[0])


def _text(job: Job) -> str:
    return base64.b64encode(job.image.tobytes()).decode()


_GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")
_JSON = ("--h1", "-H", "content-type: application/json")
_RAW = ("--h1", "-H", "content-type: application/octet-stream")

EDIT = Protocol(
    "/dfcvae.v1.LatentEngine/Edit", _GRPC, _edit, lambda data: pb.EditResponse.FromString(data).images.raw.data, True
)
INFER = Protocol("/inference.GRPCInferenceService/ModelInfer", _GRPC, _infer, _inferred, True)


def _bytes(path: str) -> Protocol:
    return Protocol(path, _RAW, lambda job: job.image.tobytes(), lambda data: data)


LITSERVE = Protocol(
    "/predict",
    _JSON,
    lambda job: json.dumps({"image": _text(job)}).encode(),
    lambda data: base64.b64decode(json.loads(data)["image"]),
)
BENTOML = Protocol(
    "/edit",
    _JSON,
    lambda job: json.dumps({"images": [_text(job)]}).encode(),
    lambda data: base64.b64decode(json.loads(data)[0]),
)


@dataclass(frozen=True)
class Rival:
    """A server."""

    name: str  # in the table
    environment: str  # folder of its Python; "" for this one
    arguments: tuple[str, ...]  # of that Python, with {port}
    protocol: Protocol  # how it is asked
    engine: bool = False  # whether it has this project's engine inside

    def there(self, environments: Path) -> bool:
        """Whether its environment is there."""
        return not self.environment or self._python(environments).exists()

    def command(self, environments: Path, bundle: Path, port: int) -> tuple[list[str], dict[str, str]]:
        """Its command line, and the environment variables that it needs."""
        words = {"port": str(port), "bundle": str(bundle.resolve())}
        variables = {
            "PYTHONPATH": f"{ROOT}:{SERVERS}",
            "PEER_BUNDLE": words["bundle"],
            "PEER_PORT": words["port"],
            "PEER_THREADS": str(cores()),
            "PEER_ENGINE": str(int(self.engine)),
        }
        arguments = [word.format(**words) for word in self.arguments]
        return [str(self._python(environments)), *arguments], variables

    def _python(self, environments: Path) -> Path:
        folder = environments.resolve() / self.environment / "bin"
        return folder / "python" if self.environment else Path(sys.executable)


def _all() -> dict[str, Rival]:
    peers: dict[str, tuple[tuple[str, ...], Protocol]] = {
        "grpcio": ((f"{SERVERS}/grpcio_server.py",), EDIT),
        "mosec": ((f"{SERVERS}/mosec_server.py", "--address", "127.0.0.1", "--port", "{port}"), _bytes("/inference")),
        "litserve": ((f"{SERVERS}/litserve_server.py",), LITSERVE),
        "bentoml": (
            ("-m", "bentoml", "serve", "bentoml_server:Edit", "--working-dir", str(SERVERS), "--port", "{port}"),
            BENTOML,
        ),
        "ray": ((f"{SERVERS}/ray_server.py",), _bytes("/")),
        "triton": ((f"{SERVERS}/triton_server.py",), INFER),
    }
    found = {OURS: Rival(OURS, "", ("-m", "engine", "--bundle", "{bundle}", "--port", "{port}"), EDIT)}
    for name, (arguments, protocol) in peers.items():
        for engine in (False, True):
            title = f"{name}+engine" if engine else name
            found[title] = Rival(title, name, arguments, protocol, engine)
    return found


RIVALS = _all()
"""All of them, by name, in the order of the table."""
