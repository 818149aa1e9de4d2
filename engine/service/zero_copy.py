"""Requests whose pixels are not copied when they are read: a request is in memory once, and not three times.

Protobuf copies bytes twice: into the message when it parses, and out of it when they are asked for. Here the pixels of
raw images are cut out of the serialised request as a view, and protobuf parses what is left, some dozens of bytes.

Only plain requests are cut; others are parsed whole, so that meaning and errors are always protobuf's. Writers of
protobuf produce plain requests: each field on the way to the pixels occurs once, and numbers are as short as they can
be.
"""

from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from engine.errors import InvalidRequest
from protos import dfcvae_pb2 as pb

Tree: TypeAlias = "dict[int, tuple[str, Tree | None]]"
"""Names by the tag that protobuf writes before a field: messages with their own trees, pixels without."""
Found: TypeAlias = "dict[str, memoryview | Found]"
"""Pixels by the names of the fields that lead to them."""

# Thirty million empty edits are 60 MB on the wire, 1.7 GB as a message, and nine seconds of parsing.
_MAX_FIELDS = 16_384
_LONGEST_LENGTH = 4  # bytes; enough for 256 MiB

# Kinds of fields: the last three bits of a tag.
_LENGTH, _GROUP, _END_OF_GROUP = 2, 3, 4


class ZeroCopyMessage:
    """A message, some of whose fields lie beside it; they are read as its other fields are.

    Args:
        message: The message.
        found: The fields that lie beside it.
    """

    def __init__(self, message: Message, found: Found) -> None:
        self._message = message
        for name, value in found.items():
            own = value if isinstance(value, memoryview) else ZeroCopyMessage(getattr(message, name), value)
            setattr(self, name, own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


def field_tree(descriptor: Any) -> Tree:
    """Where pixels may be in messages of a kind: all fields that hold one message each, and `RawImages.data`.

    Args:
        descriptor: Of the kind; its messages must not contain each other without end.
    """
    tree: Tree = {}
    for field in descriptor.fields:
        tag = field.number << 3 | _LENGTH
        if field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
            tree[tag] = (field.name, field_tree(field.message_type))
        elif descriptor is pb.RawImages.DESCRIPTOR and field.name == "data":
            tree[tag] = (field.name, None)
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

    def cut(self, start: int, stop: int, tree: Tree) -> tuple[bytes, Found]:
        """As `split_pixels`, for the message that lies from start to stop; b"" where nothing is found in it."""
        data = self._data
        found: Found = {}
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
                name, inner_tree = tree[tag]
                self.plain = self.plain and tag not in seen  # protobuf merges them
                seen.add(tag)
                if inner_tree is None:
                    found[name] = memoryview(data)[content:end]
                    rest.append(data[kept:position])
                    kept = end
                else:
                    inner, inner_found = self.cut(content, end, inner_tree)
                    if inner_found:
                        found[name] = inner_found
                        rest += (data[kept:length_at], to_varint(len(inner)), inner)
                        kept = end
            position = end
        if position > stop:
            raise DecodeError("a number doesn't end")
        return b"".join((*rest, data[kept:stop])) if found else b"", found

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
