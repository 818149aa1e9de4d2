"""What goes into a client and what comes out.

Shapes: N images of side S, latents of dimension D; `Client.model()` says S and D.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from typing_extensions import TypedDict

from engine.arrays import Bytes, Floats
from framing import Frame, Landmarks

Images = Bytes | Sequence[bytes]
Source = Images | Floats
Edits = Mapping[str, float] | Iterable[tuple[str | Floats, float]]
FileFormat = Literal["JPEG", "PNG", "WEBP"]
Result = Literal["images", "latents", "both"]
Priority = Literal["normal", "background", "interactive"]
Walk = Literal["linear", "spherical"]
Distribution = Literal["auto", "standard", "fitted", "mixture"]


class Options(TypedDict, total=False):
    """What every method takes besides; what is left out is as the client was made."""

    model: str  # by name; empty for the server's default; NAME@FINGERPRINT refuses any other bundle
    priority: Priority  # who goes first when requests wait
    timeout: float | None  # with all retries, seconds, above 0; None for none
    request_id: str  # in the server's logs and traces: 1 to 128 characters of [A-Za-z0-9._:/=+-]


class ConditionalOptions(Options, total=False):
    """What methods take besides whose faces can be under conditions."""

    having: Iterable[str]  # attributes of every face: as much as training faces with them have on average, or more
    lacking: Iterable[str]  # attributes of none: no more than training faces without them have on average


class Posterior(NamedTuple):
    """What the encoder says about images: means and log variances, float32 [N, D] each."""

    mu: Floats
    log_var: Floats


class Edited(NamedTuple):
    """What an edit gave; what wasn't asked for is None."""

    images: Bytes | None  # uint8 [N, S, S, 3], read-only
    files: list[bytes] | None  # one image file each
    latents: Floats | None  # float32 [N, D]


@dataclass(frozen=True)
class StreamEdit:
    """One step of a stream; edits, keep, having and lacking are as for `Client.edit`, and no edit at all reconstructs.

    Without a source the step edits that of the last step that had one, which costs no encoding. That step's own failure
    doesn't matter: after edits that were wrong its source can be edited, after images that can't be used the server
    refuses them again until another source comes. What comes back is what `Client.edit` gives, up to rounding.
    """

    source: Source | None = None
    edits: Edits = ()
    keep: Iterable[str] = ()
    result: Result = "images"
    file_format: FileFormat | None = None  # of the images that come back; None: pixels
    quality: int = 0  # of JPEG and WebP files, 1 to 100; 0 for the server's default
    having: Iterable[str] = ()
    lacking: Iterable[str] = ()


@dataclass(frozen=True)
class Attribute:
    """An attribute that can be edited: its name, how many training images had it and had it not, and its direction.

    The kind of direction is "mean", "adjusted" or "svm", as protos/dfcvae.proto says; "unknown" where the model does
    not say, empty where the server is older than this field. `can_condition` says whether it can be in having and
    lacking of `Client.edit` and `Client.sample`.
    """

    name: str
    positives: int
    negatives: int
    kind: str
    can_condition: bool


@dataclass(frozen=True)
class Model:
    """What a server serves; the fields are those of `GetModelResponse` in protos/dfcvae.proto."""

    name: str
    models: tuple[str, ...]
    fingerprint: str
    image_size: int
    latent_dim: int
    attributes: tuple[Attribute, ...]
    distributions: tuple[Distribution, ...]
    backend: str
    precision: str
    max_batch_size: int
    max_delay_ms: float
    max_images_per_request: int
    max_message_bytes: int
    max_queued_images: int
    max_pixels_per_file: int
    max_concurrent_streams: int
    max_images_per_second: float
    max_requests_ahead: int
    crop: int | None
    resize: str
    source: tuple[int, int] | None
    landmarks: Landmarks | None
    versions: dict[str, str]

    @property
    def reference(self) -> str:
        """NAME@FINGERPRINT: given as the model of a call, it is refused by servers that have another bundle."""
        return f"{self.name}@{self.fingerprint}"

    @property
    def frame(self) -> Frame:
        """What image files are brought to."""
        return Frame(self.image_size, self.crop, self.source, self.landmarks)
