"""The servers that are compared: how each is started, and how it is asked."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.request import ProxyHandler, Request, build_opener

import grpc
import numpy as np
from serving import http2
from serving.process import ROOT
from serving.requests import INFER, SERVICE, infer_request

from engine.arrays import Bytes
from engine.backends import cores
from engine.bundle import Bundle
from engine.client import StreamEdit, messages
from peers.servers.plain import PlainRuntime
from protos import dfcvae_pb2 as pb
from protos import open_inference_pb2 as infer

SERVERS = Path(__file__).resolve().parent / "servers"
OURS = "ours"
NOT_YET = (OSError, HTTPException, grpc.RpcError, ValueError, KeyError)
"""What asking raises while a server isn't ready."""


@dataclass(frozen=True)
class Job:
    """What is asked."""

    image: Bytes  # uint8 [S, S, 3]
    attribute: str  # what is edited by 1
    expected: Bytes  # ONNX Runtime's answer, uint8 [S, S, 3]

    @classmethod
    def of(cls, bundle: Bundle) -> "Job":
        """The job for a bundle."""
        size, attribute = bundle.manifest.image_size, bundle.directions.names[0]
        image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        step = bundle.directions.move([(attribute, 1.0)]).step
        ((expected,), _) = PlainRuntime(bundle.path).edit(image[None], step[None])
        return cls(image, attribute, expected)


@dataclass(frozen=True)
class Protocol:
    """How a server is asked."""

    path: str  # of the request
    content: Literal["grpc", "json", "octet-stream"]  # its type
    message: Callable[[Job], bytes]  # the request of a job
    image: Callable[[bytes], bytes]  # the image of an answer, uint8 [S * S * 3]

    @property
    def flags(self) -> tuple[str, ...]:
        """What h2load must know."""
        others = ("-H", "te: trailers") if self.content == "grpc" else ("--h1",)
        return "-H", f"content-type: application/{self.content}", *others

    def body(self, job: Job) -> bytes:
        """What h2load sends: with gRPC's frame around it where it is gRPC."""
        message = self.message(job)
        return http2.message(message) if self.content == "grpc" else message

    def ask(self, port: int, job: Job) -> Bytes:
        """One request's answer."""
        if self.content == "grpc":
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                data = channel.unary_unary(self.path)(self.message(job), timeout=30)
        else:
            content_type = {"content-type": f"application/{self.content}"}
            request = Request(f"http://127.0.0.1:{port}{self.path}", self.message(job), content_type)
            with build_opener(ProxyHandler({})).open(request, timeout=30) as response:
                data = response.read()
        return np.frombuffer(self.image(data), np.uint8).reshape(job.image.shape)


def _text(job: Job) -> str:
    return base64.b64encode(job.image.tobytes()).decode()


EDIT = Protocol(
    f"{SERVICE}Edit",
    "grpc",
    lambda job: messages.edit_request(StreamEdit(job.image[None], {job.attribute: 1.0})).SerializeToString(),
    lambda data: pb.EditResponse.FromString(data).images.raw.data,
)
MODEL_INFER = Protocol(
    INFER,
    "grpc",
    lambda job: infer_request("edit", {"images": job.image[None]}).SerializeToString(),
    lambda data: infer.ModelInferResponse.FromString(data).raw_output_contents[0],
)


def raw(path: str) -> Protocol:
    """Pixels there and back."""
    return Protocol(path, "octet-stream", lambda job: job.image.tobytes(), lambda data: data)


LITSERVE = Protocol(
    "/predict",
    "json",
    lambda job: json.dumps({"image": _text(job)}).encode(),
    lambda data: base64.b64decode(json.loads(data)["image"]),
)
BENTOML = Protocol(
    "/edit",
    "json",
    lambda job: json.dumps({"images": [_text(job)]}).encode(),
    lambda data: base64.b64decode(json.loads(data)[0]),
)


@dataclass(frozen=True)
class Peer:
    """A server."""

    name: str  # in the table
    environment: str  # folder of its Python; "" for this one
    arguments: tuple[str, ...]  # of that Python, with {port}
    protocol: Protocol  # how it is asked
    engine: bool = False  # whether it has this project's engine inside

    def python(self, environments: Path) -> Path:
        """Its Python, which is there if its environment is."""
        return environments.resolve() / self.environment / "bin/python" if self.environment else Path(sys.executable)

    def command(self, environments: Path, bundle: Path, port: int) -> tuple[list[str], dict[str, str]]:
        """Its command line, and the environment variables that it needs."""
        bundle = bundle.resolve()
        arguments = [word.format(port=port, bundle=bundle) for word in self.arguments]
        variables = {
            "PYTHONPATH": f"{ROOT}:{SERVERS}",
            "PEER_BUNDLE": str(bundle),
            "PEER_PORT": str(port),
            "PEER_THREADS": str(cores()),
            "PEER_ENGINE": str(int(self.engine)),
        }
        return [str(self.python(environments)), *arguments], variables


def _all() -> Iterator[Peer]:
    yield Peer(OURS, "", ("-m", "engine", "--bundle", "{bundle}", "--port", "{port}"), EDIT)
    bentoml = ("-m", "bentoml", "serve", "bentoml_server:Edit", "--working-dir", str(SERVERS), "--port", "{port}")
    for name, protocol, arguments in (
        ("grpcio", EDIT, (f"{SERVERS}/grpcio_server.py",)),
        ("mosec", raw("/inference"), (f"{SERVERS}/mosec_server.py", "--address", "127.0.0.1", "--port", "{port}")),
        ("litserve", LITSERVE, (f"{SERVERS}/litserve_server.py",)),
        ("bentoml", BENTOML, bentoml),
        ("ray", raw("/"), (f"{SERVERS}/ray_server.py",)),
        ("triton", MODEL_INFER, (f"{SERVERS}/triton_server.py",)),
    ):
        yield Peer(name, name, arguments, protocol)
        yield Peer(f"{name}+engine", name, arguments, protocol, engine=True)


PEERS = {peer.name: peer for peer in _all()}  # in the order of the table
