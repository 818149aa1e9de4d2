"""HTTP/2 frames and gRPC messages as bytes, for clients that count every call, or that break the rules on purpose."""

import struct
from collections.abc import Iterator

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
INITIAL_WINDOW_SIZE = 4  # the number of a setting
WINDOW_BYTES = 65_535
"""What may be sent at first, on a stream and on a connection, before the other side gives more credit."""
FRAME_BYTES = 16_384  # largest payload of a frame, unless the other side allows more


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame; kind and flags may be ones that HTTP/2 doesn't know."""
    return b"".join((len(payload).to_bytes(3, "big"), bytes((kind, flags)), stream.to_bytes(4, "big"), payload))


START = PREFACE + frame(SETTINGS, 0, 0)  # what a client says first


def frames(buffer: bytearray) -> Iterator[tuple[int, int, int, bytes]]:
    """Takes whole frames out of what was received: kind, flags, stream, payload."""
    at = 0
    while len(buffer) >= at + 9:
        end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
        if len(buffer) < end:
            break
        kind, flags, stream = struct.unpack_from(">BBL", buffer, at + 3)
        yield kind, flags, stream, bytes(buffer[at + 9 : end])
        at = end
    del buffer[:at]


def message(data: bytes) -> bytes:
    """A gRPC message, not compressed."""
    return struct.pack(">BL", 0, len(data)) + data


def block(*fields: tuple[str | bytes, str | bytes]) -> bytes:
    """Headers in HPACK without a table, so that it is the same wherever it stands on a connection."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    written: bytes = encoder.encode(fields, huffman=False)
    return written


def opening(
    stream: int, path: str | bytes, *fields: tuple[str | bytes, str | bytes], authority: str = "localhost"
) -> bytes:
    """The frame that begins a call; `fields` take the place of its usual headers, or come behind them."""
    usual: dict[str | bytes, str | bytes] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    changed = usual | {key: value for key, value in fields if key in usual}
    others = [field for field in fields if field[0] not in usual]
    return frame(HEADERS, END_HEADERS, stream, block(*changed.items(), *others))


def call(stream: int, path: str | bytes, data: bytes = b"", *fields: tuple[str | bytes, str | bytes]) -> bytes:
    """A whole call with one message, in a frame each."""
    return opening(stream, path, *fields) + frame(DATA, END_STREAM, stream, message(data))


def cancel(stream: int) -> bytes:
    """The frame that cancels a call."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def window(stream: int, size: int) -> bytes:
    """The frame that lets the other side send so many bytes more: on a stream, or with 0 on the connection."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))
