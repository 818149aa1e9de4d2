"""The protocol's models: each is a method of LatentEngine, its request made of tensors, its answer read as tensors.

To add one: what makes a request of what is given, a line in `MODELS`, and in `tensors` those that are new.

Shapes: N images of side S, latents of dimension D, A attributes, K kept ones.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import Message

from engine.errors import InvalidRequest
from engine.service.open_inference.tensors import BYTES, FP32, INT64, UINT8, UINT64, Output, Shape, Tensor
from engine.service.request_scope import write_latents, write_pixels
from protos import dfcvae_pb2 as pb

_Request = TypeVar("_Request", bound=Message)

_ANY = -1
_IMAGES_AND_LATENTS = ("images", "latents")
_RESULTS = {
    ("images",): pb.EDIT_RESULT_IMAGES,
    ("latents",): pb.EDIT_RESULT_LATENTS,
    _IMAGES_AND_LATENTS: pb.EDIT_RESULT_IMAGES_AND_LATENTS,
}
# As Triton has them: 1 goes first, 0 is the default.
_PRIORITIES = (pb.PRIORITY_NORMAL, pb.PRIORITY_INTERACTIVE, pb.PRIORITY_NORMAL, pb.PRIORITY_BACKGROUND)


@lru_cache(maxsize=16)
def tensors(size: int, dim: int) -> dict[str, Tensor]:
    """All tensors of the models of a bundle, by name, for images of side `size` and latents of `dim` values."""
    forms: dict[str, dict[str, Shape]] = {
        "images": {UINT8: (_ANY, size, size, 3), BYTES: (_ANY,)},
        **{name: {FP32: (_ANY, dim)} for name in ("latents", "mu", "log_var")},
        **{name: {BYTES: (_ANY,)} for name in ("attributes", "keep", "having", "lacking")},
        "strengths": {FP32: (_ANY,)},
        "offsets": {FP32: (dim,)},
        "count": {INT64: (1,)},
        "seed": {UINT64: (1,)},
        "temperature": {FP32: (1,)},
        "distribution": {BYTES: (1,)},
    }
    return {name: Tensor(name, form, single=(1,) in form.values()) for name, form in forms.items()}


def _encode(given: Mapping[str, Any]) -> pb.EncodeRequest:
    return _with_source(pb.EncodeRequest(), given, "images")


def _decode(given: Mapping[str, Any]) -> pb.DecodeRequest:
    return _with_source(pb.DecodeRequest(), given, "latents")


def _edit(given: Mapping[str, Any]) -> pb.EditRequest:
    names, strengths = _strings(given, "attributes"), given.get("strengths", ())
    if len(names) != len(strengths):
        raise InvalidRequest(
            f"attributes has {len(names)} names, and strengths {len(strengths)} values; send one for each", "strengths"
        )
    if ("images" in given) == ("latents" in given):
        raise InvalidRequest("send either images or latents", "images")
    edits = [pb.Edit(attribute=name, strength=by) for name, by in zip(names, strengths, strict=True)]
    if "offsets" in given:
        edits.append(pb.Edit(direction=given["offsets"].tobytes(), strength=1))
    having, lacking = _strings(given, "having"), _strings(given, "lacking")
    if not (edits or having or lacking):
        raise InvalidRequest("send attributes with their strengths, offsets, having or lacking", "attributes")
    request = pb.EditRequest(edits=edits, keep=_strings(given, "keep"), having=having, lacking=lacking)
    return _with_source(request, given, "images" if "images" in given else "latents")


def _sample(given: Mapping[str, Any]) -> pb.SampleRequest:
    request = pb.SampleRequest(having=_strings(given, "having"), lacking=_strings(given, "lacking"))
    for name in ("count", "seed", "temperature"):
        if name in given:
            _set(request, name, given[name])
    if "distribution" in given:
        request.distribution = _member(pb.Distribution, "DISTRIBUTION", given["distribution"], "distribution")
    return request


class Function(NamedTuple):
    """A model of the protocol."""

    method: str  # of LatentEngine
    inputs: tuple[str, ...]  # names of the tensors that it takes
    outputs: tuple[str, ...]  # and of those that it gives
    request: Callable[[Mapping[str, Any]], Any]  # makes the method's request of tensors by name

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters of requests, beside tensors of one value."""
        return ("priority", "format", "quality") if "images" in self.outputs else ("priority",)

    def fill(self, given: Mapping[str, Any], outputs: tuple[str, ...], model: str) -> Any:
        """The method's request, of tensors and parameters by name, for one of the repository's models.

        `outputs` are to come back, in the order of `self.outputs`.

        Raises:
            InvalidRequest: When a value can't be used.
        """
        request = self.request(given)
        request.model = model
        if (priority := given.get("priority", 0)) not in range(len(_PRIORITIES)):
            raise InvalidRequest(f"priority is {priority!r}; it goes from 1, the first, to 3, or is 0", "priority")
        request.priority = _PRIORITIES[priority]
        if self.outputs == _IMAGES_AND_LATENTS:
            request.result = _RESULTS[outputs]
        if "format" in given:
            request.output.format = _member(pb.ImageFormat, "IMAGE_FORMAT", given["format"], "format")
        if "quality" in given:
            _set(request.output, "quality", given["quality"])
        return request


MODELS = {
    "encoder": Function("Encode", ("images",), ("mu", "log_var"), _encode),
    "decoder": Function("Decode", ("latents",), ("images",), _decode),
    "edit": Function(
        "Edit",
        ("images", "latents", "attributes", "strengths", "offsets", "keep", "having", "lacking"),
        _IMAGES_AND_LATENTS,
        _edit,
    ),
    "sample": Function(
        "Sample",
        ("count", "seed", "temperature", "distribution", "having", "lacking"),
        _IMAGES_AND_LATENTS,
        _sample,
    ),
}
"""By the name that requests ask for: as it is for the default bundle, after `NAME.` for the bundle of that name."""


def tensor_of(field: str, attributes: int) -> str:
    """What a field of a request of LatentEngine's was made of: the name of a tensor or parameter.

    The first edits are those of so many attributes; the next one is that of offsets.
    """
    name, _, inner = field.partition(".")
    if name in ("images", "latents"):
        return f"{name}{inner.removeprefix('files')}" if inner.startswith("files") else name
    if name.startswith("edits["):
        index = name.removeprefix("edits")
        if index == f"[{attributes}]":
            return "offsets"
        return f"{'strengths' if inner == 'strength' else 'attributes'}{index}"
    if name == "output":
        return inner or "format or quality"
    return "attributes" if name == "edits" else field


def output_of(answer: Any, name: str) -> Output:
    """A tensor of what a method of LatentEngine answered."""
    field = getattr(answer, name)
    if name != "images":
        return Output(FP32, (field.count, field.dim), field.data)
    if field.WhichOneof("images") == "files":
        files = field.files.files
        return Output(BYTES, (len(files),), files)
    raw = field.raw
    return Output(UINT8, (raw.count, raw.height, raw.width, 3), raw.data)


def _with_source(request: _Request, given: Mapping[str, Any], name: str) -> _Request:
    """A request with the images or latents that are given."""
    if name not in given:
        raise InvalidRequest(f"input {name} is missing; send it", name)
    message: Any = request
    if name == "latents":
        write_latents(message.latents, given[name])
    elif isinstance(given[name], list):
        message.images.files.files.extend(given[name])
    else:
        write_pixels(message.images.raw, given[name])
    return request


def _strings(given: Mapping[str, Any], name: str) -> list[str]:
    return [_text(value, name) for value in given.get(name, ())]


def _text(value: Any, name: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} has {value[:40]!r}, which is not UTF-8", name) from None


def _member(enum: Any, prefix: str, value: Any, name: str) -> Any:
    """Member of an enumeration, by the end of its name in any case."""
    text = _text(value, name)
    try:
        return enum.Value(f"{prefix}_{text.upper()}")
    except ValueError:
        known = (one.removeprefix(f"{prefix}_").lower() for one in enum.keys()[1:])
        raise InvalidRequest(f"{name} is {text!r}; it must be one of {', '.join(known)}", name) from None


def _set(message: Any, name: str, value: Any) -> None:
    value = value.item() if isinstance(value, np.generic) else value
    try:
        setattr(message, name, value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{name} is {value!r}, which is no number in its range", name) from None
