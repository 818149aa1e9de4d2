"""What turns bytes into requests, unless they have far more fields than any request needs."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from engine.errors import InvalidRequest

Fields: TypeAlias = "dict[int, tuple[str, Fields | None]]"
"""Names of the fields to look into, by the tag that protobuf writes before them: messages with fields of their own, and
lists of numbers, None."""

# Thirty million empty edits are 60 MB on the wire, 1.7 GB as a message, and nine seconds of parsing.
_MAX_FIELDS = 16_384
# A number that is a byte on the wire may be eight in a message, and takes a hundred times as long as a raw one.
_MAX_NUMBERS_BYTES = 2**20
# So few bytes hold no more fields than are allowed: each takes two.
_SMALL_BYTES = 2 * _MAX_FIELDS

# Kinds of fields: the last three bits of a tag.
_VARINT, _EIGHT_BYTES, _LENGTH, _GROUP, _END_OF_GROUP, _FOUR_BYTES = range(6)


def deserializer(kind: type[Message]) -> Callable[[bytes], Any]:
    """What turns bytes into requests of a kind, whose messages don't contain each other without end.

    It raises InvalidRequest when they have far more fields than any request needs, and protobuf's DecodeError when they
    are no message.
    """
    fields = _fields_of(kind.DESCRIPTOR)

    def deserialize(data: bytes) -> Any:
        if len(data) > _SMALL_BYTES:
            # Where it is no message protobuf will say so in its own words, and parse no further than this went.
            with suppress(LookupError, ValueError):
                _Count(data).add(0, len(data), fields)
        return kind.FromString(data)

    return deserialize


def _fields_of(descriptor: Any) -> Fields:
    fields: Fields = {}
    for field in descriptor.fields:
        tag = field.number << 3 | _LENGTH
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            fields[tag] = field.name, _fields_of(field.message_type)
        elif field.is_packed:
            fields[tag] = field.name, None
    return fields


class _Count:
    """Counts the fields of a serialised message, and the bytes of its numbers."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = 0
        self._numbers = 0  # bytes

    def add(self, start: int, stop: int, fields: Fields) -> None:
        """Counts the message that lies from start to stop.

        Raises:
            InvalidRequest: When there are too many.
            LookupError, ValueError: When it is no message.
        """
        data, position, groups = self._data, start, 0
        while position < stop:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise InvalidRequest(f"the request has more than {_MAX_FIELDS} fields; send several requests")
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind == _LENGTH:
                length, position = _varint(data, position)
                if tag in fields and not groups:  # what is in a group may look like anything
                    self._look_into(*fields[tag], position, min(position + length, stop))
                position += length
            elif kind == _VARINT:
                _, position = _varint(data, position)
            elif kind in (_GROUP, _END_OF_GROUP):
                groups += 1 if kind == _GROUP else -1
            else:
                position += {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind]

    def _look_into(self, name: str, fields: "Fields | None", start: int, stop: int) -> None:
        if fields is not None:
            self.add(start, stop, fields)
            return
        self._numbers += stop - start
        if self._numbers > _MAX_NUMBERS_BYTES:
            raise InvalidRequest(
                f"the request has more than {_MAX_NUMBERS_BYTES} bytes of numbers in {name}; send them as "
                "raw_input_contents"
            )


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and where it ends: seven bits a byte, the least significant first."""
    value = shift = 0
    while (byte := data[position]) > 0x7F:
        value |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if shift > 63:
            raise ValueError("a number doesn't end")
    return value | byte << shift, position + 1
