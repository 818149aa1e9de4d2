"""The bundle folder: what `export` writes and the engine serves, and the manifest that describes it."""

import dataclasses
import hashlib
import json
from dataclasses import asdict, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from engine.errors import BundleError, DirectionsError
from engine.latents import Directions, Prior, load_priors
from engine.process.files import open_regular, read_text
from engine.validation import first_fault
from framing import Frame, Landmarks

FORMAT_VERSION = 4
MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
DIRECTIONS = "directions.safetensors"
PRIOR = "prior.safetensors"
PROOF = "proof.safetensors"

LARGEST_BATCH = 4096
"""Largest batch that an engine may be built for, images: far beyond what any device gains by, and it fits in memory."""

PROVEN, UNPROVEN, UNKNOWN = "proven", "unproven", "unknown"

_READ_TOO = (3,)
_NEWER_KEYS = ("source", "landmarks", "edit")  # which older versions of the format did not write
_REQUIRED_FILES = (ENCODER, DECODER, DIRECTIONS)
_REBUILD = "build it with: python -m export.build_engines --run RUN --out BUNDLE"

_STRICT = ConfigDict(extra="forbid", strict=True)
_Positive = Annotated[int, Field(ge=1)]


def _none_below_one(crop: int | None) -> int | None:
    return None if crop is None or crop < 1 else crop


def _own_files(files: dict[str, str]) -> dict[str, str]:
    for name in files:
        if Path(name).name != name or name == MANIFEST or "\0" in name:
            raise ValueError(f"must be plain names of the bundle's own files, not {name!r}")
    return files


def _with_status(proof: dict[str, Any]) -> dict[str, Any]:
    if proof.get("status") not in (PROVEN, UNPROVEN, UNKNOWN):
        raise ValueError(f"must have the status {PROVEN!r} or {UNPROVEN!r}, not {proof.get('status')!r}")
    return proof


@dataclass(frozen=True, config=_STRICT)
class Preprocessing:
    """How an image file becomes the model's input, in training and in serving; see `framing.Frame`."""

    # Side of the centred square that is cut out before resizing, pixels; None resizes the shorter side to the image
    # size and then cuts the centred square.
    crop: Annotated[int | None, AfterValidator(_none_below_one)]
    resize: Literal["bilinear"] = "bilinear"  # with anti-aliasing
    # Width and height of the pictures that `crop` is cut out of, pixels, to which others are brought; None: any.
    source: tuple[int, int] | None = None
    # Where eyes, nose and mouth lie in a picture of that size; None: not known.
    landmarks: Annotated[Landmarks, Field(min_length=5, max_length=5)] | None = None

    @classmethod
    def of(cls, frame: Frame) -> "Preprocessing":
        """What brings pictures to a frame."""
        return cls(frame.crop, source=frame.source, landmarks=frame.landmarks)

    def __post_init__(self) -> None:
        if self.source and min(self.source) < (self.crop or 1):
            raise ValueError(f"must have a source that crop {self.crop} fits into, not {self.source}")


@dataclass(frozen=True, config=_STRICT)
class Engine:
    """What the bundle's backend runs, and how."""

    encoder: str = ENCODER  # the file that it makes the encoder from: `encoder.onnx`, or an exact rewrite of it
    decoder: str = DECODER
    # Whether each thread computes a share of a batch alone, or all of them the whole batch together. Only on CPUs.
    split: bool = False
    # How `--backend auto` and the like came to this choice: the rule, the candidates and their figures.
    chosen: dict[str, Any] = field(default_factory=dict)
    # The graphs on the way to those files, encoder and decoder by stage of the parity gate: `rewritten`, an exact
    # rewrite in FP32, and `reduced`, the same in fewer bits. A stage that was not gone through is missing.
    stages: dict[str, tuple[str, str]] = field(default_factory=dict)
    edit: str | None = None  # both as one graph, for a backend that can't join them itself


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """Everything that `manifest.json` says, field by field."""

    format_version: int  # `FORMAT_VERSION`; those before it are read too, as this one
    image_size: _Positive  # side S of the model's square images, pixels
    latent_dim: _Positive  # D
    preprocessing: Preprocessing
    attributes: tuple[str, ...]  # that have a direction, in the order of the directions' rows
    kinds: tuple[str, ...]  # of directions, see `engine.latents.Directions`; empty if an older export wrote none
    backend: str  # runtime that serves the bundle, for example "onnxruntime"
    device: str  # kind that it computes on, "cpu" or "cuda"; which of several GPUs is for the server to say
    precision: str  # arithmetic of the engines, for example "fp32"
    engine: Engine
    max_batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)]  # that the engines take, images
    files: Annotated[dict[str, str], AfterValidator(_own_files)]  # SHA-256 in hex of every file but the manifest
    parity: dict[str, Any]  # figures of the parity gate that the bundle passed
    versions: dict[str, str]  # of the software that built it, by package name
    run: dict[str, Any]  # what it was built from
    # Where plans are served: `device`, the TensorRT version and GPU (TensorRT for RTX: the compute capabilities) that
    # they were built for and are bound to, and `builder`, by plan the settings of its builder.
    tensorrt: dict[str, Any] = field(default_factory=dict)
    # `status` is "proven" where the engines ran and passed the parity gate, on `machine` (`engine.proof.machine`);
    # "unproven" where they were built on a machine that can't run them, with the `reason`; such a bundle's `parity`
    # ends before them. `tolerances` (`engine.proof.figures`) hold on every machine. Older bundles: "unknown".
    proof: Annotated[dict[str, Any], AfterValidator(_with_status)] = field(default_factory=lambda: {"status": UNPROVEN})

    @property
    def frame(self) -> Frame:
        """What pictures are brought to before the encoder sees them."""
        made = self.preprocessing
        return Frame(self.image_size, made.crop, made.source, made.landmarks)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Reads the text of a `manifest.json`.

        Raises:
            BundleError: When it isn't JSON, has another format version, lacks a key, has an unknown key, or a
                value of the wrong type.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # also for a number of thousands of digits, or endless nesting
            raise BundleError(f"the manifest is not JSON ({error}); {_REBUILD}") from None
        if not isinstance(values, dict):
            raise BundleError(f"the manifest must be a JSON object, not {type(values).__name__}; {_REBUILD}")
        version = values.get("format_version")
        if version not in (*_READ_TOO, FORMAT_VERSION):
            raise BundleError(
                f"the bundle has format version {version!r}, this engine reads {_READ_TOO[0]} to {FORMAT_VERSION}; "
                f"install the engine that matches, or {_REBUILD}"
            )
        if version in _READ_TOO:  # before kinds of directions, which their file may say, and before there was a proof
            values = {**values, "format_version": FORMAT_VERSION, "kinds": [], "proof": {"status": UNKNOWN}}
        values = {"device": _device_of(values), **values}
        _require_keys(values, cls)
        try:
            return _MANIFEST.validate_json(json.dumps(values))
        except ValidationError as error:
            place, said = first_fault(error)
            raise BundleError(f"{place} {said}; {_REBUILD}") from None


_MANIFEST = TypeAdapter(Manifest)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle folder that was verified file by file, and what it says in numbers."""

    path: Path  # the folder
    manifest: Manifest
    directions: Directions
    priors: dict[str, Prior]  # by name, the default first; none in bundles of before there was one

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Opens a bundle folder: every listed file must be there with its SHA-256, and all parts must agree.

        Raises:
            BundleError: With a sentence that says what differs and how to mend it.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"no bundle folder at {folder}; {_REBUILD}")
        manifest = _read_manifest(folder)
        _verify_files(folder, manifest)
        try:
            directions = Directions.load(folder / DIRECTIONS)
        except DirectionsError as error:
            raise BundleError(f"{error}; {_REBUILD}") from None
        priors = load_priors(folder / PRIOR) if PRIOR in manifest.files else {}

        def require_same(file: str, what: str, found: Any, key: str, said: Any) -> None:
            if found != said:
                raise BundleError(
                    f"{folder / file} has {what.format(found)}, the manifest says {key}{said}; {_REBUILD}"
                )

        names, kinds, latent_dim = list(manifest.attributes), list(manifest.kinds), manifest.latent_dim
        require_same(DIRECTIONS, "the attributes {}", list(directions.names), "", names)
        if kinds:
            require_same(DIRECTIONS, "directions of the kinds {}", list(directions.kinds), "", kinds)
        require_same(DIRECTIONS, "vectors of {} values", directions.latent_dim, "latent_dim ", latent_dim)
        for prior in priors.values():
            require_same(PRIOR, "latents of {} values", prior.latent_dim, "latent_dim ", latent_dim)
        return cls(folder, manifest, directions, priors)

    def with_max_batch_size(self, max_batch_size: int) -> "Bundle":
        """The same, to be served in smaller batches than it was built for.

        Raises:
            BundleError: They are larger.
        """
        built = self.manifest.max_batch_size
        if max_batch_size > built:
            raise BundleError(
                f"the bundle was built for batches of at most {built} images, not {max_batch_size}; "
                f"give --max-batch {built} or less, or build it again with --max-batch {max_batch_size}"
            )
        return replace(self, manifest=replace(self.manifest, max_batch_size=max_batch_size))


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(open_regular(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    try:
        text = read_text(folder / MANIFEST)
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; {_REBUILD}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / MANIFEST} can't be read ({error}); {_REBUILD}") from None
    try:
        return Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{folder / MANIFEST}: {error}") from None


def _verify_files(folder: Path, manifest: Manifest) -> None:
    engine = manifest.engine
    others = [engine.edit] if engine.edit else []
    if manifest.proof["status"] != UNKNOWN:  # as it is before bundles carried one
        others.append(PROOF)
    for name in (*_REQUIRED_FILES, engine.encoder, engine.decoder, *others, *chain(*engine.stages.values())):
        if name not in manifest.files:
            raise BundleError(f"{folder / MANIFEST} does not list {name}; {_REBUILD}")
    for name, digest in manifest.files.items():
        try:
            actual = sha256_of(folder / name)
        except FileNotFoundError:
            raise BundleError(f"{folder / name} is missing; {_REBUILD}") from None
        except OSError as error:
            raise BundleError(f"{folder / name} can't be read ({error.strerror}); {_REBUILD}") from None
        if actual != digest:
            raise BundleError(
                f"{folder / name} was changed after it was built: its SHA-256 is {actual[:12]}..., "
                f"the manifest says {digest[:12]}...; copy the bundle again, or {_REBUILD}"
            )


def _require_keys(values: dict[str, Any], model: type[Manifest | Preprocessing | Engine], place: str = "") -> None:
    """Defaults are for those who make a manifest: one that was written has every key, but those of newer versions."""
    for one in dataclasses.fields(model):
        if one.name not in values and one.name not in _NEWER_KEYS:
            raise BundleError(f"{place}{one.name} is missing; {_REBUILD}")
        part = {"preprocessing": Preprocessing, "engine": Engine}.get(one.name)
        if part and isinstance(values[one.name], dict):
            _require_keys(values[one.name], part, f"{one.name}.")


def _device_of(values: dict[str, Any]) -> str:
    """Where the engines compute, of a manifest that doesn't say: precision and backend decided it."""
    on_gpu = values.get("backend") in ("tensorrt", "tensorrt-rtx") or values.get("precision") == "fp16"
    return "cuda" if on_gpu else "cpu"
