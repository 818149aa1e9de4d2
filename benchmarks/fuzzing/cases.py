"""A bad request, and what its strategies know of the server that gets it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.bundle import Bundle
from engine.serving.service import SERVICE_NAME

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
UNARY = (
    *(f"/{SERVICE_NAME}/{name}" for name in ("Encode", "Decode", "Edit", "Interpolate", "Sample", "GetModel")),
    f"/{HEALTH}/Check",
)
STREAMS = (f"/{SERVICE_NAME}/EditStream", f"/{REFLECTION}/ServerReflectionInfo")
ABSENT = (f"/{SERVICE_NAME}/Fly", f"/{SERVICE_NAME}/", "/dfcvae.v2.LatentEngine/Edit", "/a/b/c", "/")
LONG_S = 60.0
"""Deadline of requests that aren't about deadlines; one that isn't answered by then counts as hung."""


class Case(NamedTuple):
    """One call.

    Attributes:
        path: The method, for example "/dfcvae.v1.LatentEngine/Edit".
        bodies: Bytes of its messages: one, or for streams any number.
        metadata: Keys and values.
        timeout_s: Deadline.
        cancel_s: When the client gives the call up; None: never.
    """

    path: str
    bodies: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout_s: float = LONG_S
    cancel_s: float | None = None

    @property
    def name(self) -> str:
        """The method in tables."""
        return self.path.rpartition("/")[2] if self.path in (*UNARY, *STREAMS) else "no such method"


@dataclass(frozen=True)
class Facts:
    """What good requests to a model need.

    Attributes:
        image_size: Side of its images, pixels.
        latent_dim: Values per latent.
        attributes: What can be edited.
        crop: What is cut out of files, pixels.
    """

    image_size: int
    latent_dim: int
    attributes: tuple[str, ...]
    crop: int | None

    @classmethod
    def of(cls, bundle: Path) -> Facts:
        """Those of a bundle."""
        manifest = Bundle.load(bundle).manifest
        return cls(manifest.image_size, manifest.latent_dim, manifest.attributes, manifest.preprocessing.crop)

    @property
    def image_bytes(self) -> int:
        """Bytes of one raw image."""
        return self.image_size**2 * 3

    @property
    def file_side(self) -> int:
        """Side of files that the model takes, pixels."""
        return self.crop or self.image_size
