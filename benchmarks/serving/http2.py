"""Just enough HTTP/2 to begin a gRPC call and not to end it as one should."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0x0, 0x1, 0x4
_END_STREAM, _END_HEADERS = 0x1, 0x4
_FRAME_BYTES = 16384
WINDOW_BYTES = 65535
"""What may be sent before the server gives credit."""


@dataclass
class HalfCall:
    """A connection with one call on it, whose message is not whole.

    Attributes:
        writer: Where bytes go.
    """

    writer: asyncio.StreamWriter

    @classmethod
    async def begin(cls, target: str, path: str, declared: int, sent: int, *, end: bool = False) -> HalfCall:
        """Opens a connection and a call, and sends a part of its message.

        Args:
            target: HOST:PORT.
            path: The method.
            declared: Length that the message is said to have, bytes.
            sent: How many of its bytes are sent; with the header at most `WINDOW_BYTES`.
            end: Whether to say that nothing more will come.
        """
        host, _, port = target.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": target,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        # HPACK without its table: a zero byte, then name and value as they are.
        block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers.items())
        data = (struct.pack(">BI", 0, declared) + bytes(sent))[:WINDOW_BYTES]
        frames = [_frame(_SETTINGS, 0, 0, b""), _frame(_HEADERS, _END_HEADERS, 1, block)]
        for start in range(0, len(data), _FRAME_BYTES):
            last = end and start + _FRAME_BYTES >= len(data)
            frames.append(_frame(_DATA, _END_STREAM if last else 0, 1, data[start : start + _FRAME_BYTES]))
        writer.write(_PREFACE + b"".join(frames))
        await writer.drain()
        return cls(writer)

    def close(self, *, reset: bool = False) -> None:
        """Closes the connection; with `reset`, by force."""
        if reset:
            sock: socket.socket = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        else:
            self.writer.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
