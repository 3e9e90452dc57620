"""HTTP/2 by hand, for what no well-behaved client does. It reads only what a test asks it to."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4
WINDOW_BYTES_MAX = (1 << 31) - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers_of(path: str) -> bytes:
    """The header block of a gRPC call, every field literal and not indexed (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def message(payload: bytes) -> bytes:
    """A gRPC message in its frame."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


class Connection:
    """A connection that has greeted; `window_bytes` is what it lets the server send on each stream and in all."""

    def __init__(self, target: str, window_bytes: int = 65535, *, receive_bytes: int | None = None) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window_bytes)))
        if window_bytes > 65535:
            self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", window_bytes - 65535)))

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def call(self, stream: int, path: str, payload: bytes) -> None:
        """A whole request."""
        self.send(
            frame(HEADERS, END_HEADERS, stream, headers_of(path)), frame(DATA, END_STREAM, stream, message(payload))
        )

    def greet(self) -> None:
        """Take the server's settings; only then may a client send more than 64 KiB (RFC 9113, 6.5.3 and 6.9.2)."""
        seen = set()
        with self.socket.makefile("rb") as stream:
            while not {SETTINGS, WINDOW_UPDATE} <= seen:
                header = stream.read(9)
                assert len(header) == 9, "the server ended the connection"
                stream.read(int.from_bytes(header[:3], "big"))
                seen.add(header[3])
        self.send(frame(SETTINGS, ACK, 0))

    def close(self) -> None:
        self.socket.close()
