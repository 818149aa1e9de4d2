"""Tensors of the Open Inference Protocol: what requests have as numpy arrays, and arrays as what answers have.

Numbers are arrays of the tensor's shape; of BYTES there is a list, of one dimension.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.errors import InvalidRequest
from protos import open_inference_pb2 as pb

Value: TypeAlias = "npt.NDArray[Any] | list[bytes]"
Shape: TypeAlias = tuple[int, ...]
"""-1, which only the first may be, stands for any number."""
_Input: TypeAlias = pb.ModelInferRequest.InferInputTensor

BYTES, UINT8, INT64, UINT64, FP32 = "BYTES", "UINT8", "INT64", "UINT64", "FP32"

MAX_TYPED = 2**18
"""Most values of a tensor that doesn't travel raw: each takes a hundred times as long as a raw one."""
_MAX_STRINGS = 2**14


class Tensor(NamedTuple):
    """A tensor that models take or give."""

    name: str
    forms: Mapping[str, Shape]  # by the datatypes that it may have; metadata tell the first
    single: bool  # it is one value, which may come as a parameter of the request

    @property
    def datatype(self) -> str:
        """The first."""
        return next(iter(self.forms))

    @property
    def shape(self) -> Shape:
        """That of the first datatype."""
        return self.forms[self.datatype]


_NUMBERS: dict[str, tuple[np.dtype[Any], str]] = {
    UINT8: (np.dtype("u1"), "uint_contents"),
    INT64: (np.dtype("<i8"), "int64_contents"),
    UINT64: (np.dtype("<u8"), "uint64_contents"),
    FP32: (np.dtype("<f4"), "fp32_contents"),
}
"""How numbers travel, by datatype: in raw contents, and in which field of InferTensorContents."""


def read_given(request: Any, known: Mapping[str, Tensor], parameters: Iterable[str]) -> dict[str, Any]:
    """What a ModelInferRequest has, by name: tensors, those of one value as that value, and parameters beside them.

    Raises:
        InvalidRequest: When something isn't one of these, or not what it says.
    """
    inputs, raw = request.inputs, request.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(inputs)} inputs; send one for each, in their order",
            "raw_input_contents",
        )
    found: dict[str, Any] = {}
    for tensor, contents in zip(inputs, raw or repeat(None), strict=False):
        name = tensor.name
        if name not in known:
            index = len(found)
            raise InvalidRequest(f"the model has no input {name!r}; it takes: {', '.join(known)}", f"inputs[{index}]")
        if name in found:
            raise InvalidRequest(f"input {name} is there twice; send it once", name)
        value = _read(tensor, known[name].forms, contents)
        found[name] = value[0] if known[name].single else value
    if request.parameters:
        names = [*(name for name, one in known.items() if one.single), *parameters]
        for name, parameter in request.parameters.items():
            if name not in names or name in found:
                why = "is there as an input, too" if name in found else f"is not known; there is: {', '.join(names)}"
                raise InvalidRequest(f"parameter {name!r} {why}", "parameters")
            found[name] = getattr(parameter, parameter.WhichOneof("parameter_choice") or "string_param")
    return found


def _read(tensor: _Input, forms: Mapping[str, Shape], raw: bytes | None) -> Value:
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if (expected := forms.get(datatype)) is None:
        raise InvalidRequest(f"input {name} is of datatype {datatype!r}; it must be {' or '.join(forms)}", name)
    rows_fit = bool(shape) and (shape[0] == expected[0] or expected[0] < 0) and shape[0] >= 0
    if not rows_fit or shape[1:] != expected[1:]:
        any_number = " (-1: any number)" if -1 in expected else ""
        raise InvalidRequest(
            f"input {name} has the shape {list(shape)}; {datatype} must be {list(expected)}{any_number}", name
        )
    refuse_extensions(tensor, f"input {name}")
    count = math.prod(shape)
    if datatype == BYTES and count > _MAX_STRINGS:
        raise InvalidRequest(f"input {name} has {count} values; at most {_MAX_STRINGS} are accepted", name)
    if raw is None:
        return _read_typed(tensor, shape, count)
    if tensor.HasField("contents"):
        raise InvalidRequest(f"input {name} has contents beside raw_input_contents; send one of them", name)
    if datatype == BYTES:
        return _split(name, raw, count)
    dtype, _ = _NUMBERS[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InvalidRequest(
            f"input {name} has {len(raw)} bytes of raw_input_contents; {datatype} {list(shape)} has "
            f"{count * dtype.itemsize}",
            name,
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _read_typed(tensor: _Input, shape: Shape, count: int) -> Value:
    name = tensor.name
    dtype, field = _NUMBERS.get(tensor.datatype, (None, "bytes_contents"))
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise InvalidRequest(f"input {name} has {len(values)} values in contents.{field}; its shape has {count}", name)
    if count > MAX_TYPED:
        raise InvalidRequest(
            f"input {name} has {count} values in contents.{field}, where at most {MAX_TYPED} are accepted; send it in "
            "raw_input_contents",
            name,
        )
    if dtype is None:
        return list(values)
    if tensor.datatype == UINT8 and (largest := max(values, default=0)) > 255:
        raise InvalidRequest(f"input {name} has the value {largest}; UINT8 goes up to 255", name)
    return np.array(values, dtype).reshape(shape)


def _split(name: str, raw: bytes, count: int) -> list[bytes]:
    """Strings, each with four bytes before it that say how long it is."""
    found: list[bytes] = []
    start = 0
    while start + 4 <= len(raw) and len(found) < count:
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw):
            break
        found.append(raw[start + 4 : end])
        start = end
    if len(found) != count or start != len(raw):
        raise InvalidRequest(
            f"input {name}: its raw_input_contents of {len(raw)} bytes are not {count} values of BYTES, each with its "
            "length before it, as four bytes, little-endian",
            name,
        )
    return found


def refuse_extensions(tensor: Any, what: str) -> None:
    """Raises InvalidRequest where a tensor's parameters ask for what would change its values."""
    if not tensor.parameters:  # to look is cheaper than to go through none
        return
    for key in tensor.parameters:
        if key.startswith("shared_memory") or key == "classification":
            raise InvalidRequest(f"{what} asks for {key}, which this server doesn't offer; leave it out")


class Output(NamedTuple):
    """A tensor of an answer."""

    datatype: str
    shape: Shape
    data: bytes | Sequence[bytes]  # as it travels raw; of BYTES the values


def write(message: pb.ModelInferResponse, tensors: Mapping[str, Output], *, raw: bool) -> None:
    """Puts tensors into a response by their names, raw or typed."""
    for name, (datatype, shape, data) in tensors.items():
        tensor = pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
        if raw:
            message.raw_output_contents.append(data if isinstance(data, bytes) else _join(data))
        elif isinstance(data, bytes):
            dtype, field = _NUMBERS[datatype]
            getattr(tensor.contents, field).extend(np.frombuffer(data, dtype).tolist())
        else:
            tensor.contents.bytes_contents.extend(data)
        message.outputs.append(tensor)


def _join(values: Iterable[bytes]) -> bytes:
    """Strings, each with four bytes before it that say how long it is."""
    return b"".join(part for one in values for part in (len(one).to_bytes(4, "little"), one))
