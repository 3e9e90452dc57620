"""HTTP calls as build clients make them: one request, one answer, over a real socket."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass

TIMEOUT_S = 30


@dataclass(frozen=True)
class Answer:
    """An answer; the names of its headers are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Http:
    """One server."""

    def __init__(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        self.host, self.port = host, int(port)

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        try:
            return send(connection, method, path, body, headers)
        finally:
            connection.close()

    def open(self) -> http.client.HTTPConnection:
        """A connection for many requests."""
        return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)

    def raw(self) -> socket.socket:
        """A socket, for what no well-behaved client sends."""
        return socket.create_connection((self.host, self.port), timeout=TIMEOUT_S)


def send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection that stays."""
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    return Answer(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})


def answer_on(raw: socket.socket) -> Answer:
    """The next answer on a socket."""
    response = http.client.HTTPResponse(raw)
    response.begin()
    return Answer(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
