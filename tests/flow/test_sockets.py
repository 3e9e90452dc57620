"""An accepted connection sends what it has at once: with Nagle's algorithm small answers wait 40 ms to be acknowledged.

The option is read from the server's own socket, since whether waiting shows depends on what is sent.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.process import Process

# The same number on every architecture (pidfd_getfd(2)).
PIDFD_GETFD = 438


def sockets_of(pid: int) -> Iterator[socket.socket]:
    """Copies of the IPv4 sockets that a process has open."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if not os.readlink(entry).startswith("socket:"):
                continue
            descriptor = libc.syscall(PIDFD_GETFD, process, int(entry.name), 0)
            if descriptor < 0:
                error = ctypes.get_errno()
                pytest.skip(f"SKIPPED LOUDLY: a socket of another process cannot be looked at: {os.strerror(error)}")
            with socket.socket(fileno=descriptor) as found:
                if found.family == socket.AF_INET:
                    yield found
    finally:
        os.close(process)


def test_an_accepted_connection_does_not_wait_to_send(tmp_path: Path) -> None:
    with Process(tmp_path / "state") as process:
        host, _, port = process.url.removeprefix("grpc://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
            mine = client.getsockname()
            options = []
            for found in sockets_of(process.process.pid):
                listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if not listens and found.type == socket.SOCK_STREAM and found.getpeername() == mine:
                    options.append(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            assert len(options) == 1
            assert options[0] != 0
