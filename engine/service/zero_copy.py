"""Messages whose pixels are not copied: a request is in memory once, and not three times, and so is a response.

Protobuf copies bytes twice: into the message when it parses, and out of it when they are asked for. Here the pixels of
raw images, and the raw contents of tensors, are cut out of the serialised request as views, and protobuf parses what is
left, some dozens of bytes.

Only plain requests are cut, and no small ones; others are parsed whole, so that meaning and errors are always
protobuf's. Writers of protobuf produce plain requests: each single field on the way to the pixels occurs once, and
numbers are as short as they can be.

Pixels of a response go straight from the array that the backend filled into the bytes that gRPC sends: laid beside the
rest of the message, with the few bytes in front of them that protobuf puts before a field.

Shapes: N images of side S.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from engine.arrays import Bytes
from engine.errors import InvalidRequest
from protos import dfcvae_pb2 as pb


class Field(NamedTuple):
    """A field that is looked into.

    Attributes:
        name: Its name.
        repeated: Whether it may occur many times.
        inner: What to look for in a message; None for the pixels themselves, and for numbers.
        numbers: Whether it is a list of numbers.
    """

    name: str
    repeated: bool
    inner: "Tree | None" = None
    numbers: bool = False


Tree: TypeAlias = dict[int, Field]
"""Fields by the tag that protobuf writes before them."""
Found: TypeAlias = "dict[str, memoryview | list[memoryview] | Found]"
"""Pixels by the names of the fields that lead to them; lists of those of repeated fields."""

_PIXELS = frozenset(("dfcvae.v1.RawImages.data", "inference.ModelInferRequest.raw_input_contents"))

# Thirty million empty edits are 60 MB on the wire, 1.7 GB as a message, and nine seconds of parsing.
_MAX_FIELDS = 16_384
# A number that is a byte on the wire may be eight in a message, and takes a hundred times as long as a raw one.
_MAX_NUMBERS_BYTES = 2**20
_LONGEST_LENGTH = 4  # bytes; enough for 256 MiB

# So few bytes are copied sooner than looked through, and hold no more fields than are allowed: each takes two.
_SMALL_BYTES = 2 * _MAX_FIELDS

# Kinds of fields: the last three bits of a tag.
_LENGTH, _GROUP, _END_OF_GROUP = 2, 3, 4

# What protobuf writes before fields: (number << 3) | kind, kind 0 for integers and 2 for what has a length.
_IMAGES = _RAW = _EDITED = b"\x0a"
_COUNT, _HEIGHT, _WIDTH, _DATA = b"\x08", b"\x10", b"\x18", b"\x22"


def parser(kind: type[Message]) -> Callable[[bytes], Any]:
    """What turns bytes into requests of a kind; raw pixels stay where they are, see `ZeroCopyMessage`.

    It raises InvalidRequest when they have far more fields than any request needs, and protobuf's DecodeError when they
    are no message.
    """
    tree = field_tree(kind.DESCRIPTOR)

    def parse(data: bytes) -> Any:
        if len(data) <= _SMALL_BYTES:
            return kind.FromString(data)
        rest, found = split_pixels(data, tree)
        request = kind.FromString(rest)
        return ZeroCopyMessage(request, found) if found else request

    return parse


class ZeroCopyMessage:
    """A message, some of whose fields lie beside it; they are read as its other fields are.

    Args:
        message: The message.
        found: The fields that lie beside it.
    """

    def __init__(self, message: Message, found: Found) -> None:
        self._message = message
        for name, value in found.items():
            setattr(self, name, ZeroCopyMessage(getattr(message, name), value) if isinstance(value, dict) else value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


def field_tree(descriptor: Any) -> Tree:
    """Where pixels may be in messages of a kind, and what is to be counted there.

    Args:
        descriptor: Of the kind; its messages must not contain each other without end.
    """
    tree: Tree = {}
    for field in descriptor.fields:
        tag = field.number << 3 | _LENGTH
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            tree[tag] = Field(field.name, field.is_repeated, field_tree(field.message_type))
        elif field.full_name in _PIXELS:
            tree[tag] = Field(field.name, field.is_repeated)
        elif field.is_packed:
            tree[tag] = Field(field.name, True, numbers=True)
    return tree


def split_pixels(data: bytes, tree: Tree) -> tuple[bytes, Found]:
    """Cuts the pixels out of a serialised message.

    Args:
        data: The message.
        tree: Where they may be.

    Returns:
        The message without them, and views of them. `data` itself and nothing where there are none, and where the
        message isn't plain or none at all.

    Raises:
        InvalidRequest: When it has far more fields than any request needs; each would become an object.
    """
    walk = _Walk(data)
    try:
        rest, found = walk.cut(0, len(data), tree)
    except (DecodeError, IndexError):  # protobuf says the same, in its own words
        return data, {}
    return (rest, found) if found and walk.plain else (data, {})


class _Walk:
    """One way through a message.

    Attributes:
        plain: Whether nothing odd was met.
    """

    def __init__(self, data: bytes) -> None:
        self.plain = True
        self._data = data
        self._fields = 0
        self._numbers = 0  # bytes

    def cut(self, start: int, stop: int, tree: Tree) -> tuple[bytes, Found]:
        """As `split_pixels`, for the message that lies from start to stop; b"" where nothing is found in it."""
        data = self._data
        found: dict[str, Any] = {}
        seen: set[int] = set()
        rest: list[bytes] = []
        groups = 0  # that are open
        kept = position = start  # what is before `kept` is in `rest`, or cut out
        while position < stop:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise InvalidRequest(f"the request has more than {_MAX_FIELDS} fields; send several requests")
            tag, length_at = data[position], position + 1
            if tag > 0x7F:
                tag, length_at = _varint(data, position)
                self.plain = False
            kind = tag & 7
            if kind in (_GROUP, _END_OF_GROUP):
                self.plain = False
                groups += 1 if kind == _GROUP else -1
                position = length_at
                continue
            if kind != _LENGTH:
                position = self._after(kind, length_at)
                continue
            length, content = data[length_at], length_at + 1
            if length > 0x7F:
                length, content = _varint(data, length_at)
                self.plain = self.plain and content <= length_at + _LONGEST_LENGTH
            end = content + length
            if end > stop:
                raise DecodeError("a field doesn't end")
            if tag in tree and not groups:  # what is in a group may look like anything
                field = tree[tag]
                self.plain = self.plain and (field.repeated or tag not in seen)  # protobuf merges them
                seen.add(tag)
                value, left = self._look_into(field, tag, content, end)
                if value is not None:
                    if field.repeated:
                        found.setdefault(field.name, []).append(value)
                    else:
                        found[field.name] = value
                    rest += (data[kept:position], left)
                    kept = end
            position = end
        if position > stop:
            raise DecodeError("a number doesn't end")
        return b"".join((*rest, data[kept:stop])) if found else b"", found

    def _look_into(self, field: Field, tag: int, start: int, stop: int) -> "tuple[memoryview | Found | None, bytes]":
        """What is found in a field of the tree, None for nothing, and what is left of the field for protobuf."""
        if field.numbers:
            self._numbers += stop - start
            if self._numbers > _MAX_NUMBERS_BYTES:
                raise InvalidRequest(
                    f"the request has more than {_MAX_NUMBERS_BYTES} bytes of numbers in {field.name}; send them as "
                    "raw_input_contents"
                )
            return None, b""
        if field.inner is None:
            return memoryview(self._data)[start:stop], b""
        inner, found = self.cut(start, stop, field.inner)
        if not found:
            return None, b""
        self.plain = self.plain and not field.repeated
        return found, b"".join((to_varint(tag), to_varint(len(inner)), inner))

    def _after(self, kind: int, position: int) -> int:
        """Where a field ends that has no length."""
        match kind:
            case 0:
                return _varint(self._data, position)[1]
            case 1:
                return position + 8
            case 5:
                return position + 4
        raise DecodeError("no field is of such a kind")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and where it ends."""
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for index in range(1, 10):
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise DecodeError("a number doesn't end")


def to_varint(value: int) -> bytes:
    """Protobuf's variable-length integer: seven bits a byte, the least significant first."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


class ImageResponse:
    """A response message, and the raw pixels that belong into its field `images`, uint8 [N, S, S, 3].

    Attributes:
        message: A response whose field 1 is `images`; holds everything but raw pixels.
        pixels: The pixels, or None.
    """

    __slots__ = ("message", "pixels")

    def __init__(self, message: Message, pixels: Bytes | None = None) -> None:
        self.message = message
        self.pixels = pixels

    def parts(self) -> list[bytes | memoryview]:
        """The serialised message, piece by piece."""
        rest = self.message.SerializeToString()
        if self.pixels is None:
            return [rest]
        count, height, width, _ = self.pixels.shape
        return [_before_pixels(count, height, width), np.ascontiguousarray(self.pixels).data.cast("B"), rest]

    def SerializeToString(self) -> bytes:  # noqa: N802 - the name that messages have
        """The bytes of the whole message."""
        return b"".join(self.parts())


class StreamResponse:
    """An EditStreamResponse around an ImageResponse; `id` as in the request.

    It is serialised when it is made: while it waits for its turn, it holds its own bytes, and not those of the whole
    batch that its pixels were computed in.
    """

    __slots__ = ("_data",)

    def __init__(self, response: ImageResponse, id: int) -> None:
        parts = response.parts()
        length = to_varint(sum(map(len, parts)))
        self._data = b"".join((_EDITED, length, *parts, pb.EditStreamResponse(id=id).SerializeToString()))

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The bytes of the whole message."""
        return self._data


def _before_pixels(count: int, height: int, width: int) -> bytes:
    """What comes before the pixels in field `images`, of which they are the last bytes."""
    size = count * height * width * 3
    raw = b"".join(
        (_COUNT, to_varint(count), _HEIGHT, to_varint(height), _WIDTH, to_varint(width), _DATA, to_varint(size))
    )
    batch = b"".join((_RAW, to_varint(len(raw) + size), raw))
    return b"".join((_IMAGES, to_varint(len(batch) + size), batch))
